//! A request and its answer, as the edges hand them over.

use std::sync::Arc;

use skep_tensor::Tensor;
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
}

/// A tensor of an answer.
#[derive(Debug, Clone)]
pub struct NamedTensor {
    /// The output's name.
    pub name: Arc<str>,
    /// Its value; the shape includes the batch dimension.
    pub tensor: Tensor,
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
}
