//! Options of a scheduler. The caller has validated them.

use std::time::Duration;

use skep_types::{ObjectivePolicy, Percentile, QueuePolicy, TimeoutAction};

/// Options of a scheduler.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerOptions {
    /// How many requests may wait in all, at least 1.
    pub max_waiting: usize,
    /// The most inferences of a batch, at least 1. A single request with more still runs, alone.
    pub max_batch_size: usize,
    /// How batches are formed.
    pub policy: Policy,
    /// Priority levels in the order of service; at least one.
    pub levels: Vec<QueuePolicy>,
    /// Index of the level of requests that name no level, or one that does not exist.
    pub default_level: usize,
    /// Whether an execution needs a compute slot, which the scheduler asks for with
    /// [`Output::WantSlot`](crate::Output::WantSlot).
    pub slots: bool,
    /// Executes nothing before this many requests wait for the first time; for tests.
    pub hold_until: usize,
}

impl SchedulerOptions {
    /// Triton's default scheduler: requests run one by one, first come, first served.
    #[must_use]
    pub fn one_by_one(max_waiting: usize) -> Self {
        Self {
            max_waiting,
            max_batch_size: 1,
            policy: Policy::OneByOne,
            levels: vec![QueuePolicy::default()],
            default_level: 0,
            slots: false,
            hold_until: 0,
        }
    }
}

/// How batches are formed.
#[derive(Debug, Clone, PartialEq)]
pub enum Policy {
    /// Requests are never merged (Triton's default scheduler).
    OneByOne,
    /// Triton's dynamic batcher.
    Triton(TritonPolicy),
    /// Batches that keep a latency objective.
    Objective(Objective),
}

/// A latency objective, and how to keep it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objective {
    /// How long after its arrival a request should be answered. A request's own time-out, and its level's, shorten it.
    pub latency: Duration,
    /// The percentile of latency that should keep to it: how long executions take is planned by it.
    pub percentile: Percentile,
    /// How batches are formed.
    pub policy: ObjectivePolicy,
    /// What happens to a request that can no longer be answered in time.
    pub miss_action: TimeoutAction,
    /// Time between a request's arrival and its answer beside queue and execution: deadlines are earlier by this.
    pub margin: Duration,
    /// Batch sizes with measured latencies; may be empty.
    pub profile: Vec<(usize, Duration)>,
}

/// Settings of Triton's dynamic batcher.
///
/// Source: Triton Inference Server, user guide, "Batchers" (dynamic batcher); `ModelDynamicBatching` in
/// `model_config.proto`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TritonPolicy {
    /// Sizes at which a batch leaves at once, ascending, from 1 to the maximum; empty means the maximum.
    pub preferred_batch_sizes: Vec<usize>,
    /// How long the oldest request of a batch waits for others.
    pub max_queue_delay: Duration,
}
