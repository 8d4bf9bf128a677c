//! The interface of a backend.
//!
//! Three traits, from the library down to one executable copy:
//!
//! ```text
//! Backend   a library that can load models        one per process
//!   load()     -> Model      weights, shared      one per model version
//!   instance() -> Instance   everything private   one per thread: memory of its run, bindings, plan
//! ```
//!
//! *Weights* belong to the [`Model`] and are read-only; many instances run on one copy at once. They come from a
//! [`ModelFile`], whose bytes are a mapping that the caller owns: a backend with [`Capabilities::weights_in_place`]
//! uses them there. *Memory of a run* belongs to the [`Instance`], which executes one run at a time. *Inputs* are
//! views of memory that the caller filled. *Outputs* go into [`OutputSlot`]s, in memory of the caller if their shapes
//! are known before the run ([`Model::output_shapes`]).
//!
//! A backend may panic: the caller catches the panic, answers the batch with an error and replaces the instance. A
//! backend must not block on anything but its own computation.
//!
//! ```text
//! lib.rs          the traits and their requests
//! file.rs         a model's file, mapped or copied
//! inspect.rs      what a backend reports about a file before it loads the model
//! onnx_file.rs    the inspection of ONNX files, for all backends that read them
//! slot.rs         where a run's output goes
//! check.rs        checks of a run's inputs and outputs, for all backends
//! error.rs        failures
//! conformance/    a test suite for any backend
//! ```

mod check;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod file;
mod inspect;
mod onnx_file;
mod slot;

use std::{ffi::OsStr, num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

pub use check::{check_cpu, check_run};
pub use error::{BackendError, ErrorKind, panic_text};
pub use file::{COPIED_BYTES, ModelFile};
pub use inspect::{ConfiguredOutput, ConfiguredTensors, FileInterface, InspectRequest, Inspection};
pub use onnx_file::{ONNX_FILES, OnnxReader, unknown_output_text};
pub use skep_alloc::RunMemory;
use skep_cache::{Claim, FormKey, Found, Making};
use skep_config::ModelConfig;
use skep_store::Digest;
use skep_tensor::{MemoryBudget, RunBound, TensorView};
use skep_types::{CpuSet, DeviceId, ModelSignature, Shape};
use skep_weights::{Baked, WeightSource, baking::FormPlan};
pub use slot::OutputSlot;

/// What a backend can do beyond the contract. Callers choose their path by it, and `skep doctor` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The backend uses weights where [`ModelFile`] mapped them, without a copy.
    pub weights_in_place: bool,
    /// The backend writes outputs of known shape into the caller's memory.
    pub prepared_outputs: bool,
    /// The datatypes that it serves as inputs and outputs.
    pub datatypes: &'static [skep_types::DataType],
}

/// What a model is loaded from, and how.
#[derive(Debug, Clone)]
pub struct LoadRequest<'a> {
    /// The model's file.
    pub file: &'a ModelFile,
    /// The validated configuration: execution options, batch size, parameters.
    pub config: &'a ModelConfig,
    /// Threads that one run may use if the configuration does not say.
    pub threads: NonZeroUsize,
    /// Where weights are kept and shared; `None` loads the model without sharing.
    pub weights: Option<&'a WeightSource>,
    /// The device that the model is loaded for.
    pub device: DeviceId,
    /// The CPUs of the threads and processes that the load starts for the model's runs; `None` for those of this process.
    /// Instances run on the CPUs of the thread that makes them.
    pub cpus: Option<&'a CpuSet>,
    /// The node's memory for requests, to which runs of the model are charged; `None` if it is not counted.
    pub request_memory: Option<&'a Arc<MemoryBudget>>,
}

impl LoadRequest<'_> {
    /// The bound on the memory of the model's runs.
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

    /// A description for people: what it is, and where its library came from.
    fn describe(&self) -> String;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// The library file that it opened, so that another process can open the same one; `None` if there is no file.
    fn library(&self) -> Option<&Path> {
        None
    }

    /// Whether an environment variable is a setting of the backend's library. Processes that load models inherit those.
    fn is_library_setting(&self, variable: &OsStr) -> bool {
        let _ = variable;
        false
    }

    /// The names that a model's file may have if its configuration names none; earlier names take precedence. Empty
    /// for a backend that reads no file (`mock`), whose models get inputs and outputs from the configuration.
    fn model_files(&self) -> &'static [&'static str] {
        &ONNX_FILES
    }

    /// Whether models are read from a file.
    fn needs_file(&self) -> bool {
        !self.model_files().is_empty()
    }

    /// Reports what a model's file declares. The runtime completes configurations from it and checks them against it
    /// before it loads the model.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a file that is not a model, or that does not match the configuration.
    fn inspect(&self, request: &InspectRequest<'_>) -> Result<Inspection, BackendError> {
        let reader = OnnxReader {
            reads_ort: false,
            unknown_output_text: &|output| unknown_output_text(self.name(), output),
        };
        reader.inspect(request)
    }

    /// Loads the weights once.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] for a broken file, [`ErrorKind::Unsupported`] for a model that this backend would
    /// not compute correctly.
    fn load(&self, request: &LoadRequest<'_>) -> Result<Arc<dyn Model>, BackendError>;

    /// Asks the library for the inputs and outputs of a model whose file does not declare all of them, or has a
    /// format that only the library reads. There is no configuration yet. Loads the model for a moment.
    ///
    /// # Errors
    /// As [`Backend::load`]; [`ErrorKind::Unsupported`] if the library does not report them.
    fn ask(&self, file: &ModelFile) -> Result<FileInterface, BackendError> {
        let text = format!(
            "backend `{}` does not report the inputs and outputs of `{}`",
            self.name(),
            file.path().display()
        );
        Err(BackendError::new(ErrorKind::Unsupported, text))
    }

    /// Why a run of the model could end its process, if that cannot be ruled out. The caller then runs each instance
    /// in a worker process, whatever the configuration says.
    fn needs_process(&self, request: &LoadRequest<'_>) -> Option<String> {
        let _ = request;
        None
    }

    /// What the form for later loads with the same request still needs. Reads the model's files if the cache does not
    /// remember their content.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] for a broken file.
    fn plan_form(&self, request: &LoadRequest<'_>) -> Result<FormPlan, BackendError> {
        let _ = request;
        let why = format!("backend `{}` bakes no models", self.name());
        Ok(FormPlan::WithoutForm(why))
    }

    /// Makes that form in a separate directory, in this process, or notes there why the model cannot have one. Does
    /// not use the request's weights.
    ///
    /// # Errors
    /// Why it could not be made this time.
    fn make_form(&self, request: &LoadRequest<'_>, making: Making) -> Result<(), BackendError> {
        let _ = (request, making);
        let text = format!("backend `{}` bakes no models", self.name());
        Err(BackendError::new(ErrorKind::Unsupported, text))
    }

    /// Publishes the form that [`Backend::make_form`] made in this process, or in another process that has ended.
    ///
    /// # Errors
    /// Why it is not published.
    fn publish_form(&self, request: &LoadRequest<'_>, claim: Claim) -> Result<Found, BackendError> {
        let _ = (request, claim);
        let text = format!("backend `{}` bakes no models", self.name());
        Err(BackendError::new(ErrorKind::Unsupported, text))
    }

    /// The key of the form for a load with the same request, whether or not the form is in the cache; `None` if there
    /// is certainly no form.
    fn form_key(&self, request: &LoadRequest<'_>) -> Option<FormKey> {
        let _ = request;
        None
    }

    /// Makes the form that a load with the same request would make, without loading the model.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] for a broken file.
    fn bake(&self, request: &LoadRequest<'_>) -> Result<Baked, BackendError> {
        let _ = request;
        let why = format!("backend `{}` bakes no models", self.name());
        Ok(Baked::WithoutForm(why))
    }
}

/// A loaded model: weights in memory, shared by its instances.
pub trait Model: Send + Sync {
    /// The loaded model's inputs and outputs; a run's slices follow this order.
    fn signature(&self) -> &ModelSignature;

    /// The shapes of all outputs for inputs of these shapes; `None` if they are not known before the run, or if the
    /// backend does not write into prepared memory.
    fn output_shapes(&self, inputs: &[&Shape]) -> Option<Vec<Shape>>;

    /// How many CPU threads of this machine a run keeps busy; the caller starts no more runs than there are cores.
    /// `None` if runs take place elsewhere.
    fn cpu_threads(&self) -> Option<NonZeroUsize>;

    /// Whether its runs use threads or processes that are bound to the CPUs of its load. Instances on other CPUs then need
    /// a load of their own.
    fn is_bound_by_load(&self) -> bool {
        false
    }

    /// Whether it runs on its baked form, so that there is nothing left to bake.
    fn is_baked(&self) -> bool {
        false
    }

    /// The tensors that its runs use in place and that other models may use too, by their digests in the tensor store, each
    /// with its bytes. Empty if it shares none.
    fn stored_tensors(&self) -> Vec<(Digest, u64)> {
        Vec::new()
    }

    /// Switches to the model's baked form without a pause; runs in flight finish on the old weights. `request` is the
    /// one that the model was loaded with. Returns `false` if only the next load can use the form.
    ///
    /// # Errors
    /// Why it could not switch; the model runs unchanged.
    fn switch_to_form(&self, request: &LoadRequest<'_>) -> Result<bool, BackendError> {
        let _ = request;
        Ok(false)
    }

    /// Whether responses carry their request's parameters, which the caller copies. For tests of clients.
    fn echoes_parameters(&self) -> bool {
        false
    }

    /// Makes one executable copy, which runs on `device`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a device that the model was not loaded for, [`ErrorKind::Internal`] if
    /// resources run out.
    fn instance(self: Arc<Self>, device: DeviceId) -> Result<Box<dyn Instance>, BackendError>;
}

/// Ends an instance's run from another thread.
pub trait Interrupt: Send + Sync {
    /// Announces a run: earlier interrupts do not apply to it. Never called at the same time as
    /// [`Interrupt::interrupt`].
    fn begin(&self);

    /// Makes the current run end soon, with an error. Does not wait.
    fn interrupt(&self);
}

/// One executable copy of a model: runs one batch at a time, on the calling thread.
pub trait Instance: Send {
    /// Runs the model.
    ///
    /// `inputs`: one view for each input of the signature, in its order, of the signature's datatype and a shape that
    /// its dims accept. `outputs`: the wanted outputs; the run fills each slot, in prepared memory if the slot has
    /// some.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for values that this model cannot take, [`ErrorKind::Exhausted`] for a run that
    /// needs more memory than it may take or than there is, [`ErrorKind::Internal`] for a failed run.
    fn execute(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<(), BackendError>;

    /// Whether it cannot run again, because the process that it ran in has ended; the caller then replaces it. Asked
    /// before each run and after a failed one.
    fn is_lost(&self) -> bool {
        false
    }

    /// A handle that ends its run from another thread, if the backend supports that.
    fn interrupt(&self) -> Option<Arc<dyn Interrupt>> {
        None
    }

    /// CPU time of the last run over all its threads; `None` if it was not measured. Callers divide it by the run's
    /// time to learn how many cores the model's runs keep busy.
    fn cpu_time(&self) -> Option<Duration> {
        None
    }

    /// Figures about the intermediate tensors of its runs so far; `None` if the backend cannot see them.
    fn memory(&self) -> Option<RunMemory> {
        None
    }
}
