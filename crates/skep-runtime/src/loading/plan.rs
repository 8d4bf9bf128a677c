//! From a plan to versions that are ready for requests: the second half of a load.

use std::{num::NonZeroUsize, sync::Arc, time::Instant};

use skep_backend::{Backend, InspectRequest, Inspection, Model, ModelFile};
use skep_config::{InstanceKind, ModelConfig, Notice, SchedulerConfig, SlotStrategy};
use skep_heap::give_back_freed_memory;
use skep_placer::configuration::{LatencyProfile, decide};
use skep_proto::inference;
use skep_tensor::RunBound;
use skep_types::ModelVersion;
use skep_weights::Baked;

use crate::{
    LoadedVersion, RateLimiter, RuntimeError, clock,
    loading::{
        LoadOptions,
        copies::CopySource,
        file_interface::{InspectedFile, complete_tensors},
        live::{self, run_terms},
        model_file::find,
        request::{request, threads, weights},
    },
    repository::{ModelId, source::ModelSource},
    serving::{
        driver::{DeviceTerms, Driver, scheduling::Scheduling},
        instances::{
            CopyTerms, ExecutionLimits, InstanceHome, InstancePool, LoadCopy, ModelCopies, warmup,
        },
        interface::Interface,
        labels,
        origin::{OnGone, VersionLife, VersionOrigin},
        responder::{Responder, RunShape},
        response_cache::CachedResponder,
        sequences::SequenceFeeds,
    },
    statistics::{RecorderOptions, recorder::Statistics},
};

/// The result of loading one version.
pub(crate) type VersionResult = Result<LoadedVersion, RuntimeError>;

/// A version's file, with the configuration checked against it.
struct OpenedVersion {
    file: ModelFile,
    /// The configuration, checked against the file.
    config: Arc<ModelConfig>,
    /// Kept until the load is over, because the load uses the decoded file.
    inspection: Inspection,
}

/// A version's model, loaded for its first instances.
struct FirstCopy {
    source: Arc<CopySource>,
    model: Arc<dyn Model>,
    terms: CopyTerms,
    /// How it begins, and what that was chosen from, if its configuration is live.
    shape: Option<RunShape>,
    profile: Option<Arc<LatencyProfile>>,
}

/// A model whose configuration is complete and valid, before its versions are loaded.
pub(crate) struct LoadPlan {
    pub(super) source: Arc<ModelSource>,
    pub(super) config: Arc<ModelConfig>,
    pub(super) backend: Arc<dyn Backend>,
    /// Notices of the completion about the model's file.
    pub(super) notices: Vec<Notice>,
    /// The file that completion inspected, if it had to.
    pub(super) inspected: Option<InspectedFile>,
}

impl LoadPlan {
    /// Whether `loaded` can stay: its files are the same, and its configuration differs in instances and version
    /// policy only.
    pub(crate) fn keeps(&self, loaded: &LoadedVersion) -> bool {
        loaded.is_healthy()
            && loaded.backend == self.backend.name()
            && self
                .source
                .same_version(&loaded.origin.source, loaded.version())
            && without_instances(&self.config) == without_instances(&loaded.config)
    }

    /// The version under the new configuration: adds and removes instances, and keeps the weights.
    pub(crate) fn update(
        &self,
        loaded: &Arc<LoadedVersion>,
    ) -> Result<Arc<LoadedVersion>, RuntimeError> {
        if self.config.proto() == loaded.config.proto() {
            return Ok(Arc::clone(loaded));
        }
        let config = loaded.config.with_instances_of(&self.config);
        loaded
            .responder
            .reconfigure(&config, self.source.directory())?;
        Ok(Arc::new(loaded.with_config(Arc::new(config))))
    }

    /// Loads one version: its weights once, then its instances, each with a warm-up.
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
        let opened = self.open_version(version)?;
        let id = ModelId {
            namespace: namespace.clone(),
            name: self.config.name().clone(),
        };
        let first = self.load_first(&opened, &id, options)?;
        let FirstCopy {
            source,
            model,
            terms,
            shape,
            profile,
        } = first;
        let config = Arc::clone(&source.config);
        let directory = self.source.directory();
        let sequences = SequenceFeeds::read(&config, model.signature(), directory)?;
        let interface = Arc::new(Interface {
            echo_parameters: model.echoes_parameters(),
            ..Interface::new(
                &config,
                version,
                model.signature(),
                &opened.inspection.defaults,
                sequences,
            )
        });
        let statistics = Statistics::new(RecorderOptions::new(options.metrics, &config));
        let driver = Driver::new(
            Scheduling::new(&config, options.hold_until),
            statistics,
            Arc::clone(&options.waiting_limit),
            seat(&config, &*model, options),
            limiter(&config, options),
        )?;
        let labels = labels::read(config.outputs(), self.source.directory())?;
        let life = VersionLife::new(on_gone);
        let origin = VersionOrigin::new(Arc::clone(&self.source), namespace, Arc::clone(&life));
        let limits = ExecutionLimits {
            memory: RunBound {
                limit_bytes: config.run_limits().memory_bytes,
                budget: options.request_memory.clone(),
            },
            time: config.run_limits().time,
        };
        let home = InstanceHome {
            model: id,
            device: options.device(),
            devices: options.devices.clone(),
        };
        let needs_more = shape.is_some() || home.devices.is_some() && model.is_bound_by_load();
        let load: Option<LoadCopy> = needs_more.then(|| {
            let source = Arc::clone(&source);
            Box::new(move |terms| source.further(terms)) as LoadCopy
        });
        let copies = ModelCopies::new(terms, Arc::clone(&model), load);
        let pool = InstancePool::new(driver, Arc::clone(&interface), copies, home, limits, life);
        match shape {
            Some(shape) => pool.scale(&config, self.source.directory(), shape)?,
            None => pool.reconfigure(&config, self.source.directory())?,
        }
        origin.keep(source.bake_in_background(&model, terms)?);
        let responder = with_cache(Arc::new(pool), &config, options);
        Ok(LoadedVersion {
            interface,
            config,
            labels,
            backend: self.backend.name(),
            load_duration: began.elapsed(),
            profile,
            responder,
            origin,
        })
    }

    /// Loads the model for the instances that it begins with.
    fn load_first(
        &self,
        opened: &OpenedVersion,
        id: &ModelId,
        options: &LoadOptions,
    ) -> Result<FirstCopy, RuntimeError> {
        let OpenedVersion {
            file,
            config,
            inspection,
        } = opened;
        let mut source = CopySource {
            backend: Arc::clone(&self.backend),
            file: file.clone(),
            config: Arc::clone(config),
            signature: inspection.signature.clone(),
            options: options.clone(),
        };
        let profile = live::profile(config, self.source.directory(), options);
        let shape = profile.as_ref().and_then(|profile| {
            // Until requests come.
            let terms = run_terms(config, options, 0.0, 1);
            let first = decide(profile, &terms, None, clock::now())?;
            Some(RunShape::from(first.configuration))
        });
        let threads = shape.and_then(|shape| shape.threads);
        let terms = CopyTerms {
            device: first_device(config, threads, id, options)?,
            threads,
        };
        let model = source.load(terms)?;
        give_back_freed_memory();
        if inspection.signature.is_none() && self.backend.needs_file() {
            // Only the loaded model knows its signature.
            let config = ModelConfig::clone(config).with_signature(model.signature())?;
            source.config = Arc::new(config);
        }
        Ok(FirstCopy {
            source: Arc::new(source),
            model,
            terms,
            profile: shape.and(profile),
            shape,
        })
    }

    /// Opens the version's file and checks the configuration against it.
    fn open_version(&self, version: ModelVersion) -> Result<OpenedVersion, RuntimeError> {
        if !self.backend.needs_file() {
            return Ok(OpenedVersion {
                file: ModelFile::none(),
                config: Arc::clone(&self.config),
                inspection: Inspection::default(),
            });
        }
        let directory = self.source.directory().join(version.to_string());
        let usual = self.backend.model_files();
        let path = find(&directory, self.config.model_filename(), usual)?;
        let known = self.inspected.as_ref().map(|inspected| &inspected.file);
        let file = match known.filter(|file| file.path() == path) {
            Some(file) => file.clone(),
            None => ModelFile::open(&path)?,
        };
        let inspection = self.backend.inspect(&InspectRequest {
            file: &file,
            tensors: &complete_tensors(&self.config),
            ask: None,
        })?;
        let config = match &inspection.signature {
            Some(signature) => {
                let config = ModelConfig::clone(&self.config).with_signature(signature)?;
                Arc::new(config)
            }
            None => Arc::clone(&self.config),
        };
        let has_default = |name: &str| inspection.defaults.iter().any(|(known, _)| known == name);
        config.check_optional(has_default)?;
        Ok(OpenedVersion {
            file,
            config,
            inspection,
        })
    }

    /// The configuration of a version, checked against its file.
    pub(super) fn config_of(
        &self,
        version: ModelVersion,
    ) -> Result<Arc<ModelConfig>, RuntimeError> {
        self.open_version(version).map(|opened| opened.config)
    }

    /// Makes the form that a load of the version would make.
    pub(crate) fn bake(
        &self,
        version: ModelVersion,
        options: &LoadOptions,
    ) -> Result<Baked, RuntimeError> {
        let OpenedVersion { file, config, .. } = self.open_version(version)?;
        let weights = weights(&config, options)?;
        let terms = CopyTerms::default();
        let request = request(&file, &config, options, weights.as_ref(), terms);
        self.backend.bake(&request).map_err(Into::into)
    }

    /// Checks everything about a version that does not need its weights: its file, labels, warm-up data.
    pub(crate) fn check(&self, version: ModelVersion) -> Result<(), RuntimeError> {
        let opened = self.open_version(version)?;
        let config = &opened.config;
        labels::read(config.outputs(), self.source.directory())?;
        let Some(signature) = &opened.inspection.signature else {
            return Ok(());
        };
        let directory = self.source.directory();
        let sequences = SequenceFeeds::read(config, signature, directory)?;
        let defaults = &opened.inspection.defaults;
        let interface = Interface::new(config, version, signature, defaults, sequences);
        warmup::prepare(config, &interface, directory).map(drop)
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The notices about the configuration and the model's file.
    pub(crate) fn notices(&self) -> impl Iterator<Item = &Notice> {
        self.config.notices().iter().chain(&self.notices)
    }
}

/// Puts the node's response cache before a responder, if the model asks for it and the node has one.
pub(super) fn with_cache(
    responder: Arc<dyn Responder>,
    config: &ModelConfig,
    options: &LoadOptions,
) -> Arc<dyn Responder> {
    match (config.response_cache(), &options.response_cache) {
        (Some(caching), Some(cache)) => {
            Arc::new(CachedResponder::new(responder, cache.share(caching)))
        }
        _ => responder,
    }
}

/// The index of the device that the first instance goes to, if instances of the model are packed onto devices.
fn first_device(
    config: &ModelConfig,
    own_threads: Option<NonZeroUsize>,
    id: &ModelId,
    options: &LoadOptions,
) -> Result<Option<usize>, RuntimeError> {
    let Some(devices) = &options.devices else {
        return Ok(None);
    };
    let groups = config.instance_groups();
    if !groups.iter().any(|group| group.kind == InstanceKind::Auto) {
        return Ok(None);
    }
    let configured = config.execution().intra_op_threads;
    let default = own_threads.unwrap_or_else(|| threads(config, options));
    let default = u32::try_from(default.get()).unwrap_or(u32::MAX);
    let threads = configured.filter(|_| own_threads.is_none());
    devices.check(id, 1, threads.unwrap_or(default)).map(Some)
}

/// A configuration without instances and version policy, which may change without a reload.
fn without_instances(config: &ModelConfig) -> inference::ModelConfig {
    inference::ModelConfig {
        instance_group: Vec::new(),
        version_policy: None,
        ..config.proto().clone()
    }
}

/// The rate limiter, for a model whose instances it may choose among: not where sequences belong to instances.
fn limiter(config: &ModelConfig, options: &LoadOptions) -> Option<Arc<RateLimiter>> {
    let is_bound = matches!(
        config.scheduler(),
        SchedulerConfig::Sequence(batching) if matches!(batching.strategy, SlotStrategy::Direct { .. })
    );
    options.rate_limiter.clone().filter(|_| !is_bound)
}

/// The device on which a model's executions take slots, if they need any.
fn seat(config: &ModelConfig, model: &dyn Model, options: &LoadOptions) -> Option<DeviceTerms> {
    let (device, threads) = (options.cpu.as_ref()?, model.cpu_threads()?);
    let groups = config.instance_groups().iter();
    let priority = groups
        .filter(|group| !group.passive)
        .map(|group| group.priority)
        .min();
    Some(DeviceTerms {
        device: Arc::clone(device),
        weight: 1.0 / f64::from(priority.unwrap_or(1)),
        threads: u32::try_from(threads.get()).unwrap_or(u32::MAX),
    })
}
