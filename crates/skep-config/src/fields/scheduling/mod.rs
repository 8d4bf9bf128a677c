//! `scheduling_choice`: how requests come to instances. One file for each kind of scheduler.

pub(crate) mod dynamic_batching;
pub(crate) mod ensemble;
pub(crate) mod objective;
pub(crate) mod sequence_batching;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use skep_proto::inference::{self, model_config::SchedulingChoice};

use self::{
    dynamic_batching::DynamicBatching,
    ensemble::Ensemble,
    objective::LatencyObjective,
    sequence_batching::{SequenceBatching, SequenceTerms},
};
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
    /// By sequences.
    Sequence(SequenceBatching),
}

/// Requests that may wait for a model that sets no limit: minutes of work for most models, some megabytes of small
/// tensors.
const DEFAULT_MAX_QUEUE_SIZE: usize = 16_384;

impl SchedulerConfig {
    /// How many requests may wait if no parameter sets it: the sum of the queues' own limits, at least the default.
    pub(crate) fn default_max_queue_size(&self) -> usize {
        let queues = match self {
            Self::Default | Self::Ensemble(_) | Self::Sequence(_) => 0,
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
        Some(SchedulingChoice::SequenceBatching(batching)) => {
            sequence_batching::review(review, batching)
        }
    }
}

/// What the choice of a scheduler is read with.
pub(crate) struct SchedulingTerms<'a> {
    pub(crate) inputs: &'a [InputConfig],
    pub(crate) outputs: &'a [OutputConfig],
    pub(crate) parameters: &'a BTreeMap<String, String>,
    pub(crate) objective: Option<LatencyObjective>,
}

/// Reads the choice of a scheduler; `review` has refused the kinds that are not supported.
pub(crate) fn read(
    proto: &inference::ModelConfig,
    terms: SchedulingTerms<'_>,
    notices: &mut Vec<Notice>,
) -> Result<SchedulerConfig, ConfigError> {
    let SchedulingTerms {
        inputs,
        outputs,
        parameters,
        objective,
    } = terms;
    if let Some(SchedulingChoice::SequenceBatching(batching)) = &proto.scheduling_choice {
        let terms = SequenceTerms {
            proto,
            inputs,
            outputs,
            parameters,
            objective,
        };
        let read = sequence_batching::read(&terms, batching, notices);
        return read.map(SchedulerConfig::Sequence);
    }
    sequence_batching::note_without_sequences(parameters, notices);
    let default = inference::ModelDynamicBatching::default();
    let batching = match &proto.scheduling_choice {
        Some(SchedulingChoice::EnsembleScheduling(scheduling)) => {
            let ensemble = ensemble::read(proto, scheduling, (inputs, outputs), notices)?;
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
    match &mut proto.scheduling_choice {
        Some(SchedulingChoice::DynamicBatching(batching))
            if batching.preferred_batch_size.is_empty() && preferred > 0 =>
        {
            batching.preferred_batch_size.push(preferred);
        }
        Some(SchedulingChoice::SequenceBatching(batching)) => {
            sequence_batching::write_defaults(batching, preferred);
        }
        _ => {}
    }
}
