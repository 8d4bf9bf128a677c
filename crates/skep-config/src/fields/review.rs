//! The first pass over a configuration: it refuses what is not supported yet and notes what has no effect.

use skep_proto::inference;

use crate::{
    error::ConfigError,
    vocabulary::{context::ConfigContext, notice::Notice},
};

/// Why a setting for TensorRT has no effect.
pub(super) const TENSORRT_ONLY: &str = "no effect: it is for TensorRT models";

/// The review of one configuration, handed from message to message.
pub(super) struct Review<'a> {
    /// The model's name.
    pub(super) model: &'a str,
    /// The platform as the user wrote it.
    pub(super) platform: &'a str,
    /// Whether the CPU serves what is configured for GPUs and accelerators.
    pub(super) gpu_as_cpu: bool,
    /// Whether executions wait for resources.
    pub(super) limits_rate: bool,
    notices: &'a mut Vec<Notice>,
}

impl<'a> Review<'a> {
    pub(super) fn new(
        proto: &'a inference::ModelConfig,
        context: &ConfigContext<'a>,
        notices: &'a mut Vec<Notice>,
    ) -> Self {
        Self {
            model: context.model.as_str(),
            platform: &proto.platform,
            gpu_as_cpu: context.gpu_as_cpu,
            limits_rate: context.limits_rate,
            notices,
        }
    }

    /// Refuses a field that is set, and says what to do `instead`.
    pub(super) fn unsupported(
        &self,
        set: bool,
        field: impl Into<String>,
        instead: &str,
    ) -> Result<(), ConfigError> {
        if !set {
            return Ok(());
        }
        Err(ConfigError::Unsupported {
            model: self.model.to_owned(),
            field: field.into(),
            hint: Some(instead.to_owned()),
        })
    }

    /// Notes a field that is set without effect.
    pub(super) fn no_effect(&mut self, set: bool, field: impl Into<String>, why: &str) {
        if set {
            self.notices.push(Notice::new(field, why.to_owned()));
        }
    }

    /// Notes a field for GPUs that is set.
    pub(super) fn no_gpu(&mut self, set: bool, field: impl Into<String>) {
        if set {
            self.notices.push(Notice::about_gpus(field));
        }
    }
}
