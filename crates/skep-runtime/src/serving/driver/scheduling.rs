//! From a model's configuration to the options of its scheduler.

use std::time::Duration;

use skep_config::{LatencyObjective, ModelConfig, SchedulerConfig, SequenceBatching, SlotStrategy};
use skep_scheduler::{
    DirectPolicy, Objective, OldestPolicy, Policy, Scheduler, SchedulerOptions, SequenceOptions,
    SequenceScheduler, SequenceStrategy, TritonPolicy,
};
use skep_types::ModelName;

use super::state::ModelScheduler;

/// The time between a request's arrival and its answer besides its wait and its execution: two threads wake up, and two
/// hand it over. Some 20 us if a processor is free, a time slice or two otherwise.
const MARGIN: Duration = Duration::from_millis(5);

/// The margin is at most this fraction of the objective: one 20th.
const MARGIN_SHARE: u32 = 20;

/// How a driver schedules.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scheduling {
    pub(crate) model: ModelName,
    pub(crate) options: SchedulerTerms,
    /// Whether answers leave in the order of their requests.
    pub(crate) preserve_ordering: bool,
    /// Whether the scheduler may want to be called at some moment.
    pub(crate) needs_timer: bool,
}

/// The options of either scheduler.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SchedulerTerms {
    Requests(SchedulerOptions),
    Sequences(SequenceOptions),
}

impl SchedulerTerms {
    /// How many requests may wait.
    pub(super) const fn max_waiting(&self) -> usize {
        match self {
            Self::Requests(options) => options.max_waiting,
            Self::Sequences(options) => options.max_waiting,
        }
    }

    pub(super) const fn has_objective(&self) -> bool {
        matches!(self, Self::Requests(options) if matches!(options.policy, Policy::Objective(_)))
    }

    /// The scheduler. `slots` says whether its executions need slots of a device.
    pub(super) fn scheduler(self, slots: bool) -> ModelScheduler {
        match self {
            Self::Requests(options) => {
                let options = SchedulerOptions { slots, ..options };
                ModelScheduler::Requests(Box::new(Scheduler::new(options)))
            }
            Self::Sequences(options) => {
                let options = SequenceOptions { slots, ..options };
                ModelScheduler::Sequences(Box::new(SequenceScheduler::new(options)))
            }
        }
    }
}

impl Scheduling {
    pub(crate) fn new(config: &ModelConfig, hold_until: usize) -> Self {
        let one_by_one = SchedulerOptions::one_by_one(config.max_queue_size());
        let model = config.name().clone();
        let batching = match config.scheduler() {
            SchedulerConfig::Dynamic(batching) => batching,
            SchedulerConfig::Sequence(batching) => {
                return Self {
                    model,
                    options: SchedulerTerms::Sequences(sequences(config, batching, hold_until)),
                    preserve_ordering: matches!(
                        batching.strategy,
                        SlotStrategy::Oldest {
                            preserve_ordering: true,
                            ..
                        }
                    ),
                    needs_timer: true,
                };
            }
            _ => {
                return Self {
                    model,
                    options: SchedulerTerms::Requests(one_by_one),
                    preserve_ordering: false,
                    needs_timer: false,
                };
            }
        };
        let policy = match &batching.objective {
            Some(configured) => Policy::Objective(objective(configured)),
            None => Policy::Triton(TritonPolicy {
                preferred_batch_sizes: batching.preferred_batch_sizes.clone(),
                max_queue_delay: batching.max_queue_delay,
            }),
        };
        Self {
            model,
            options: SchedulerTerms::Requests(SchedulerOptions {
                // Without a batch dimension, requests cannot be joined.
                max_batch_size: config.max_batch_size().max(1),
                policy,
                levels: batching.levels.clone(),
                default_level: batching.default_level,
                hold_until,
                ..one_by_one
            }),
            preserve_ordering: batching.preserve_ordering,
            needs_timer: batching.objective.is_some()
                || !batching.max_queue_delay.is_zero()
                || batching.levels.iter().any(|l| l.timeout.is_some()),
        }
    }
}

fn sequences(
    config: &ModelConfig,
    batching: &SequenceBatching,
    hold_until: usize,
) -> SequenceOptions {
    let strategy = match &batching.strategy {
        SlotStrategy::Direct {
            max_queue_delay,
            least_ready,
        } => SequenceStrategy::Direct(DirectPolicy {
            max_queue_delay: *max_queue_delay,
            least_ready: *least_ready,
        }),
        SlotStrategy::Oldest {
            max_candidates,
            preferred_batch_sizes,
            max_queue_delay,
            preserve_ordering: _,
        } => SequenceStrategy::Oldest(OldestPolicy {
            max_candidates: *max_candidates,
            batching: TritonPolicy {
                preferred_batch_sizes: preferred_batch_sizes.clone(),
                max_queue_delay: *max_queue_delay,
            },
        }),
    };
    SequenceOptions {
        strategy,
        max_idle: batching.max_idle,
        max_waiting: config.max_queue_size(),
        max_waiting_sequences: batching.max_waiting,
        max_wait: batching.max_wait,
        max_batch_size: config.max_batch_size().max(1),
        slots: false,
        hold_until,
    }
}

/// The part of an objective that is set aside for the way to the instance and back.
pub(crate) fn margin(objective: Duration) -> Duration {
    MARGIN.min(objective / MARGIN_SHARE)
}

fn objective(configured: &LatencyObjective) -> Objective {
    Objective {
        latency: configured.latency,
        percentile: configured.percentile,
        policy: configured.policy,
        miss_action: configured.miss_action,
        margin: margin(configured.latency),
        profile: Vec::new(),
    }
}
