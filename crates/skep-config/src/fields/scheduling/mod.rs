//! `scheduling_choice`: how requests come to instances. One file for each kind of scheduler.

pub(crate) mod dynamic_batching;
pub(crate) mod ensemble;
pub(crate) mod objective;
mod sequence_batching;
#[cfg(test)]
mod tests;

use skep_proto::inference::{self, model_config::SchedulingChoice};

use self::{dynamic_batching::DynamicBatching, ensemble::Ensemble, objective::LatencyObjective};
use super::{
    review::Review,
    tensors::{InputConfig, OutputConfig},
};
use crate::{error::ConfigError, vocabulary::notice::Notice};

/// How requests come to instances.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SchedulerConfig {
    /// In order of arrival, each alone, to any free instance.
    #[default]
    Default,
    /// In batches.
    Dynamic(DynamicBatching),
    /// Its steps are requests to other models.
    Ensemble(Ensemble),
}

/// Requests that may wait for a model that sets no limit: minutes of work for most models, some megabytes of small
/// tensors.
const DEFAULT_MAX_QUEUE_SIZE: usize = 16_384;

impl SchedulerConfig {
    /// How many requests may wait if no parameter sets it: the sum of the queues' own limits, at least the default.
    pub(crate) fn default_max_queue_size(&self) -> usize {
        let queues = match self {
            Self::Default | Self::Ensemble(_) => 0,
            Self::Dynamic(batching) => batching.queue_sizes(),
        };
        // The scheduler numbers waiting requests in 32 bits.
        queues.clamp(DEFAULT_MAX_QUEUE_SIZE, u32::MAX as usize)
    }
}

pub(super) fn review(
    review: &Review<'_>,
    choice: Option<&SchedulingChoice>,
) -> Result<(), ConfigError> {
    match choice {
        // read below
        None
        | Some(SchedulingChoice::DynamicBatching(_) | SchedulingChoice::EnsembleScheduling(_)) => {
            Ok(())
        }
        Some(SchedulingChoice::SequenceBatching(_)) => sequence_batching::review(review),
    }
}

/// Reads the choice of a scheduler; `review` has refused the kinds that are not supported.
pub(crate) fn read(
    proto: &inference::ModelConfig,
    objective: Option<LatencyObjective>,
    tensors: (&[InputConfig], &[OutputConfig]),
    notices: &mut Vec<Notice>,
) -> Result<SchedulerConfig, ConfigError> {
    let default = inference::ModelDynamicBatching::default();
    let batching = match &proto.scheduling_choice {
        Some(SchedulingChoice::EnsembleScheduling(scheduling)) => {
            let ensemble = ensemble::read(proto, scheduling, tensors, notices)?;
            return Ok(SchedulerConfig::Ensemble(ensemble));
        }
        Some(SchedulingChoice::DynamicBatching(batching)) => batching,
        // A latency objective asks for batches by itself.
        _ if objective.is_some() => &default,
        _ => return Ok(SchedulerConfig::Default),
    };
    dynamic_batching::read(proto, batching, objective, notices).map(SchedulerConfig::Dynamic)
}

/// Writes the defaults that Triton shows.
pub(crate) fn write_defaults(proto: &mut inference::ModelConfig) {
    let preferred = proto.max_batch_size;
    if let Some(SchedulingChoice::DynamicBatching(batching)) = &mut proto.scheduling_choice
        && batching.preferred_batch_size.is_empty()
        && preferred > 0
    {
        batching.preferred_batch_size.push(preferred);
    }
}
