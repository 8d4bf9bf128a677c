//! What a backend tells of a model's file before it loads the model.

use std::{any::Any, sync::Arc};

use skep_tensor::Tensor;
use skep_types::{DataType, DimensionNames, ModelSignature};

use crate::{BackendError, ModelFile};

/// What a configuration says of a model's inputs and outputs, complete or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfiguredTensors {
    /// Inputs that every run is given.
    pub inputs: Vec<String>,
    /// Inputs that requests may leave out.
    pub optional_inputs: Vec<String>,
    /// Outputs to serve; where there are none, all that can be served.
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

/// A question about a model's file.
#[derive(Clone, Copy)]
pub struct InspectRequest<'a> {
    /// The model's file.
    pub file: &'a ModelFile,
    /// What the configuration says.
    pub tensors: &'a ConfiguredTensors,
    /// Calls [`Backend::ask`](crate::Backend::ask), in a process of its own if the model is to run in one, to complete an
    /// unfinished configuration. `None` for a finished one: it says itself what the file does not declare.
    pub ask: Option<&'a dyn Fn() -> Result<FileInterface, BackendError>>,
}

/// What a runtime makes of a model's file, for which there is no configuration yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileInterface {
    /// The inputs that a run needs, and the outputs.
    pub signature: ModelSignature,
    /// What the file calls their dimensions, as far as the runtime tells.
    pub dimension_names: DimensionNames,
}

/// What a backend found in a model's file.
#[derive(Default)]
pub struct Inspection {
    /// Inputs and outputs; `None` if only a load tells them.
    pub signature: Option<ModelSignature>,
    /// The values of optional inputs that have a default, by name.
    pub defaults: Vec<(String, Tensor)>,
    /// Why the first dimension of its tensors is not a batch, though it looks like one. Only where
    /// [`InspectRequest::ask`] was given.
    pub not_batched: Option<String>,
    /// Outputs that cannot be served, in words for the log. Only where the configuration names no outputs.
    pub left_out: Vec<String>,
    /// Keeps what was decoded, so that the load that follows does not decode it again.
    pub(crate) _decoded: Option<Arc<dyn Any + Send + Sync>>,
}

impl std::fmt::Debug for Inspection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inspection")
            .field("signature", &self.signature)
            .finish_non_exhaustive()
    }
}
