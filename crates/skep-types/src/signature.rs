//! Inputs and outputs of a model.

use std::collections::BTreeMap;

use crate::{DataType, Dims};

/// The names that a file gives the dimensions of its inputs and outputs, by tensor; empty for an unnamed dimension.
pub type DimensionNames = BTreeMap<String, Vec<String>>;

/// One input or output of a model as its file declares it, the batch dimension (if any) included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The tensor's name.
    pub name: String,
    /// The datatype of its elements.
    pub datatype: DataType,
    /// Its dims; `None` if the file declares not even the rank.
    pub dims: Option<Dims>,
}

/// The inputs and outputs of a model in its file's order; initializers are not inputs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelSignature {
    /// Inputs that a run needs.
    pub inputs: Vec<TensorSpec>,
    /// Outputs that a run can produce.
    pub outputs: Vec<TensorSpec>,
}

impl ModelSignature {
    /// The input called `name`.
    #[must_use]
    pub fn input(&self, name: &str) -> Option<&TensorSpec> {
        self.inputs.iter().find(|t| t.name == name)
    }

    /// The output called `name`.
    #[must_use]
    pub fn output(&self, name: &str) -> Option<&TensorSpec> {
        self.outputs.iter().find(|t| t.name == name)
    }
}
