//! What holds for every load of a node.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use skep_config::{BackendSetting, ConfigContext};
use skep_tensor::MemoryBudget;
use skep_types::{DeviceId, ModelName};
use skep_weights::WeightSource;

use crate::{Device, MetricsOptions, WaitingLimit, repository::source::ConfigChoice};

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
    pub weights: Option<WeightSource>,
    /// The node's memory for requests, which runs are charged to; none where nobody counts.
    pub request_memory: Option<Arc<MemoryBudget>>,
    /// What a worker process may take to load a model, or to bake it; none for as long as it likes.
    pub sandbox_load_limit: Option<Duration>,
}

impl LoadOptions {
    /// The `max_batch_size` for a completed model; a setting for its backend goes before one for all.
    pub(super) fn default_max_batch_size(&self, name: &str) -> u32 {
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

    /// How a model's configuration is validated under these options.
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
