//! What the inference calls of both protocols share, between decoding a request and encoding its answer.
//!
//! ```text
//! options         what the operator chooses: forwarded headers, compression
//! request         a request's id in texts, its parameters, its failure, its charge
//! tensor          an input's tensor from its data
//! regions         inputs and outputs in clients' shared memory
//! classification  classes in place of an output
//! ```

mod classification;
mod options;
mod regions;
mod request;
mod tensor;

pub use self::options::{HeaderPattern, InferenceOptions};
pub(crate) use self::{
    classification::classify,
    regions::{
        BYTE_SIZE, NamedSpan, OFFSET, OutputRegions, REGION, RegionInput, RegionUse, SpanParameters,
    },
    request::{
        InferenceFailure, SequenceParameters, invalid_input, invalid_request, log_failure,
        log_parameters, output_bytes, refuse_decoupled, reserved_parameter, settle, timeout,
    },
    tensor::input_tensor,
};
