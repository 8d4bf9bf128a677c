//! What a backend is to Skep.
//!
//! Three traits, from the library down to one executable copy:
//!
//! ```text
//! Backend   a library that can load models        one a process
//!   load()     -> Model      weights, shared      one a model version
//!   instance() -> Instance   everything private   one a thread: its run's scratch memory, bindings, plan
//! ```
//!
//! *Weights* belong to the [`Model`] and are read-only; many instances run on one copy of them at once. They come out
//! of [`ModelFile`], whose bytes are a mapping that the caller owns: a backend with [`Capabilities::weights_in_place`]
//! uses them where they lie. *Memory of a run* belongs to the [`Instance`], of which exactly one run is in flight at a
//! time, so that a later allocator or memory plan has its room there. *Inputs* are views of memory that the caller
//! filled, *outputs* go into [`OutputSlot`]s, into memory of the caller wherever the shapes are known beforehand
//! ([`Model::output_shapes`]).
//!
//! A backend may panic; the caller catches it, answers the batch with an error and replaces the instance. It must not
//! block on anything but its own computation.

mod check;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod file;
mod inspect;
mod memory;
mod onnx_file;
mod slot;

use std::{ffi::OsStr, num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

pub use check::{check_cpu, check_run};
pub use error::{BackendError, ErrorKind, panic_text};
pub use file::{COPIED_BYTES, ModelFile};
pub use inspect::{ConfiguredOutput, ConfiguredTensors, FileInterface, InspectRequest, Inspection};
pub use memory::RunMemory;
pub use onnx_file::{ONNX_FILES, OnnxReader};
use skep_cache::{Claim, FormKey, Found, Making};
use skep_config::ModelConfig;
use skep_tensor::{MemoryBudget, RunBound, TensorView};
use skep_types::{DeviceId, ModelSignature, Shape};
use skep_weights::{Baked, WeightSource, baking::FormPlan};
pub use slot::OutputSlot;

/// What a backend can do beyond the contract; users see it in `skep doctor`, callers choose their path by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Weights are used where [`ModelFile`] mapped them, not copied.
    pub weights_in_place: bool,
    /// Outputs of known shape are written into the caller's memory.
    pub prepared_outputs: bool,
    /// The datatypes of inputs and outputs that it serves.
    pub datatypes: &'static [skep_types::DataType],
}

/// What a model is loaded from and how.
#[derive(Debug, Clone)]
pub struct LoadRequest<'a> {
    /// The model's file.
    pub file: &'a ModelFile,
    /// The validated configuration: execution options, batch size, parameters.
    pub config: &'a ModelConfig,
    /// Threads that one run may use when the configuration does not say.
    pub threads: NonZeroUsize,
    /// Where weights are kept and shared; `None` loads the model for itself alone.
    pub weights: Option<&'a WeightSource>,
    /// The device that the model is loaded for.
    pub device: DeviceId,
    /// The node's memory for requests, which runs of the model are charged to; `None` where nobody counts.
    pub request_memory: Option<&'a Arc<MemoryBudget>>,
}

impl LoadRequest<'_> {
    /// What runs of the model may take.
    #[must_use]
    pub fn run_bound(&self) -> RunBound {
        RunBound {
            limit_bytes: self.config.run_limits().memory_bytes,
            budget: self.request_memory.cloned(),
        }
    }
}

/// A library that loads models.
pub trait Backend: Send + Sync {
    /// The name in a configuration's `backend` field.
    fn name(&self) -> &'static str;

    /// What it can do, and where its library came from, for people.
    fn describe(&self) -> String;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// The file of the library that it opened, for another process that opens the same; `None` where there is none.
    fn library(&self) -> Option<&Path> {
        None
    }

    /// Whether a variable of the environment is a setting of the backend's library: a process that loads models gets it.
    fn is_library_setting(&self, variable: &OsStr) -> bool {
        let _ = variable;
        false
    }

    /// The names that a model's file may have where its configuration names none, the first before the others. Empty for a
    /// backend that reads no file (`mock`): its models' inputs and outputs are those of the configuration.
    fn model_files(&self) -> &'static [&'static str] {
        &ONNX_FILES
    }

    /// Whether models are read from a file.
    fn needs_file(&self) -> bool {
        !self.model_files().is_empty()
    }

    /// Tells what a model's file declares. The runtime completes configurations by it and checks them against it, before it
    /// loads anything.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a file that is not a model, or not one of the configuration.
    fn inspect(&self, request: &InspectRequest<'_>) -> Result<Inspection, BackendError> {
        let untold_output = |output: &str| {
            format!(
                "the model's file declares no type of output `{output}`, and backend `{}` tells none that the protocol can carry: \
                 expected its `data_type` and `dims` in the configuration",
                self.name()
            )
        };
        let reader = OnnxReader {
            reads_ort: false,
            untold_output: &untold_output,
        };
        reader.inspect(request)
    }

    /// Loads the weights once.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] for a broken file, [`ErrorKind::Unsupported`] for one that this backend would not
    /// compute rightly.
    fn load(&self, request: &LoadRequest<'_>) -> Result<Arc<dyn Model>, BackendError>;

    /// Inputs and outputs of a model whose file does not declare all of them, or not in a way that others can read: what the
    /// runtime itself makes of it. There is no configuration yet. Reads the model as a load does, for a moment.
    ///
    /// # Errors
    /// As [`Backend::load`]; [`ErrorKind::Unsupported`] where the runtime does not tell.
    fn ask(&self, file: &ModelFile) -> Result<FileInterface, BackendError> {
        let text = format!(
            "backend `{}` does not tell inputs and outputs of `{}`",
            self.name(),
            file.path().display()
        );
        Err(BackendError::new(ErrorKind::Unsupported, text))
    }

    /// Why a run of the model could end the process that it takes place in, where that cannot be ruled out beforehand: the
    /// caller then gives its instances processes of their own, whatever the configuration says.
    fn needs_process(&self, request: &LoadRequest<'_>) -> Option<String> {
        let _ = request;
        None
    }

    /// What is left to be done for the form that later loads with the same request begin with. Reads the model's files where
    /// they are not remembered.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] for a broken file.
    fn plan_form(&self, request: &LoadRequest<'_>) -> Result<FormPlan, BackendError> {
        let _ = request;
        let why = format!("backend `{}` keeps no other form of it", self.name());
        Ok(FormPlan::WithoutForm(why))
    }

    /// Makes that form, or notes why there never is one, in a directory of its own, in this process. The request's weights
    /// are not asked.
    ///
    /// # Errors
    /// Why it could not be made this time.
    fn make_form(&self, request: &LoadRequest<'_>, making: Making) -> Result<(), BackendError> {
        let _ = (request, making);
        let text = format!("backend `{}` bakes no models", self.name());
        Err(BackendError::new(ErrorKind::Unsupported, text))
    }

    /// Publishes what [`Backend::make_form`] made, here or in another process that has ended.
    ///
    /// # Errors
    /// Why it is not published.
    fn publish_form(&self, request: &LoadRequest<'_>, claim: Claim) -> Result<Found, BackendError> {
        let _ = (request, claim);
        let text = format!("backend `{}` bakes no models", self.name());
        Err(BackendError::new(ErrorKind::Unsupported, text))
    }

    /// What the form is found by that a load with the same request begins with, whether or not it is in the cache yet; `None`
    /// where there is none for certain.
    fn form_key(&self, request: &LoadRequest<'_>) -> Option<FormKey> {
        let _ = request;
        None
    }

    /// Makes what a load with the same request would keep for later loads, without loading the model.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] for a broken file.
    fn bake(&self, request: &LoadRequest<'_>) -> Result<Baked, BackendError> {
        let _ = request;
        let why = format!("backend `{}` keeps no other form of it", self.name());
        Ok(Baked::WithoutForm(why))
    }
}

/// A loaded model: weights in memory, shared by its instances.
pub trait Model: Send + Sync {
    /// Inputs and outputs as the loaded model has them; a run's slices follow this order.
    fn signature(&self) -> &ModelSignature;

    /// The shapes of all outputs for inputs of these shapes, `None` where they are not known before the run or where
    /// the backend does not write into prepared memory.
    fn output_shapes(&self, inputs: &[&Shape]) -> Option<Vec<Shape>>;

    /// How many threads of this machine's CPU a run keeps busy: the caller starts no more runs than there are cores. None
    /// where the run takes place elsewhere.
    fn cpu_threads(&self) -> Option<NonZeroUsize>;

    /// Whether it runs on its baked form: then there is nothing left to bake.
    fn is_baked(&self) -> bool {
        false
    }

    /// Goes over to the model's baked form, which has been made meanwhile, without a break: runs in flight end as they began.
    /// `request` is the one that the model was loaded with. `false` where the next load does.
    ///
    /// # Errors
    /// Why it could not; the model runs on as it did.
    fn change_over(&self, request: &LoadRequest<'_>) -> Result<bool, BackendError> {
        let _ = request;
        Ok(false)
    }

    /// Whether an answer carries its request's parameters; the caller puts them there. For tests of clients.
    fn echoes_parameters(&self) -> bool {
        false
    }

    /// Makes one executable copy, which runs on `device`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a device that the model was not loaded for, [`ErrorKind::Internal`] when resources are
    /// short.
    fn instance(self: Arc<Self>, device: DeviceId) -> Result<Box<dyn Instance>, BackendError>;
}

/// Ends an instance's run from another thread.
pub trait Interrupt: Send + Sync {
    /// A run is about to begin: what was told before it does not concern it. Never at the same time as [`Interrupt::interrupt`].
    fn begin(&self);

    /// Makes the run that has begun end soon, with an error, however little of it has been done. Does not wait.
    fn interrupt(&self);
}

/// One executable copy of a model: runs one batch at a time, on the calling thread.
pub trait Instance: Send {
    /// Runs the model.
    ///
    /// `inputs`: one view for each input of the signature, in its order, of the signature's datatype and a shape that
    /// its dims accept. `outputs`: the wanted outputs; each slot is filled, in place where it was prepared.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for values that this model cannot take, [`ErrorKind::Exhausted`] for a run that needs
    /// more memory than it may take or than there is, [`ErrorKind::Internal`] for a failed run.
    fn execute(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<(), BackendError>;

    /// Whether it can run no further batch and has to be made again: what it ran in is known to have ended. Asked before
    /// each run and after a failed one.
    fn is_lost(&self) -> bool {
        false
    }

    /// What ends a run of it from another thread, where something can.
    fn interrupt(&self) -> Option<Arc<dyn Interrupt>> {
        None
    }

    /// CPU time that the last run took over all its threads; `None` where that was not measured. Callers divide it by the
    /// run's time to learn how many cores the model's runs keep busy.
    fn cpu_time(&self) -> Option<Duration> {
        None
    }

    /// What the intermediate tensors of its runs take, up to the last one; `None` where the backend cannot see them.
    fn memory(&self) -> Option<RunMemory> {
        None
    }
}
