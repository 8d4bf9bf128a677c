//! A request and its response, as the edges see them.

use std::{fmt, sync::Arc, time::Duration};

use skep_tensor::{Charge, Tensor};
use skep_types::{ModelName, ModelVersion, SequenceStep};

use crate::{error::RuntimeError, serving::trace::RequestTrace};

/// A decoded inference request for a version that `Runtime::resolve` found.
#[derive(Debug, Clone, Default)]
pub struct InferRequest {
    /// The client's id, which is only echoed and logged; empty if the client gave none.
    pub id: String,
    /// Inputs in the client's order; shapes include the batch dimension.
    pub inputs: Vec<(String, Tensor)>,
    /// Names of the wanted outputs in the client's order; empty for all.
    pub outputs: Vec<String>,
    /// The priority level, from 1, which is served first; 0 for the model's default.
    pub priority: u64,
    /// How long it may wait, if the model lets requests say so; `None` if it does not say.
    pub timeout: Option<Duration>,
    /// Its place in a sequence, if it names one. Models without sequences ignore it.
    pub sequence: Option<SequenceStep>,
    /// The client's parameters, without those that the protocol defines.
    pub parameters: Vec<(String, Parameter)>,
    /// The request's share of the node's memory, to which its run and its response are added. `None` if memory is not
    /// counted.
    pub charge: Option<Arc<Charge>>,
    /// Its trace; `None` if it is not traced.
    pub trace: Option<Arc<RequestTrace>>,
}

/// The value of a request's or response's parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Parameter {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number; finite if it came from JSON.
    Double(f64),
    /// A text.
    String(String),
}

impl fmt::Display for Parameter {
    /// The value as text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Double(value) => value.fmt(f),
            Self::String(value) => value.fmt(f),
        }
    }
}

/// A tensor of a response.
#[derive(Debug, Clone)]
pub struct NamedTensor {
    /// The output's name.
    pub name: Arc<str>,
    /// Its value; the shape includes the batch dimension.
    pub tensor: Tensor,
    /// Whether its bytes are alone in their memory, so that keeping them keeps nothing else.
    pub owns_memory: bool,
}

/// How a request was executed. Each phase is that of the whole batch, as Triton charges them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From its arrival in the runtime until an instance took its batch.
    pub queue: Duration,
    /// Gathering inputs.
    pub compute_input: Duration,
    /// Running the model.
    pub compute_infer: Duration,
    /// Splitting outputs.
    pub compute_output: Duration,
    /// Inferences in the batch.
    pub batch_size: usize,
    /// Why the batch was closed: a `reason` of `skep_batch_end_total`.
    pub batch_end: &'static str,
}

/// The response to an inference request.
#[derive(Debug, Clone)]
pub struct InferResponse {
    /// The model that answered.
    pub model: ModelName,
    /// Its version.
    pub version: ModelVersion,
    /// The wanted outputs in the wanted order.
    pub outputs: Vec<NamedTensor>,
    /// How the request was executed; `None` if no model ran for it.
    pub timing: Option<Timing>,
    /// The response's parameters.
    pub parameters: Vec<(String, Parameter)>,
    /// The share of the node's memory that the response, and the request as long as it exists, hold. Keep it until the
    /// response is written.
    pub charge: Option<Arc<Charge>>,
}

impl InferResponse {
    /// Charges a response that was kept for other requests to this one: its memory may be dropped there before the client
    /// has read it.
    pub(crate) fn charge_to(&mut self, charge: Option<Arc<Charge>>) -> Result<(), RuntimeError> {
        if let Some(charge) = &charge {
            let outputs = self.outputs.iter();
            let bytes = outputs.map(|output| output.tensor.data().len()).sum();
            charge.add(bytes).map_err(RuntimeError::memory_is_full)?;
        }
        self.charge = charge;
        Ok(())
    }
}
