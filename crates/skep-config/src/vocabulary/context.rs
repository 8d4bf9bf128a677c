//! What the server knows about a model apart from its configuration.

use skep_types::ModelName;

/// What the server knows about a model apart from its configuration.
#[derive(Debug, Clone, Copy)]
pub struct ConfigContext<'a> {
    /// The name of the model's directory. A configuration with another name is refused.
    pub model: &'a ModelName,
    /// Threads that compute one operator, for models without `intra_op_thread_count` (`--backend-config`).
    pub intra_op_threads: Option<u32>,
    /// Threads that compute independent operators, for models without `inter_op_thread_count` (`--backend-config`).
    pub inter_op_threads: Option<u32>,
    /// Whether the CPU serves what is configured for GPUs and accelerators (`--gpu-as-cpu`).
    pub gpu_as_cpu: bool,
    /// Whether the server has devices that it packs instances onto (`--device`). Without some, `KIND_AUTO` is `KIND_CPU`.
    pub has_devices: bool,
    /// Whether executions wait for the resources of their instance groups (`--rate-limit=execution_count`).
    pub limits_rate: bool,
}

impl<'a> ConfigContext<'a> {
    /// The context of a model on a server that sets no defaults.
    #[must_use]
    pub const fn new(model: &'a ModelName) -> Self {
        Self {
            model,
            intra_op_threads: None,
            inter_op_threads: None,
            gpu_as_cpu: false,
            has_devices: false,
            limits_rate: false,
        }
    }
}
