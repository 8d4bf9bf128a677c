//! Inference requests and answers, before a protocol encodes them.

use std::{collections::BTreeMap, num::NonZeroU32};

use skep_tensor::Tensor;
use skep_types::ModelVersion;

/// An inference request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InferRequest {
    /// The model.
    pub model: String,
    /// Its version; `None` leaves the choice to the server.
    pub version: Option<ModelVersion>,
    /// Echoed in the answer; may be empty.
    pub id: String,
    /// Inputs by name.
    pub inputs: Vec<(String, Tensor)>,
    /// The requested outputs; empty for all.
    pub outputs: Vec<WantedOutput>,
    /// The request's parameters.
    pub parameters: BTreeMap<String, ParameterValue>,
    /// How tensors travel.
    pub encoding: Encoding,
}

impl InferRequest {
    /// A request without inputs; the server chooses the version.
    #[must_use]
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            ..Self::default()
        }
    }
}

/// An output that a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedOutput {
    /// Its name.
    pub name: String,
    /// How many of its best classes replace it, as `value:index[:label]`; `None` for the output itself.
    pub classes: Option<NonZeroU32>,
}

impl WantedOutput {
    /// The output of a name.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            classes: None,
        }
    }
}

/// How tensors travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Encoding {
    /// As raw bytes: binary tensor data after the JSON part over HTTP, raw contents over gRPC. Fast, and available for
    /// every datatype.
    #[default]
    Binary,
    /// Element by element: HTTP's JSON arrays (both ways), gRPC's typed contents (in requests). FP16 and BF16 have no
    /// such form, and over HTTP a `BYTES` element must be UTF-8.
    Typed,
}

/// The value of a request's parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum ParameterValue {
    /// True or false.
    Bool(bool),
    /// A signed number.
    Int64(i64),
    /// An unsigned number.
    Uint64(u64),
    /// A number with a fraction.
    Double(f64),
    /// A text.
    String(String),
}

/// The answer to an [`InferRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferResponse {
    /// The model that answered.
    pub model: String,
    /// Its version, as the server writes it; empty if the server does not say.
    pub version: String,
    /// The request's id.
    pub id: String,
    /// Outputs by name, in the server's order.
    pub outputs: Vec<(String, Tensor)>,
}

impl InferResponse {
    /// The output of a name.
    #[must_use]
    pub fn output(&self, name: &str) -> Option<&Tensor> {
        let (_, tensor) = self.outputs.iter().find(|(n, _)| n == name)?;
        Some(tensor)
    }
}
