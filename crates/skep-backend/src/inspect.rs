//! What a backend reports about a model's file before it loads the model.

use std::{any::Any, sync::Arc};

use skep_tensor::Tensor;
use skep_types::{DataType, DimensionNames, ModelSignature};

use crate::{BackendError, ModelFile};

/// The inputs and outputs of a configuration, which may be incomplete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfiguredTensors {
    /// Inputs that every run gets.
    pub inputs: Vec<String>,
    /// Inputs that requests may omit.
    pub optional_inputs: Vec<String>,
    /// Outputs to serve; if empty, all outputs that can be served.
    pub outputs: Vec<ConfiguredOutput>,
}

/// An output that a configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredOutput {
    /// Its name.
    pub name: String,
    /// Its datatype, if the configuration says that and its dims.
    pub datatype: Option<DataType>,
}

/// A request to inspect a model's file.
#[derive(Clone, Copy)]
pub struct InspectRequest<'a> {
    /// The model's file.
    pub file: &'a ModelFile,
    /// The configuration's inputs and outputs.
    pub tensors: &'a ConfiguredTensors,
    /// Calls [`Backend::ask`](crate::Backend::ask) to complete an incomplete configuration, in a worker process if
    /// the model is configured to run in one. `None` for a complete configuration, which declares what the file does
    /// not.
    pub ask: Option<&'a dyn Fn() -> Result<FileInterface, BackendError>>,
}

/// The inputs and outputs that a backend's library reports for a model's file, without a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileInterface {
    /// The inputs that a run needs, and the outputs.
    pub signature: ModelSignature,
    /// The names of their dimensions, as far as the library reports them.
    pub dimension_names: DimensionNames,
}

/// The result of inspecting a model's file.
#[derive(Default)]
pub struct Inspection {
    /// Inputs and outputs; `None` if only a load can determine them.
    pub signature: Option<ModelSignature>,
    /// The values of optional inputs that have a default, by name.
    pub defaults: Vec<(String, Tensor)>,
    /// Why the first dimension of its tensors is not a batch dimension although it looks like one. Only set if
    /// [`InspectRequest::ask`] was given.
    pub not_batched: Option<String>,
    /// Texts for the log about outputs that cannot be served. Only set if the configuration names no outputs.
    pub left_out: Vec<String>,
    /// Keeps the decoded file, so that the load that follows does not decode it again.
    pub(crate) _decoded: Option<Arc<dyn Any + Send + Sync>>,
}

impl std::fmt::Debug for Inspection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inspection")
            .field("signature", &self.signature)
            .finish_non_exhaustive()
    }
}
