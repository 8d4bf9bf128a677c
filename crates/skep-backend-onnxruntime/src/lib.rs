//! The ONNX Runtime backend.
//!
//! The library is not part of the build: [`OnnxRuntime::start`] looks for it in the places of a [`LibrarySearch`],
//! opens it and creates the process's one environment; a [`SearchReport`] says what was found where. A library that
//! is missing, too old or something else is an error with a remedy, never a panic. The library's log goes to
//! `tracing`, target `onnxruntime`.
//!
//! ```text
//! LibrarySearch -> candidates -> Library -> OrtRuntime (one per process, never closed)
//!                                           |
//!                            OnnxRuntime ---+-- load -> OrtModel (one session) -- instance -> OrtInstance (many)
//!
//! find.rs, open.rs  where the library may be; opening the one that is used
//! ffi/              the C API: the only `unsafe` code of the crate
//! options.rs        a configuration's execution options as session options
//! model.rs          a loaded model, its instances, a run
//! planning.rs       which runs share a plan, and how long planning may take
//! sessions.rs       sessions that models share, kept for a while after an unload
//! bake.rs           makes the baked form of a model
//! trial.rs          compares the baked form's outputs with the model's
//! baked.rs          a session from a baked form
//! machine.rs        the properties of the machine that baked forms depend on
//! telemetry.rs      switches the library's telemetry off
//! error.rs          the library's failures as backend errors
//! ```
//!
//! A run copies strings only. Inputs are bound in the caller's memory. Outputs are written into prepared memory if
//! their shapes follow from the file's declarations; otherwise they are shared from the library's memory.
//! Declarations can be wrong: the first run that shows this runs again without prepared memory, and the model's later
//! runs do without it.

mod bake;
mod baked;
mod error;
mod ffi;
mod find;
mod machine;
mod model;
mod open;
mod options;
mod planning;
mod sessions;
mod telemetry;
mod trial;

use std::{
    collections::BTreeSet,
    ffi::{CString, OsStr},
    num::NonZeroUsize,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

pub use find::{LIBRARY_VARIABLE, LibraryOrigin, LibrarySearch};
pub use machine::channel_block;
pub use open::{FindError, SearchFinding, SearchReport, SearchedPlace};
pub use sessions::give_up_kept_sessions;
use skep_alloc::{InvalidAllocator, Recording};
use skep_backend::{
    Backend, BackendError, Capabilities, ErrorKind, FileInterface, InspectRequest, Inspection,
    LoadRequest, Model, ModelFile, OnnxReader, check_cpu, unknown_output_text,
};
use skep_cache::{Claim, FormKey, Found, Making};
use skep_config::{ExecutionOptions, GraphOptimization, ModelConfig};
use skep_onnx::{OnnxModel, ShapeRules, is_ort};
use skep_tensor::RunBound;
use skep_types::{DataType, ModelSignature, Shape, TensorSpec};
use skep_weights::{
    Baked, WeightSource,
    baking::{self, FormFailure, FormPlan},
    moves::{self, WeightMove},
};
pub use telemetry::switch_off_telemetry;

use crate::{
    bake::OrtModelFile,
    ffi::{ApiError, OrtRuntime, Session, SessionOptions},
    model::OrtModel,
    options::{SessionSettings, behind_runs},
    sessions::{CurrentSession, SessionIdentity, SharedSession},
};

/// The backend's name in configurations.
pub const NAME: &str = "onnxruntime";

/// ONNX Runtime, started.
#[derive(Debug, Clone, Copy)]
pub struct OnnxRuntime {
    runtime: &'static OrtRuntime,
}

impl OnnxRuntime {
    /// Finds the library and starts it. A process uses one library: a second call returns the same one, or fails if
    /// it would find another.
    ///
    /// # Errors
    /// [`FindError`], which says what was found where and what to install.
    pub fn start(search: &LibrarySearch) -> Result<(Self, SearchReport), FindError> {
        let (runtime, report) = open::start(search)?;
        Ok((Self { runtime }, report))
    }

    /// The library's version.
    #[must_use]
    pub fn version(&self) -> &str {
        self.runtime.version()
    }

    /// The library's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.runtime.path()
    }
}

impl Backend for OnnxRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn describe(&self) -> String {
        format!(
            "ONNX Runtime {} from `{}`",
            self.version(),
            self.path().display()
        )
    }

    fn library(&self) -> Option<&Path> {
        // The dynamic loader found a bare name, and finds it again in another process.
        Some(self.path()).filter(|path| path.components().nth(1).is_some())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            weights_in_place: true,
            prepared_outputs: true,
            datatypes: &DataType::ALL,
        }
    }

    fn is_library_setting(&self, variable: &OsStr) -> bool {
        machine::is_setting(variable)
    }

    fn inspect(&self, request: &InspectRequest<'_>) -> Result<Inspection, BackendError> {
        let reader = OnnxReader {
            reads_ort: true,
            unknown_output_text: &|output| unknown_output_text(NAME, output),
        };
        reader.inspect(request)
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<Arc<dyn Model>, BackendError> {
        let LoadRequest {
            file,
            config,
            threads,
            weights,
            device,
            cpus,
            ..
        } = *request;
        check_cpu(NAME, device)?;
        let setting = SessionSettings {
            execution: config.execution(),
            threads,
            cpus,
        };
        let mut model = self.open(file, Some(config), setting, weights)?;
        model.bound = request.run_bound();
        Ok(Arc::new(model))
    }

    fn ask(&self, file: &ModelFile) -> Result<FileInterface, BackendError> {
        let failed = |error| error::load(file.path(), error);
        let execution = ExecutionOptions {
            graph_optimization: GraphOptimization::Disable,
            ..ExecutionOptions::default()
        };
        let setting = SessionSettings {
            execution: &execution,
            threads: NonZeroUsize::MIN,
            cpus: None,
        };
        let mut options = options::session_options(self.runtime, &setting).map_err(failed)?;
        // The session never runs, so weights need not be packed.
        options
            .entry(c"session.disable_prepacking", c"1")
            .map_err(failed)?;
        let session = self.plain(file, &setting, options).map_err(failed)?;
        session.interface().map_err(failed)
    }

    fn plan_form(&self, request: &LoadRequest<'_>) -> Result<FormPlan, BackendError> {
        let Some(weights) = request.weights else {
            return Ok(FormPlan::WithoutForm("the weight cache is off".to_owned()));
        };
        if is_ort(request.file.bytes()) {
            return Ok(FormPlan::WithoutForm(OWN_FORMAT.to_owned()));
        }
        let onnx = decode(request.file)?;
        let planned = baking::plan(&OrtModelFile::of(*self, request, &onnx), weights);
        planned.map_err(|why| invalid(request.file.path(), &why))
    }

    fn make_form(&self, request: &LoadRequest<'_>, making: Making) -> Result<(), BackendError> {
        let onnx = decode(request.file)?;
        Ok(baking::make_form(
            &OrtModelFile::of(*self, request, &onnx),
            making,
        )?)
    }

    fn publish_form(&self, request: &LoadRequest<'_>, claim: Claim) -> Result<Found, BackendError> {
        let Some(weights) = request.weights else {
            return Ok(Found::Nothing);
        };
        let onnx = decode(request.file)?;
        let published = baking::publish(&OrtModelFile::of(*self, request, &onnx), claim, weights);
        published.map_err(|why| BackendError::new(ErrorKind::Unavailable, why))
    }

    fn form_key(&self, request: &LoadRequest<'_>) -> Option<FormKey> {
        let (weights, onnx) = request.weights.zip(decode(request.file).ok())?;
        baking::form_key(&OrtModelFile::of(*self, request, &onnx), weights)
    }

    fn bake(&self, request: &LoadRequest<'_>) -> Result<Baked, BackendError> {
        let Some(weights) = request.weights else {
            return Ok(Baked::WithoutForm("the weight cache is off".to_owned()));
        };
        if is_ort(request.file.bytes()) {
            return Ok(Baked::WithoutForm(OWN_FORMAT.to_owned()));
        }
        let onnx = decode(request.file)?;
        let subject = OrtModelFile::of(*self, request, &onnx);
        Ok(baking::bake(&subject, weights)?)
    }
}

impl OnnxRuntime {
    /// Records what one run on one thread allocates for its intermediate tensors, with inputs of these shapes that
    /// are all zero. `inputs` follows the order of the model's signature.
    ///
    /// # Errors
    /// Errors of loading the model and of a run with such inputs.
    pub fn record(&self, file: &ModelFile, inputs: &[Shape]) -> Result<Recording, BackendError> {
        let setting = SessionSettings {
            execution: &ExecutionOptions::default(),
            threads: NonZeroUsize::MIN,
            cpus: None,
        };
        let mut model = self.open(file, None, setting, None)?;
        model.plans = None;
        model.record(inputs)
    }

    /// Loads a model for this configuration, or without one from what its file declares. With `weights`, loads it
    /// from its baked form if it can.
    fn open(
        &self,
        file: &ModelFile,
        config: Option<&ModelConfig>,
        setting: SessionSettings<'_>,
        weights: Option<&WeightSource>,
    ) -> Result<OrtModel, BackendError> {
        let path = file.path();
        if is_ort(file.bytes()) {
            return self.open_own_format(file, setting);
        }
        let onnx = decode(file)?;
        let subject = OrtModelFile {
            backend: *self,
            path,
            bytes: file.bytes(),
            onnx: &onnx,
            setting,
        };
        let baked = weights.and_then(|weights| self.open_baked(&subject, weights));
        let is_baked = baked.is_some();
        let session = match baked {
            Some((session, left)) => {
                left.into_iter().for_each(moves::bring);
                session
            }
            None => {
                let load = |e| error::load(path, e);
                let options = options::session_options(self.runtime, &setting).map_err(load)?;
                SharedSession::alone(self.plain(file, &setting, options).map_err(load)?)
            }
        };
        let mut model = self.model(&subject, config, session)?;
        model.is_baked = is_baked.into();
        Ok(model)
    }

    /// A session of a model's own file.
    fn plain(
        &self,
        file: &ModelFile,
        setting: &SessionSettings<'_>,
        mut options: SessionOptions,
    ) -> Result<Session, ApiError> {
        if is_ort(file.bytes()) {
            options.own_format()?;
        }
        behind_runs(setting, || {
            Session::from_file(self.runtime, file.path(), &options)
        })
    }

    /// Loads a model in the library's own format, which only the library can read.
    fn open_own_format(
        &self,
        file: &ModelFile,
        setting: SessionSettings<'_>,
    ) -> Result<OrtModel, BackendError> {
        let failed = |error| error::load(file.path(), error);
        let options = options::session_options(self.runtime, &setting).map_err(failed)?;
        let session = self.plain(file, &setting, options).map_err(failed)?;
        let mut signature = session.signature().map_err(failed)?;
        for output in &mut signature.outputs {
            // This may be an output of unknown rank.
            output.dims.take_if(|dims| dims.rank() == 0);
        }
        self.with_signature(
            file.path(),
            signature,
            SharedSession::alone(session),
            &setting,
        )
    }

    /// The session of a model's baked form, and the weights to move to the store; `None` if the model has to be
    /// loaded from its own file.
    fn open_baked(
        &self,
        subject: &OrtModelFile<'_>,
        weights: &WeightSource,
    ) -> Option<(SharedSession, Option<WeightMove>)> {
        let OrtModelFile { path, setting, .. } = *subject;
        baking::load(subject, weights, |form| {
            let identity = SessionIdentity::new(*form.key(), weights, &setting);
            let mut left = None;
            let make = || {
                let (session, moved) = baked::session(self.runtime, path, form, weights, &setting)?;
                left = moved;
                Ok::<_, FormFailure>(session)
            };
            let session = SharedSession::of(identity, weights.keep_unloaded, make)?;
            Ok((session.with_tensors(form), left))
        })
    }

    /// The same for the model of a load request.
    fn baked_session(
        &self,
        request: &LoadRequest<'_>,
    ) -> Result<Option<(SharedSession, Option<WeightMove>)>, BackendError> {
        let Some(weights) = request.weights else {
            return Ok(None);
        };
        let onnx = decode(request.file)?;
        Ok(self.open_baked(&OrtModelFile::of(*self, request, &onnx), weights))
    }

    /// A model with the signature of its file; the session describes outputs that the file does not declare. Requests
    /// supply inputs that have a default only if the configuration names them; otherwise the library uses the
    /// default. Undeclared outputs that the configuration does not name are not served.
    fn model(
        &self,
        subject: &OrtModelFile<'_>,
        config: Option<&ModelConfig>,
        session: SharedSession,
    ) -> Result<OrtModel, BackendError> {
        let OrtModelFile { path, onnx, .. } = *subject;
        let is_declared = onnx.undeclared_outputs().next().is_none();
        let reported = match is_declared {
            true => ModelSignature::default(),
            false => {
                let reported = session.session().signature();
                reported.map_err(|error| error::load(path, error))?
            }
        };
        if let Some(config) = config {
            check_undeclared(onnx, config, &reported).map_err(|why| invalid(path, &why))?;
        }
        let known = |name: &str| {
            let spec = reported.output(name)?;
            match config {
                None => Some(spec.clone()),
                // The configuration alone determines its dims.
                Some(config) => config.output(name).map(|_| TensorSpec {
                    dims: None,
                    ..spec.clone()
                }),
            }
        };
        let named = config.map(|config| config.fed_inputs().collect());
        let named: Vec<&str> = named.unwrap_or_default();
        let signature = onnx
            .signature_with(named, &known)
            .map_err(|error| invalid(path, &error.to_string()))?;
        let shapes = ShapeRules::of(onnx).filter(|_| every_output_is_computed(onnx));
        let mut model = self.with_signature(path, signature, session, &subject.setting)?;
        model.shapes = shapes;
        Ok(model)
    }

    /// A model with these inputs and outputs.
    fn with_signature(
        &self,
        path: &Path,
        signature: ModelSignature,
        session: SharedSession,
        setting: &SessionSettings<'_>,
    ) -> Result<OrtModel, BackendError> {
        let SessionSettings {
            execution, threads, ..
        } = *setting;
        let input_names = tensor_names(path, &signature.inputs)?;
        let output_names = tensor_names(path, &signature.outputs)?;
        Ok(OrtModel {
            backend: *self,
            session: CurrentSession::new(session),
            is_baked: AtomicBool::new(false),
            shrinks_arena: options::shrinks_arena(execution),
            signature,
            input_names,
            output_names,
            shapes: None,
            plans: planning::plans(execution, self.runtime.arenas()).map_err(invalid_allocator)?,
            threads: options::busy_threads(execution, threads),
            starts_threads: setting.starts_threads(),
            bound: RunBound::default(),
            shapes_lie: AtomicBool::new(false),
        })
    }
}

/// The error for an allocator that a configuration names in vain.
fn invalid_allocator(error: InvalidAllocator) -> BackendError {
    BackendError::new(
        ErrorKind::InvalidArgument,
        format!("`parameters.allocator`: {error}"),
    )
}

/// Why models in the library's own format have no baked form.
const OWN_FORMAT: &str = "it is in ONNX Runtime's own format";

/// Checks the configuration's outputs that the file does not declare against the session's.
fn check_undeclared(
    onnx: &OnnxModel,
    config: &ModelConfig,
    reported: &ModelSignature,
) -> Result<(), String> {
    for name in onnx.undeclared_outputs() {
        let Some(output) = config.output(name) else {
            continue;
        };
        match reported.output(name) {
            Some(spec) => config.check_reported_output(spec)?,
            None => {
                return Err(format!(
                    "output `{name}` is not a tensor with a datatype of the protocol, the configuration says {}",
                    output.datatype.config_name()
                ));
            }
        }
    }
    Ok(())
}

fn decode(file: &ModelFile) -> Result<Arc<OnnxModel>, BackendError> {
    file.onnx()
        .map_err(|error| invalid(file.path(), &error.to_string()))
}

/// The names of tensors as the library takes them.
fn tensor_names(path: &Path, specs: &[TensorSpec]) -> Result<Vec<CString>, BackendError> {
    let names = specs.iter().map(|spec| CString::new(spec.name.as_str()));
    let names: Result<_, _> = names.collect();
    names.map_err(|_| invalid(path, "a tensor's name contains a zero byte"))
}

/// The error for a file that is not a model.
fn invalid(path: &Path, reason: &str) -> BackendError {
    let message = format!("cannot load `{}`: {reason}", path.display());
    BackendError::new(ErrorKind::InvalidModel, message)
}

/// Whether a node computes every output. The library would not write an output that is an input, an initializer or a
/// constant into prepared memory.
fn every_output_is_computed(onnx: &OnnxModel) -> bool {
    let graph = onnx.graph();
    let nodes = graph
        .node
        .iter()
        .filter(|node| node.op_type() != "Constant");
    let computed: BTreeSet<&str> = nodes.flat_map(|n| &n.output).map(String::as_str).collect();
    graph
        .output
        .iter()
        .all(|output| computed.contains(output.name()))
}
