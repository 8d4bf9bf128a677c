//! From a model's configuration to the options of its scheduler.

use std::time::Duration;

use skep_config::{LatencyObjective, ModelConfig, SchedulerConfig};
use skep_scheduler::{Objective, Policy, SchedulerOptions, TritonPolicy};

/// The time between a request's arrival and its answer besides its wait and its execution: two threads wake up, and two
/// hand it over. Some 20 us if a processor is free, a time slice or two otherwise.
const MARGIN: Duration = Duration::from_millis(5);

/// The margin is at most this fraction of the objective: one 20th.
const MARGIN_SHARE: u32 = 20;

/// How a driver schedules.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scheduling {
    pub(crate) options: SchedulerOptions,
    /// Whether answers leave in the order of their requests.
    pub(crate) preserve_ordering: bool,
    /// Whether the scheduler may want to be called at some moment.
    pub(crate) needs_timer: bool,
}

impl Scheduling {
    pub(crate) fn new(config: &ModelConfig, hold_until: usize) -> Self {
        let one_by_one = SchedulerOptions::one_by_one(config.max_queue_size());
        let SchedulerConfig::Dynamic(batching) = config.scheduler() else {
            return Self {
                options: one_by_one,
                preserve_ordering: false,
                needs_timer: false,
            };
        };
        let policy = match &batching.objective {
            Some(configured) => Policy::Objective(objective(configured)),
            None => Policy::Triton(TritonPolicy {
                preferred_batch_sizes: batching.preferred_batch_sizes.clone(),
                max_queue_delay: batching.max_queue_delay,
            }),
        };
        Self {
            options: SchedulerOptions {
                // Without a batch dimension, requests cannot be joined.
                max_batch_size: config.max_batch_size().max(1),
                policy,
                levels: batching.levels.clone(),
                default_level: batching.default_level,
                hold_until,
                ..one_by_one
            },
            preserve_ordering: batching.preserve_ordering,
            needs_timer: batching.objective.is_some()
                || !batching.max_queue_delay.is_zero()
                || batching.levels.iter().any(|l| l.timeout.is_some()),
        }
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
