//! The options for all loads of a node.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use skep_config::{BackendSetting, ConfigContext};
use skep_tensor::MemoryBudget;
use skep_types::{DeviceId, ModelName};
use skep_weights::WeightSource;

use crate::{
    CpuDevices, Device, MetricsOptions, ModelProfiles, RateLimiter, ResponseCache, WaitingLimit,
    repository::source::ConfigChoice,
};

/// Triton's default of `--backend-config=default-max-batch-size`.
const DEFAULT_MAX_BATCH_SIZE: u32 = 4;

/// The options for all loads.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Whether a missing or partial configuration is completed from the model's file.
    pub auto_complete: bool,
    /// `--backend-config` settings, in the order given.
    pub backend_settings: Vec<BackendSetting>,
    /// Processor cores that this process may use.
    pub cores: NonZeroUsize,
    /// Which metrics of requests are recorded.
    pub metrics: MetricsOptions,
    /// Whether models that are configured for GPUs and accelerators are served on the CPU.
    pub gpu_as_cpu: bool,
    /// The `<name>` of the `configs/<name>.pbtxt` that replaces `config.pbtxt` for models that have it.
    pub config_name: Option<String>,
    /// How often the load of a version is tried again after a failure.
    pub retries: u32,
    /// The bound on waiting requests, over all models.
    pub waiting_limit: Arc<WaitingLimit>,
    /// Batchers start only once this many requests wait for their model; for tests.
    pub hold_until: usize,
    /// The CPU whose cores the models share; `None` if each starts whenever it can.
    pub cpu: Option<Arc<Device>>,
    /// The devices that instances of groups of `KIND_AUTO` are packed onto; `None` if they run on all cores.
    pub devices: Option<Arc<CpuDevices>>,
    /// Profiles of models, by which those with `live_configuration` are configured while they serve.
    pub profiles: Option<Arc<ModelProfiles>>,
    /// Where responses of models with `response_cache` are kept; `None` if none are.
    pub response_cache: Option<Arc<ResponseCache>>,
    /// The resources that instances share; `None` if executions need none.
    pub rate_limiter: Option<Arc<RateLimiter>>,
    /// Where weights are kept and shared, in the general store unless a model names its tenant; `None` if loads share
    /// nothing.
    pub weights: Option<WeightSource>,
    /// The node's memory for requests, to which runs are charged; `None` if it is not counted.
    pub request_memory: Option<Arc<MemoryBudget>>,
    /// How long a worker process may take to load or bake a model; `None` for any time.
    pub sandbox_load_limit: Option<Duration>,
}

impl LoadOptions {
    /// The `max_batch_size` for a completed model. A setting for its backend takes precedence over one for all.
    pub(super) fn default_max_batch_size(&self, name: &str) -> u32 {
        self.batch_size_setting(Some(name))
            .or_else(|| self.batch_size_setting(None))
            .unwrap_or(DEFAULT_MAX_BATCH_SIZE)
    }

    /// The last `default-max-batch-size` setting for a backend, or for all.
    fn batch_size_setting(&self, wanted: Option<&str>) -> Option<u32> {
        let mut settings = self.backend_settings.iter().rev();
        settings.find_map(|setting| match setting {
            BackendSetting::DefaultMaxBatchSize { backend, size }
                if backend.as_deref() == wanted =>
            {
                Some(*size)
            }
            _ => None,
        })
    }

    /// The device that models are loaded for.
    pub(crate) fn device(&self) -> DeviceId {
        self.cpu.as_ref().map(|cpu| cpu.id()).unwrap_or_default()
    }

    /// Which configuration file of a model is read.
    pub(crate) fn config_choice(&self) -> ConfigChoice<'_> {
        ConfigChoice {
            name: self.config_name.as_deref(),
            may_be_missing: self.auto_complete,
        }
    }

    /// The context in which a model's configuration is validated.
    pub(crate) fn context<'a>(&self, model: &'a ModelName) -> ConfigContext<'a> {
        let mut context = ConfigContext::new(model);
        context.gpu_as_cpu = self.gpu_as_cpu;
        context.has_devices = self.devices.is_some();
        context.limits_rate = self.rate_limiter.is_some();
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
