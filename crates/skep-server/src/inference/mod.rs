//! What the inference calls of both protocols share, between decoding a request and encoding its answer.
//!
//! ```text
//! options         what the operator chooses: forwarded headers, compression
//! request         a request's id in texts, its parameters, its failure, its charge
//! tensor          an input's tensor from its data
//! classification  classes in place of an output
//! ```

mod classification;
mod options;
mod request;
mod tensor;

pub use self::options::{HeaderPattern, InferenceOptions};
pub(crate) use self::{
    classification::classify,
    request::{
        InferenceFailure, SequenceParameters, invalid_input, invalid_request, log_failure,
        log_parameters, output_bytes, refuse_decoupled, reserved_parameter, settle, timeout,
    },
    tensor::input_tensor,
};
