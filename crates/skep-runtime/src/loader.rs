//! From a model's directory to versions that are ready for requests.

use std::{
    collections::BTreeMap,
    fs, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use skep_backend::{Backend, LoadRequest, Model, ModelFile};
use skep_config::{BackendSetting, Completion, Context, ModelConfig};
use skep_onnx::OnnxModel;
use skep_proto::inference;
use skep_scheduler::InstanceId;
use skep_types::{ModelName, ModelSignature, ModelVersion};

use crate::{
    RuntimeError,
    backends::{Backends, Choice},
    driver::Driver,
    instance::Worker,
    labels,
    recorder::Statistics,
    recording::{MetricsOptions, Recording},
    repository::{self, CONFIG_FILE},
    version::{Interface, LoadedVersion},
    warmup,
};

/// The model's file when the configuration names none.
const DEFAULT_MODEL_FILE: &str = "model.onnx";

/// Triton's default of `--backend-config=default-max-batch-size`.
const DEFAULT_MAX_BATCH_SIZE: u32 = 4;

/// What holds for every load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Whether a missing or partial configuration is completed from the model's file.
    pub auto_complete: bool,
    /// `--backend-config` settings, in the order given.
    pub backend_settings: Vec<BackendSetting>,
    /// Processor cores that this process may use.
    pub cores: NonZeroUsize,
    /// What is recorded of requests.
    pub metrics: MetricsOptions,
}

impl LoadOptions {
    /// The `max_batch_size` for a completed model; a setting for its backend goes before one for all.
    fn default_max_batch_size(&self, name: &str) -> u32 {
        let of = |wanted: Option<&str>| {
            self.backend_settings
                .iter()
                .rev()
                .find_map(|setting| match setting {
                    BackendSetting::DefaultMaxBatchSize { backend, size }
                        if backend.as_deref() == wanted =>
                    {
                        Some(*size)
                    }
                    _ => None,
                })
        };
        of(Some(name))
            .or_else(|| of(None))
            .unwrap_or(DEFAULT_MAX_BATCH_SIZE)
    }

    fn context<'a>(&self, model: &'a ModelName) -> Context<'a> {
        let mut context = Context::new(model);
        for setting in &self.backend_settings {
            match setting {
                BackendSetting::IntraOpThreads(threads) => {
                    context.intra_op_threads = Some(*threads)
                }
                BackendSetting::InterOpThreads(threads) => {
                    context.inter_op_threads = Some(*threads)
                }
                _ => {}
            }
        }
        context
    }
}

/// Called when the last trace of a version (its instances, its weights) is gone.
pub(crate) type OnGone = Box<dyn FnOnce() + Send + Sync>;

/// Runs its callback when the last holder lets go.
struct Life(Option<OnGone>);

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(on_gone) = self.0.take() {
            on_gone();
        }
    }
}

/// One version's outcome.
pub(crate) type VersionResult = Result<LoadedVersion, RuntimeError>;

/// A model, read and completed, before its versions are loaded.
pub(crate) struct Plan {
    directory: PathBuf,
    config: Arc<ModelConfig>,
    backend: Arc<dyn Backend>,
    /// The selected versions, ascending; never empty.
    pub(crate) versions: Vec<ModelVersion>,
}

impl Plan {
    /// Reads the configuration in `directory`, completes and validates it, and selects versions.
    pub(crate) fn new(
        name: &ModelName,
        directory: &Path,
        options: &LoadOptions,
        backends: &Backends,
    ) -> Result<Self, RuntimeError> {
        let mut proto = read_config(name, directory, options)?;
        let configured = skep_config::configured_backend(&proto).map(str::to_owned);
        let Choice { backend, note } = backends.choose(configured.as_deref())?;
        if let Some(note) = note {
            tracing::warn!("model `{name}`: {note}");
        }
        let available = repository::versions(directory).map_err(|e| {
            RuntimeError::internal(format!("cannot read `{}`: {e}", directory.display()))
        })?;
        let Some(latest) = available.last().copied() else {
            return Err(RuntimeError::invalid(format!(
                "model '{name}' has no version: expected a directory named by a positive integer, such as `1`, in `{}`",
                directory.display()
            )));
        };
        // The name that stays in the configuration is the one it gave: a fallback changes who runs the model, not what
        // the model says of itself.
        let shown = configured.as_deref().unwrap_or_else(|| backend.name());
        complete(
            &mut proto,
            name,
            shown,
            &directory.join(latest.to_string()),
            backend.needs_file(),
            options,
        )?;
        let config = ModelConfig::from_proto(proto, &options.context(name)).map_err(invalid)?;
        let versions: Vec<ModelVersion> = config
            .version_policy()
            .select(&available)
            .into_iter()
            .collect();
        if versions.is_empty() {
            return Err(RuntimeError::invalid(format!(
                "model '{name}': the version policy selects none of the available versions {}",
                available
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            )));
        }
        for notice in config.notices() {
            tracing::warn!("model `{name}`: {notice}");
        }
        Ok(Self {
            directory: directory.to_owned(),
            config: Arc::new(config),
            backend,
            versions,
        })
    }

    /// Loads one version: weights once, then its instances, each warmed up.
    pub(crate) fn load(
        &self,
        version: ModelVersion,
        options: &LoadOptions,
        on_gone: OnGone,
    ) -> VersionResult {
        let began = Instant::now();
        let directory = self.directory.join(version.to_string());
        let (file, config) = if self.backend.needs_file() {
            let file = open(&directory, self.config.model_filename())?;
            let config = ModelConfig::clone(&self.config)
                .with_signature(&signature(&file)?)
                .map_err(invalid)?;
            (file, Arc::new(config))
        } else {
            (ModelFile::none(), Arc::clone(&self.config))
        };
        let model = self.load_weights(&file, &config, options)?;
        let interface = Arc::new(Interface::new(&config, version, &*model));
        let statistics = Statistics::new(Recording::new(options.metrics, &config));
        let driver = Arc::new(Driver::new(config.max_queue_size(), statistics));
        let mut loaded = LoadedVersion {
            interface: Arc::clone(&interface),
            config: Arc::clone(&config),
            labels: labels::read(config.outputs(), &self.directory)?,
            backend: self.backend.name(),
            driver: Arc::clone(&driver),
            load_duration: Duration::ZERO,
        };
        let life = Arc::new(Life(Some(on_gone)));
        let warmups = warmup::prepare(&config, &interface, &self.directory)?;
        self.start_instances(&model, &interface, &driver, &Arc::new(warmups), &life)?;
        loaded.load_duration = began.elapsed();
        Ok(loaded)
    }

    fn load_weights(
        &self,
        file: &ModelFile,
        config: &ModelConfig,
        options: &LoadOptions,
    ) -> Result<Arc<dyn Model>, RuntimeError> {
        let instances: u32 = config
            .instance_groups()
            .iter()
            .map(|group| group.count)
            .sum();
        let instances = usize::try_from(instances).unwrap_or(usize::MAX).max(1);
        // As many threads as cores over all instances: more would only take turns.
        let threads =
            NonZeroUsize::new(options.cores.get() / instances).unwrap_or(NonZeroUsize::MIN);
        let request = LoadRequest {
            file,
            config,
            threads,
        };
        // A broken file must not take the server down with it.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.backend.load(&request)))
            .unwrap_or_else(|_| {
                let text = format!(
                    "backend `{}` panicked while loading the model",
                    self.backend.name()
                );
                Err(skep_backend::BackendError::new(
                    skep_backend::ErrorKind::Internal,
                    text,
                ))
            })
            .map_err(Into::into)
    }

    /// Starts a thread an instance and waits until each has warmed up or one has failed.
    fn start_instances(
        &self,
        model: &Arc<dyn Model>,
        interface: &Arc<Interface>,
        driver: &Arc<Driver>,
        warmups: &Arc<Vec<warmup::WarmupRun>>,
        life: &Arc<Life>,
    ) -> Result<(), RuntimeError> {
        let total: u32 = self
            .config
            .instance_groups()
            .iter()
            .map(|group| group.count)
            .sum();
        let (report, reports) = mpsc::sync_channel(usize::try_from(total).unwrap_or(usize::MAX));
        let mut count = 0u32;
        for group in self.config.instance_groups() {
            for index in 0..group.count {
                let name = format!("{}_{index}", group.name);
                let worker = Worker {
                    id: InstanceId(count),
                    recorder: driver.statistics().recorder(&name),
                    name,
                    model: Arc::clone(model),
                    interface: Arc::clone(interface),
                    driver: Arc::clone(driver),
                };
                let (mailbox, batches) = mpsc::sync_channel(1);
                driver.connect(worker.id, mailbox);
                let (report, warmups, life) =
                    (report.clone(), Arc::clone(warmups), Arc::clone(life));
                let body = move || {
                    // Declared first, dropped last: a version is gone when its instances and weights are.
                    let _life = life;
                    let worker = worker;
                    let ready = worker.instantiate().and_then(|mut instance| {
                        warmup::run(&worker, &mut *instance, &warmups)?;
                        Ok(instance)
                    });
                    match ready {
                        Ok(instance) => {
                            // Ready before it is reported: a model that is loaded takes its first request at once.
                            let first = worker.driver.ready(worker.id);
                            drop(report.send(Ok(())));
                            drop(report);
                            worker.serve(instance, first, &batches);
                        }
                        Err(error) => drop(report.send(Err(error))),
                    }
                };
                thread::Builder::new()
                    .name(thread_name(&format!("{}_{index}", group.name)))
                    .spawn(body)
                    .map_err(|e| {
                        RuntimeError::internal(format!("cannot start an instance's thread: {e}"))
                    })?;
                count += 1;
            }
        }
        drop(report);
        let mut alive = 0;
        for outcome in reports {
            outcome?;
            alive += 1;
        }
        if alive == count && count > 0 {
            return Ok(());
        }
        Err(RuntimeError::internal(format!(
            "{alive} of {count} instances started"
        )))
    }
}

/// Linux shows 15 bytes of a thread's name: the end tells instances apart.
fn thread_name(instance: &str) -> String {
    let tail: Vec<char> = instance
        .chars()
        .filter(|c| *c != '\0')
        .rev()
        .take(15)
        .collect();
    tail.into_iter().rev().collect()
}

fn invalid(error: skep_config::ConfigError) -> RuntimeError {
    RuntimeError::invalid(error.to_string())
}

/// The configuration file as written; an empty configuration when there is none and completion is allowed.
fn read_config(
    name: &ModelName,
    directory: &Path,
    options: &LoadOptions,
) -> Result<inference::ModelConfig, RuntimeError> {
    let path = directory.join(CONFIG_FILE);
    match fs::read(&path) {
        Ok(text) => skep_config::parse_pbtxt(&text, &path.display().to_string()).map_err(invalid),
        Err(error) if error.kind() == io::ErrorKind::NotFound && options.auto_complete => {
            Ok(inference::ModelConfig::default())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(RuntimeError::invalid(format!(
                "model '{name}' has no configuration: expected `{}`, since completing configurations is switched off",
                path.display()
            )))
        }
        Err(error) => Err(RuntimeError::invalid(format!(
            "cannot read `{}`: {error}",
            path.display()
        ))),
    }
}

/// Fills what the configuration leaves open.
fn complete(
    proto: &mut inference::ModelConfig,
    name: &ModelName,
    backend: &str,
    version_directory: &Path,
    needs_file: bool,
    options: &LoadOptions,
) -> Result<(), RuntimeError> {
    let filename = skep_config::model_filename(proto, name)
        .map_err(invalid)?
        .to_owned();
    let complete_tensors =
        needs_file && options.auto_complete && (proto.input.is_empty() || proto.output.is_empty());
    let signature = if complete_tensors {
        Some(signature(&open(version_directory, &filename)?)?)
    } else {
        None
    };
    let completion = Completion {
        model: name,
        backend,
        model_filename: if needs_file { &filename } else { "" },
        default_max_batch_size: options.default_max_batch_size(backend),
        signature: signature.as_ref(),
    };
    skep_config::complete(proto, &completion).map_err(invalid)
}

/// Maps a version's model file; a directory of that name holds the file under the same name.
fn open(version_directory: &Path, filename: &str) -> Result<ModelFile, RuntimeError> {
    let mut path = version_directory.join(filename);
    if path.is_dir() {
        path = path.join(DEFAULT_MODEL_FILE);
    }
    if !path.exists() {
        let there: BTreeMap<String, ()> = fs::read_dir(version_directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some((format!("`{}`", entry.ok()?.file_name().to_str()?), ())))
            .collect();
        let there: Vec<String> = there.into_keys().collect();
        let found = if there.is_empty() {
            "the directory is empty".to_owned()
        } else {
            format!("found {}", there.join(", "))
        };
        return Err(RuntimeError::invalid(format!(
            "no model file: expected `{}`, {found}",
            path.display()
        )));
    }
    ModelFile::open(&path).map_err(Into::into)
}

fn signature(file: &ModelFile) -> Result<ModelSignature, RuntimeError> {
    OnnxModel::decode(file.bytes().clone())
        .and_then(|model| model.signature())
        .map_err(|error| RuntimeError::invalid(format!("`{}`: {error}", file.path().display())))
}
