//! A request and its answer, as the edges hand them over.

use std::{fmt, sync::Arc, time::Duration};

use skep_tensor::{Charge, Tensor};
use skep_types::{ModelName, ModelVersion};

/// An inference request, decoded. Which model it goes to was settled before (`Runtime::resolve`).
#[derive(Debug, Clone, Default)]
pub struct InferRequest {
    /// The client's id, empty if it gave none; only ever echoed and logged.
    pub id: String,
    /// Inputs in the client's order; shapes include the batch dimension.
    pub inputs: Vec<(String, Tensor)>,
    /// Names of the wanted outputs in the client's order; empty for all.
    pub outputs: Vec<String>,
    /// The priority level that it asks for, from 1, which is served first; 0 for the model's default.
    pub priority: u64,
    /// How long it may wait, where the model lets requests say so; none where it does not say.
    pub timeout: Option<Duration>,
    /// What the client says about the request, under names of its own; those that the protocol defines are not here.
    pub parameters: Vec<(String, Parameter)>,
    /// What the request holds of the node's memory; its run and its answer are added to it. `None` where nobody counts.
    pub charge: Option<Arc<Charge>>,
}

/// The value of a request's or an answer's parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Parameter {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number; never infinite, never not-a-number where it came out of JSON.
    Double(f64),
    /// A text.
    String(String),
}

impl fmt::Display for Parameter {
    /// The value alone, as text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Double(value) => value.fmt(f),
            Self::String(value) => value.fmt(f),
        }
    }
}

/// A tensor of an answer.
#[derive(Debug, Clone)]
pub struct NamedTensor {
    /// The output's name.
    pub name: Arc<str>,
    /// Its value; the shape includes the batch dimension.
    pub tensor: Tensor,
}

/// How a request was executed. The phases are those of its whole batch, as Triton charges them.
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
    /// Why the batch was not larger: a `reason` of `skep_batch_end_total`.
    pub batch_end: &'static str,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct InferResponse {
    /// The model that answered.
    pub model: ModelName,
    /// Its version.
    pub version: ModelVersion,
    /// The wanted outputs in the wanted order.
    pub outputs: Vec<NamedTensor>,
    /// How it came about; `None` where no model was run for it.
    pub timing: Option<Timing>,
    /// What the model says about the answer.
    pub parameters: Vec<(String, Parameter)>,
    /// What the answer, and the request as far as it is still there, hold of the node's memory: to be kept until the
    /// answer is written.
    pub charge: Option<Arc<Charge>>,
}
