//! The ONNX Runtime backend.
//!
//! The library is no part of the build: [`OnnxRuntime::start`] looks for it ([`Search`] says where), opens it and makes
//! the process's one environment; [`Report`] says what was found where. A library that is missing, too old or something
//! else is an error with a remedy, never a panic. The library's log goes to `tracing`, target `onnxruntime`.
//!
//! ```text
//! Search -> candidates -> Library -> Runtime (one a process, never closed)
//!                                      |
//!                        OnnxRuntime --+-- load -> OrtModel (one session) -- instance -> OrtInstance, many at once
//! ```
//!
//! A run copies nothing but strings: inputs are bound where the caller has them, outputs are written into prepared
//! memory where their shapes follow from the file's declarations, and are shared out of the library's memory where they
//! do not. Declarations can lie; the first run that shows it falls back, and the model is remembered as one that does.

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

pub use find::{LIBRARY_VARIABLE, Origin, Search};
pub use machine::channel_block;
pub use open::{FindError, Finding, Report, SearchedPlace};
pub use planning::buffer;
pub use sessions::give_up_kept_sessions;
use skep_alloc::Recording;
use skep_backend::{
    Backend, BackendError, Capabilities, ErrorKind, FileInterface, InspectRequest, Inspection,
    LoadRequest, Model, ModelFile, OnnxReader, check_cpu,
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
    bake::Subject,
    ffi::{ApiError, Runtime, Session, SessionOptions},
    model::OrtModel,
    options::Setting,
    planning::Plans,
    sessions::{Current, Identity, SharedSession},
};

/// The backend's name in configurations.
pub const NAME: &str = "onnxruntime";

/// ONNX Runtime, started.
#[derive(Debug, Clone, Copy)]
pub struct OnnxRuntime {
    runtime: &'static Runtime,
}

impl OnnxRuntime {
    /// Finds the library and starts it. A process uses one library: a second call gives the same, or fails if it would
    /// find another.
    ///
    /// # Errors
    /// [`FindError`], which says what was found where and what to install.
    pub fn start(search: &Search) -> Result<(Self, Report), FindError> {
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
        // A bare name was found by the dynamic loader, which finds it again.
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
        let untold_output = |output: &str| {
            format!(
                "the model's file declares no type of output `{output}`, and backend `{NAME}` tells none that the protocol can \
                 carry: expected its `data_type` and `dims` in the configuration"
            )
        };
        let reader = OnnxReader {
            reads_ort: true,
            untold_output: &untold_output,
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
            ..
        } = *request;
        check_cpu(NAME, device)?;
        let setting = Setting {
            execution: config.execution(),
            threads,
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
        let setting = Setting {
            execution: &execution,
            threads: NonZeroUsize::MIN,
        };
        let mut options = options::session_options(self.runtime, &setting).map_err(failed)?;
        // Nothing runs: weights need not be packed.
        options
            .entry(c"session.disable_prepacking", c"1")
            .map_err(failed)?;
        let session = self.plain(file, options).map_err(failed)?;
        session.interface().map_err(failed)
    }

    fn plan_form(&self, request: &LoadRequest<'_>) -> Result<FormPlan, BackendError> {
        let Some(weights) = request.weights else {
            return Ok(FormPlan::WithoutForm("there is no cache".to_owned()));
        };
        if is_ort(request.file.bytes()) {
            return Ok(FormPlan::WithoutForm(OWN_FORMAT.to_owned()));
        }
        let onnx = decode(request.file)?;
        let planned = baking::plan(&Subject::of(*self, request, &onnx), weights);
        planned.map_err(|why| invalid(request.file.path(), &why))
    }

    fn make_form(&self, request: &LoadRequest<'_>, making: Making) -> Result<(), BackendError> {
        let onnx = decode(request.file)?;
        Ok(baking::make_form(
            &Subject::of(*self, request, &onnx),
            making,
        )?)
    }

    fn publish_form(&self, request: &LoadRequest<'_>, claim: Claim) -> Result<Found, BackendError> {
        let Some(weights) = request.weights else {
            return Ok(Found::Nothing);
        };
        let onnx = decode(request.file)?;
        let published = baking::publish(&Subject::of(*self, request, &onnx), claim, weights);
        published.map_err(|why| BackendError::new(ErrorKind::Unavailable, why))
    }

    fn form_key(&self, request: &LoadRequest<'_>) -> Option<FormKey> {
        let (weights, onnx) = request.weights.zip(decode(request.file).ok())?;
        baking::form_key(&Subject::of(*self, request, &onnx), weights)
    }

    fn bake(&self, request: &LoadRequest<'_>) -> Result<Baked, BackendError> {
        let Some(weights) = request.weights else {
            return Ok(Baked::WithoutForm("there is no cache".to_owned()));
        };
        if is_ort(request.file.bytes()) {
            return Ok(Baked::WithoutForm(OWN_FORMAT.to_owned()));
        }
        let onnx = decode(request.file)?;
        let subject = Subject::of(*self, request, &onnx);
        Ok(baking::bake(&subject, weights)?)
    }
}

impl OnnxRuntime {
    /// What one run on one thread with inputs of these shapes, all zero, allocates for its intermediate tensors: what a
    /// planned arena is planned by. `inputs` in the order of the model's signature.
    ///
    /// # Errors
    /// Those of loading the model and of a run with such inputs.
    pub fn record(&self, file: &ModelFile, inputs: &[Shape]) -> Result<Recording, BackendError> {
        let setting = Setting {
            execution: &ExecutionOptions::default(),
            threads: NonZeroUsize::MIN,
        };
        let mut model = self.open(file, None, setting, None)?;
        model.plans = None;
        model.record(inputs)
    }

    /// Loads a model for this configuration, or for whatever its file says alone; of its baked form where weights are shared.
    fn open(
        &self,
        file: &ModelFile,
        config: Option<&ModelConfig>,
        setting: Setting<'_>,
        weights: Option<&WeightSource>,
    ) -> Result<OrtModel, BackendError> {
        let path = file.path();
        if is_ort(file.bytes()) {
            return self.open_own_format(file, setting);
        }
        let onnx = decode(file)?;
        let subject = Subject {
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
                SharedSession::alone(self.plain(file, options).map_err(load)?)
            }
        };
        let mut model = self.model(&subject, config, session)?;
        model.is_baked = is_baked.into();
        Ok(model)
    }

    /// A session of a model as its file is.
    fn plain(&self, file: &ModelFile, mut options: SessionOptions) -> Result<Session, ApiError> {
        if is_ort(file.bytes()) {
            options.own_format()?;
        }
        Session::from_file(self.runtime, file.path(), &options)
    }

    /// Loads a model in the library's own format, which alone can read it.
    fn open_own_format(
        &self,
        file: &ModelFile,
        setting: Setting<'_>,
    ) -> Result<OrtModel, BackendError> {
        let failed = |error| error::load(file.path(), error);
        let options = options::session_options(self.runtime, &setting).map_err(failed)?;
        let session = self.plain(file, options).map_err(failed)?;
        let mut signature = session.signature().map_err(failed)?;
        for output in &mut signature.outputs {
            // Perhaps of unknown rank.
            output.dims.take_if(|dims| dims.rank() == 0);
        }
        self.with_signature(
            file.path(),
            signature,
            SharedSession::alone(session),
            &setting,
        )
    }

    /// The session of a model's baked form, and what of its weights is to be brought to the store; `None` where it is loaded
    /// as it is.
    fn open_baked(
        &self,
        subject: &Subject<'_>,
        weights: &WeightSource,
    ) -> Option<(SharedSession, Option<WeightMove>)> {
        let Subject { path, setting, .. } = *subject;
        baking::load(subject, weights, |form| {
            let identity = Identity::new(*form.key(), weights, &setting);
            let mut left = None;
            let make = || {
                let (session, moved) = baked::session(self.runtime, path, form, weights, &setting)?;
                left = moved;
                Ok::<_, FormFailure>(session)
            };
            let session = SharedSession::of(identity, weights.keep_unloaded, make)?;
            Ok((session, left))
        })
    }

    /// The same for a model that was loaded with this request.
    fn baked_session(
        &self,
        request: &LoadRequest<'_>,
    ) -> Result<Option<(SharedSession, Option<WeightMove>)>, BackendError> {
        let Some(weights) = request.weights else {
            return Ok(None);
        };
        let onnx = decode(request.file)?;
        Ok(self.open_baked(&Subject::of(*self, request, &onnx), weights))
    }

    /// A session with what the file says of the model, and the session where that does not declare an output. Inputs that
    /// have a default are fed if the configuration names them, and left to the library otherwise. Undeclared outputs that the
    /// configuration does not name are not served.
    fn model(
        &self,
        subject: &Subject<'_>,
        config: Option<&ModelConfig>,
        session: SharedSession,
    ) -> Result<OrtModel, BackendError> {
        let Subject { path, onnx, .. } = *subject;
        let is_told = onnx.undeclared_outputs().next().is_none();
        let told = match is_told {
            true => ModelSignature::default(),
            false => {
                let told = session.session().signature();
                told.map_err(|error| error::load(path, error))?
            }
        };
        if let Some(config) = config {
            undeclared(onnx, config, &told).map_err(|why| invalid(path, &why))?;
        }
        let known = |name: &str| {
            let spec = told.output(name)?;
            match config {
                None => Some(spec.clone()),
                // Its dims are the configuration's to say.
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

    /// A model of these inputs and outputs.
    fn with_signature(
        &self,
        path: &Path,
        signature: ModelSignature,
        session: SharedSession,
        setting: &Setting<'_>,
    ) -> Result<OrtModel, BackendError> {
        let Setting { execution, threads } = *setting;
        let names = |specs: &[TensorSpec]| -> Result<Vec<CString>, BackendError> {
            let name = |spec: &TensorSpec| CString::new(spec.name.as_str());
            let names: Result<_, _> = specs.iter().map(name).collect();
            names.map_err(|_| invalid(path, "a tensor's name holds a zero byte"))
        };
        let (input_names, output_names) = (names(&signature.inputs)?, names(&signature.outputs)?);
        Ok(OrtModel {
            backend: *self,
            session: Current::new(session),
            is_baked: AtomicBool::new(false),
            shrinks_arena: options::shrinks_arena(execution),
            signature,
            input_names,
            output_names,
            shapes: None,
            plans: Plans::new(execution.memory_planner, self.runtime.arenas()),
            threads: options::busy_threads(execution, threads),
            bound: RunBound::default(),
            shapes_lie: AtomicBool::new(false),
        })
    }
}

/// Why models in the library's own format have no other one.
const OWN_FORMAT: &str = "it is in ONNX Runtime's own format";

/// Holds what the configuration says of outputs that the file does not declare against what the session says.
fn undeclared(onnx: &OnnxModel, config: &ModelConfig, told: &ModelSignature) -> Result<(), String> {
    for name in onnx.undeclared_outputs() {
        let Some(output) = config.output(name) else {
            continue;
        };
        match told.output(name) {
            Some(spec) => config.check_reported_output(spec)?,
            None => {
                return Err(format!(
                    "output `{name}` is not a tensor that the protocol can carry, the configuration says {}",
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

/// A file that is no model.
fn invalid(path: &Path, reason: &str) -> BackendError {
    let message = format!("cannot load `{}`: {reason}", path.display());
    BackendError::new(ErrorKind::InvalidModel, message)
}

/// Whether no output is an input, an initializer or a constant as it is: such an output would not be written into
/// prepared memory.
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
