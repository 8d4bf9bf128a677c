//! From a model's directory to versions that are ready for requests.

use std::{
    collections::BTreeSet,
    num::NonZeroUsize,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use skep_backend::{Backend, Baked, LoadRequest, Model, ModelFile, Weights};
use skep_config::{BackendSetting, Completion, ConfigContext, Isolation, ModelConfig, Notice};
use skep_heap::give_back_freed_memory;
use skep_proto::inference;
use skep_store::Tenant;
use skep_tensor::{MemoryBudget, RunBound, Tensor};
use skep_types::{ModelName, ModelSignature, ModelVersion};

use crate::{
    Device, RuntimeError, WaitingLimit,
    backends::{Backends, Choice},
    bakery::{self, Order},
    driver::{Driver, Place},
    interface_of_file::Asked,
    labels,
    model_file::{decode, defaults, lone_default, open, signature},
    places::{self, ConfigText},
    recorder::Statistics,
    recording::{MetricsOptions, Recording},
    repository,
    running::{ExecutionLimits, Life, OnGone, Running},
    scheduling::Scheduling,
    source::Source,
    version::{Interface, LoadedVersion},
    warmup,
};

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
    /// Whether what is configured for GPUs and accelerators is served on the CPU.
    pub gpu_as_cpu: bool,
    /// Which of a model's `configs/<name>.pbtxt` is taken instead of `config.pbtxt`, if it has that one.
    pub config_name: Option<String>,
    /// How often a version that could not be loaded is tried again.
    pub retries: u32,
    /// The bound on requests that wait for instances, over all models.
    pub waiting_limit: Arc<WaitingLimit>,
    /// Batchers execute nothing before as many requests wait for their model for the first time; for tests.
    pub hold_until: usize,
    /// The CPU whose cores the models share; none where each starts whenever it can.
    pub cpu: Option<Arc<Device>>,
    /// Where weights are kept and shared, in the general store unless a model names its tenant; none where every load is for
    /// itself alone.
    pub weights: Option<Weights>,
    /// The node's memory for requests, which runs are charged to; none where nobody counts.
    pub request_memory: Option<Arc<MemoryBudget>>,
    /// What a worker process may take to load a model, or to bake it; none for as long as it likes.
    pub sandbox_load_limit: Option<Duration>,
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

    pub(crate) fn context<'a>(&self, model: &'a ModelName) -> ConfigContext<'a> {
        let mut context = ConfigContext::new(model);
        context.gpu_as_cpu = self.gpu_as_cpu;
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

/// One version's outcome.
pub(crate) type VersionResult = Result<LoadedVersion, RuntimeError>;

/// A model whose configuration was read, and the versions that are to be loaded.
pub(crate) struct Draft {
    name: ModelName,
    source: Arc<Source>,
    proto: inference::ModelConfig,
    /// The versions in the model's directory; never empty.
    available: BTreeSet<ModelVersion>,
    /// The selected versions; never empty.
    pub(crate) versions: BTreeSet<ModelVersion>,
}

impl Draft {
    /// Reads the model's configuration.
    ///
    /// # Errors
    /// What Triton calls a failed poll: a configuration that cannot be read, or is another model's.
    pub(crate) fn read_config(
        name: &ModelName,
        source: &Source,
        options: &LoadOptions,
    ) -> Result<inference::ModelConfig, RuntimeError> {
        let mut proto = source.read_config(name, options)?;
        skep_config::check_name(&mut proto, name).map_err(RuntimeError::from)?;
        Ok(proto)
    }

    /// Selects the versions.
    ///
    /// # Errors
    /// When there are none, or the policy wants none of them.
    pub(crate) fn new(
        name: &ModelName,
        source: Arc<Source>,
        proto: inference::ModelConfig,
    ) -> Result<Self, RuntimeError> {
        let directory = source.directory();
        let available = repository::versions(directory).map_err(|e| {
            RuntimeError::internal(format!("cannot read `{}`: {e}", directory.display()))
        })?;
        let none = |why: String| {
            RuntimeError::invalid(format!(
                "at least one version must be available under the version policy of model '{name}'\n{why}"
            ))
        };
        if available.is_empty() {
            return Err(none(format!(
                "model '{name}' has no version: expected a directory named by a positive integer, such as `1`, in `{}`",
                directory.display()
            )));
        }
        let policy = skep_config::version_policy(&proto, name).map_err(RuntimeError::from)?;
        let versions = policy.select(&available);
        if versions.is_empty() {
            let there: Vec<String> = available.iter().map(ToString::to_string).collect();
            return Err(none(format!("available: {}", there.join(", "))));
        }
        Ok(Self {
            name: name.clone(),
            source,
            proto,
            available,
            versions,
        })
    }

    /// Completes and validates the configuration.
    pub(crate) fn plan(
        self,
        options: &LoadOptions,
        backends: &Backends,
    ) -> Result<Plan, RuntimeError> {
        let backend = self.choose(backends)?;
        self.plan_on(backend, options)
    }

    /// The backend that the model runs on.
    pub(crate) fn choose(&self, backends: &Backends) -> Result<Arc<dyn Backend>, RuntimeError> {
        let name = &self.name;
        skep_config::check_backend_name(&self.proto, name).map_err(RuntimeError::from)?;
        let Choice { backend, note } =
            backends.choose(skep_config::configured_backend(&self.proto))?;
        if let Some(note) = note {
            tracing::warn!("model `{name}`: {note}");
        }
        Ok(backend)
    }

    /// Completes and validates the configuration for a backend.
    pub(crate) fn plan_on(
        mut self,
        backend: Arc<dyn Backend>,
        options: &LoadOptions,
    ) -> Result<Plan, RuntimeError> {
        let name = &self.name;
        let configured = skep_config::configured_backend(&self.proto).map(str::to_owned);
        // The name that stays in the configuration is the one it gave: a fallback changes who runs the model, not what
        // the model says of itself.
        let shown = configured.as_deref().unwrap_or_else(|| backend.name());
        let latest = self.available.last().map(ToString::to_string);
        let directory = self.source.directory().join(latest.unwrap_or_default());
        let notices = complete(&mut self.proto, name, shown, &directory, &*backend, options)?;
        let config = ModelConfig::from_proto(self.proto, &options.context(name))
            .map_err(RuntimeError::from)?;
        if !config.notices().is_empty() || !notices.is_empty() {
            let text = ConfigText::of(&self.source, options);
            let places = text.places();
            for notice in config.notices().iter().chain(&notices) {
                tracing::warn!("model `{name}`: {}", places::notice(&places, notice));
            }
        }
        Ok(Plan {
            source: self.source,
            config: Arc::new(config),
            backend,
            notices,
        })
    }
}

/// A version's file, and what follows from it.
struct Opened {
    file: ModelFile,
    /// The configuration, held against the file.
    config: Arc<ModelConfig>,
    /// What the file declares; `None` without a file, and for one that its runtime alone can read.
    signature: Option<ModelSignature>,
    /// What optional inputs are when a request leaves them out, by name.
    defaults: Vec<(String, Tensor)>,
}

/// A model, read and completed, before its versions are loaded.
pub(crate) struct Plan {
    source: Arc<Source>,
    config: Arc<ModelConfig>,
    backend: Arc<dyn Backend>,
    /// What completion found odd about the model's file.
    notices: Vec<Notice>,
}

impl Plan {
    /// Whether `loaded` need not be loaded again: its files are the same, and its configuration differs in nothing but
    /// instances and version policy.
    pub(crate) fn keeps(&self, loaded: &LoadedVersion) -> bool {
        let essence = |config: &ModelConfig| inference::ModelConfig {
            instance_group: Vec::new(),
            version_policy: None,
            ..config.proto().clone()
        };
        loaded.is_healthy()
            && loaded.backend == self.backend.name()
            && self
                .source
                .same_version(&loaded.running.source, loaded.version())
            && essence(&self.config) == essence(&loaded.config)
    }

    /// The version under the new configuration: instances are added and taken away, the weights stay.
    pub(crate) fn update(
        &self,
        loaded: &Arc<LoadedVersion>,
    ) -> Result<Arc<LoadedVersion>, RuntimeError> {
        if self.config.proto() == loaded.config.proto() {
            return Ok(Arc::clone(loaded));
        }
        let config = loaded.config.with_instances_of(&self.config);
        let warmups = warmup::prepare(&config, &loaded.interface, self.source.directory())?;
        loaded
            .running
            .set_instances(config.instance_groups(), warmups)?;
        Ok(Arc::new(loaded.with_config(Arc::new(config))))
    }

    /// Loads one version: weights once, then its instances, each warmed up.
    pub(crate) fn load(
        &self,
        version: ModelVersion,
        options: &LoadOptions,
        namespace: Option<Arc<str>>,
        on_gone: impl Fn() -> OnGone,
    ) -> VersionResult {
        let mut retries = options.retries;
        loop {
            match self.load_once(version, options, namespace.clone(), on_gone()) {
                Err(error) if retries > 0 => {
                    retries -= 1;
                    let model = self.config.name();
                    tracing::warn!("model `{model}` version {version} is tried again: {error}");
                }
                outcome => return outcome,
            }
        }
    }

    fn load_once(
        &self,
        version: ModelVersion,
        options: &LoadOptions,
        namespace: Option<Arc<str>>,
        on_gone: OnGone,
    ) -> VersionResult {
        let began = Instant::now();
        let Opened {
            file,
            config,
            defaults,
            signature,
        } = self.open_version(version)?;
        let model = self.load_weights(&file, &config, signature.as_ref(), options)?;
        give_back_freed_memory();
        let config = match signature {
            // The file alone did not tell.
            None if self.backend.needs_file() => {
                Arc::new(ModelConfig::clone(&config).with_signature(model.signature())?)
            }
            _ => config,
        };
        let interface = Arc::new(Interface {
            echo_parameters: model.echoes_parameters(),
            ..Interface::new(&config, version, model.signature(), &defaults)
        });
        let statistics = Statistics::new(Recording::new(options.metrics, &config));
        let driver = Driver::new(
            Scheduling::new(&config, options.hold_until),
            statistics,
            Arc::clone(&options.waiting_limit),
            place(&config, &*model, options),
        )?;
        let labels = labels::read(config.outputs(), self.source.directory())?;
        let running = Arc::new(Running::new(
            Arc::clone(&driver),
            Arc::clone(&interface),
            model,
            Arc::clone(&self.source),
            namespace,
            ExecutionLimits {
                memory: RunBound {
                    limit_bytes: config.run_limits().memory_bytes,
                    budget: options.request_memory.clone(),
                },
                time: config.run_limits().time,
            },
            Life::new(on_gone),
        ));
        let warmups = warmup::prepare(&config, &interface, self.source.directory())?;
        running.set_instances(config.instance_groups(), warmups)?;
        self.bake_behind(&running, file, &config, options)?;
        Ok(LoadedVersion {
            interface,
            config,
            labels,
            backend: self.backend.name(),
            driver,
            load_duration: began.elapsed(),
            running,
        })
    }

    /// Has a version that is ready baked, where that is to take place behind it.
    fn bake_behind(
        &self,
        running: &Running,
        file: ModelFile,
        config: &Arc<ModelConfig>,
        options: &LoadOptions,
    ) -> Result<(), RuntimeError> {
        let Some(weights) = weights(config, options)? else {
            return Ok(());
        };
        let order = Order {
            backend: Arc::clone(&self.backend),
            threads: request(&file, config, options, None).threads,
            file,
            config: Arc::clone(config),
            weights,
            model: Arc::downgrade(&running.model),
        };
        running.keep(bakery::order(order));
        Ok(())
    }

    /// Opens the version's file and holds the configuration against it.
    fn open_version(&self, version: ModelVersion) -> Result<Opened, RuntimeError> {
        if !self.backend.needs_file() {
            return Ok(Opened {
                file: ModelFile::none(),
                config: Arc::clone(&self.config),
                signature: None,
                defaults: Vec::new(),
            });
        }
        let directory = self.source.directory().join(version.to_string());
        let file = open(&directory, self.config.model_filename())?;
        let Some(onnx) = decode(&file, &*self.backend)? else {
            self.config.check_optional(|_| false)?;
            return Ok(Opened {
                file,
                config: Arc::clone(&self.config),
                signature: None,
                defaults: Vec::new(),
            });
        };
        let signature = signature(&file, &onnx, &self.config)?;
        let config = ModelConfig::clone(&self.config).with_signature(&signature)?;
        Ok(Opened {
            defaults: defaults(&file, &onnx, &config)?,
            file,
            config: Arc::new(config),
            signature: Some(signature),
        })
    }

    /// Makes what a load of the version would keep for later ones.
    pub(crate) fn bake(
        &self,
        version: ModelVersion,
        options: &LoadOptions,
    ) -> Result<Baked, RuntimeError> {
        let Opened { file, config, .. } = self.open_version(version)?;
        let weights = weights(&config, options)?;
        let request = request(&file, &config, options, weights.as_ref());
        self.backend.bake(&request).map_err(Into::into)
    }

    /// Everything about a version that can be told without its weights: its file, labels, warm-up data.
    pub(crate) fn check(&self, version: ModelVersion) -> Result<(), RuntimeError> {
        let opened = self.open_version(version)?;
        let config = &opened.config;
        labels::read(config.outputs(), self.source.directory())?;
        let Some(signature) = opened.signature else {
            return Ok(());
        };
        let interface = Interface::new(config, version, &signature, &opened.defaults);
        warmup::prepare(config, &interface, self.source.directory()).map(drop)
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What has no effect or looks odd, in the configuration or in the model's file.
    pub(crate) fn notices(&self) -> impl Iterator<Item = &Notice> {
        self.config.notices().iter().chain(&self.notices)
    }

    fn load_weights(
        &self,
        file: &ModelFile,
        config: &ModelConfig,
        signature: Option<&ModelSignature>,
        options: &LoadOptions,
    ) -> Result<Arc<dyn Model>, RuntimeError> {
        let weights = weights(config, options)?;
        let request = request(file, config, options, weights.as_ref());
        let isolated = || {
            let limit = options.sandbox_load_limit;
            skep_sandbox::load(&*self.backend, &request, signature, limit)
        };
        let load = || match config.isolation() {
            Isolation::Process => isolated(),
            Isolation::Thread => match self.backend.needs_process(&request) {
                None => self.backend.load(&request),
                Some(why) => {
                    let model = config.name();
                    tracing::info!("model `{model}` runs in worker processes: {why}");
                    isolated()
                }
            },
        };
        // A broken file must not take the server down with it.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(load))
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
}

/// How a version's weights are loaded.
pub(crate) fn request<'a>(
    file: &'a ModelFile,
    config: &'a ModelConfig,
    options: &'a LoadOptions,
    weights: Option<&'a Weights>,
) -> LoadRequest<'a> {
    let groups = config.instance_groups().iter();
    let instances: u32 = groups.map(|group| group.count).sum();
    let instances = usize::try_from(instances).unwrap_or(usize::MAX).max(1);
    // As many threads as cores over all instances: more would only take turns.
    let threads = NonZeroUsize::new(options.cores.get() / instances);
    LoadRequest {
        file,
        config,
        threads: threads.unwrap_or(NonZeroUsize::MIN),
        weights,
        request_memory: options.request_memory.as_ref(),
    }
}

/// Where a model's weights are kept: in its tenant's store, and its tenant's part of the cache.
pub(crate) fn weights(
    config: &ModelConfig,
    options: &LoadOptions,
) -> Result<Option<Weights>, RuntimeError> {
    let Some(weights) = &options.weights else {
        return Ok(None);
    };
    let Some(name) = config.tenant() else {
        return Ok(Some(weights.clone()));
    };
    let tenant = Tenant::named(name).map_err(|error| RuntimeError::invalid(error.to_string()))?;
    match weights.cache.of_tenant(name) {
        Ok(cache) => Ok(Some(Weights {
            tenant,
            cache,
            ..weights.clone()
        })),
        Err(error) => {
            tracing::warn!(
                "the models of tenant `{name}` are loaded without a cache of baked forms: {error}"
            );
            Ok(None)
        }
    }
}

/// Fills what the configuration leaves open; what is odd about the model's file.
pub(crate) fn complete(
    proto: &mut inference::ModelConfig,
    name: &ModelName,
    shown: &str,
    version_directory: &Path,
    backend: &dyn Backend,
    options: &LoadOptions,
) -> Result<Vec<Notice>, RuntimeError> {
    let needs_file = backend.needs_file();
    let mut filename = skep_config::model_filename(proto, name)
        .map_err(RuntimeError::from)?
        .to_owned();
    if needs_file
        && proto.default_model_filename.is_empty()
        && let Some(lone) = lone_default(version_directory)
    {
        lone.clone_into(&mut filename);
    }
    let complete_tensors =
        needs_file && options.auto_complete && (proto.input.is_empty() || proto.output.is_empty());
    let told = if complete_tensors {
        let file = open(version_directory, &filename)?;
        let asked = Asked {
            backend,
            model: name,
            limit: options.sandbox_load_limit,
        };
        Some(asked.about(&file, proto)?)
    } else {
        None
    };
    let completion = Completion {
        model: name,
        backend: shown,
        model_filename: if needs_file { &filename } else { "" },
        default_max_batch_size: options.default_max_batch_size(shown),
        signature: told.as_ref().map(|told| &told.signature),
        is_unbatched: told.as_ref().is_some_and(|told| told.is_unbatched),
    };
    skep_config::complete(proto, &completion).map_err(RuntimeError::from)?;
    Ok(told.map_or_else(Vec::new, |told| told.notices))
}

/// Where a model's executions take place, if they need slots there.
fn place(config: &ModelConfig, model: &dyn Model, options: &LoadOptions) -> Option<Place> {
    let (device, threads) = (options.cpu.as_ref()?, model.cpu_threads()?);
    let groups = config.instance_groups().iter();
    let priority = groups
        .filter(|group| !group.passive)
        .map(|group| group.priority)
        .min();
    Some(Place {
        device: Arc::clone(device),
        weight: 1.0 / f64::from(priority.unwrap_or(1)),
        threads: u32::try_from(threads.get()).unwrap_or(u32::MAX),
    })
}
