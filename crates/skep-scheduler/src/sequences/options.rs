//! Options of a scheduler of sequences. The caller has validated them.

use std::time::Duration;

use crate::TritonPolicy;

/// Options of a [`SequenceScheduler`](crate::SequenceScheduler).
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceOptions {
    /// How sequences come to instances.
    pub strategy: SequenceStrategy,
    /// How long a sequence may be without a request; it ends then.
    pub max_idle: Duration,
    /// How many requests may wait in all, at least 1.
    pub max_waiting: usize,
    /// How many sequences may wait for a slot; `None` for no limit of their own.
    pub max_waiting_sequences: Option<usize>,
    /// How long a sequence may wait for a slot; `None` for no limit. A request's own time-out shortens it.
    pub max_wait: Option<Duration>,
    /// The most inferences of a batch, at least 1.
    pub max_batch_size: usize,
    /// Whether an execution needs a compute slot, which the scheduler asks for with
    /// [`Output::WantSlot`](crate::Output::WantSlot).
    pub slots: bool,
    /// Executes nothing before this many requests wait for the first time; for tests.
    pub hold_until: usize,
}

/// How sequences come to instances.
///
/// Source: Triton, user guide, "Batchers" (sequence batcher); `ModelSequenceBatching` in `model_config.proto`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SequenceStrategy {
    /// A sequence has one slot of one instance, which is its row in each batch. An instance has as many slots as its
    /// batch has inferences.
    Direct(DirectPolicy),
    /// The oldest requests of the candidates form the batches, on any instance.
    Oldest(OldestPolicy),
}

/// Settings of [`SequenceStrategy::Direct`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DirectPolicy {
    /// How long the oldest request of a batch waits for further slots.
    pub max_queue_delay: Duration,
    /// A batch with this many ready slots does not wait. With 0 or 1, none does.
    pub least_ready: usize,
}

/// Settings of [`SequenceStrategy::Oldest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldestPolicy {
    /// The sequences for each instance that may have requests in batches, at least 1. Further ones wait.
    pub max_candidates: usize,
    /// How batches are formed of the candidates' oldest requests.
    pub batching: TritonPolicy,
}
