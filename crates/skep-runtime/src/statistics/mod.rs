//! Counts and durations of one model version, with Triton's meaning of each.
//!
//! Source: Triton's statistics extension (`ModelStatistics`) and its metrics `nv_inference_*`. Each *request* of a
//! batch is charged the whole batch's compute time; `batch_stats` count *executions*.

mod latency;
mod options;
pub(crate) mod recorder;

pub use latency::{Latencies, Phase};
pub use options::MetricsOptions;
pub(crate) use options::RecorderOptions;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use skep_backend::RunMemory;
use skep_scheduler::BatchEnd;

use crate::clock::nanoseconds;

/// How often something happened, and how long it took in total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DurationStatistic {
    /// Occurrences.
    pub count: u64,
    /// Nanoseconds, summed.
    pub ns: u64,
}

impl DurationStatistic {
    /// Counts `count` more occurrences that took `ns` nanoseconds in total.
    pub(crate) fn add(&mut self, count: u64, ns: u64) {
        self.count += count;
        self.ns = self.ns.saturating_add(ns);
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.add(other.count, other.ns);
    }
}

/// Executions of one batch size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchStatistics {
    /// Gathering inputs.
    pub compute_input: DurationStatistic,
    /// Running the model.
    pub compute_infer: DurationStatistic,
    /// Splitting outputs.
    pub compute_output: DurationStatistic,
}

impl BatchStatistics {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.compute_input.merge(other.compute_input);
        self.compute_infer.merge(other.compute_infer);
        self.compute_output.merge(other.compute_output);
    }
}

/// Why a request failed, as Triton's `reason` label has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureReason {
    /// Refused before execution: full queue, time-out, stop.
    Rejected,
    /// The client went away.
    Canceled,
    /// The backend failed.
    Backend,
    /// Anything else.
    Other,
}

impl FailureReason {
    /// All reasons, in the order in which they are reported.
    pub const ALL: [Self; 4] = [Self::Rejected, Self::Canceled, Self::Backend, Self::Other];

    /// The index in [`Self::ALL`].
    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// The label's value.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Rejected => "REJECTED",
            Self::Canceled => "CANCELED",
            Self::Backend => "BACKEND",
            Self::Other => "OTHER",
        }
    }
}

/// How many batches were closed for which reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchEnds([u64; BatchEnd::ALL.len()]);

impl BatchEnds {
    pub(crate) fn count(&mut self, end: BatchEnd) {
        self.0[end as usize] += 1;
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (mine, more) in self.0.iter_mut().zip(other.0) {
            *mine += more;
        }
    }

    /// Every reason's name, and how many batches it closed.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        BatchEnd::ALL.map(BatchEnd::name).into_iter().zip(self.0)
    }
}

/// How well a latency objective was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SloStatistics {
    /// How long an answer may take, from the request's arrival in the runtime.
    pub objective: Duration,
    /// Requests that were answered within the objective.
    pub in_time: u64,
    /// Requests that were answered later.
    pub late: u64,
    /// Requests that got an error because they had waited too long or could no longer be answered in time.
    pub given_up: u64,
}

impl SloStatistics {
    /// The objective in nanoseconds, as the protocol reports it.
    #[must_use]
    pub fn objective_ns(&self) -> u64 {
        nanoseconds(self.objective)
    }
}

/// The figures of a version at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatisticsSnapshot {
    /// When the last inference was executed, in milliseconds since the Unix epoch; 0 for never.
    pub last_inference_ms: u64,
    /// Inferences: requests times their batch sizes.
    pub inference_count: u64,
    /// Executions of the model.
    pub execution_count: u64,
    /// Requests answered, from arrival in the runtime to the answer.
    pub success: DurationStatistic,
    /// Requests that failed after they were enqueued.
    pub fail: DurationStatistic,
    /// Time in the queue.
    pub queue: DurationStatistic,
    /// Gathering inputs.
    pub compute_input: DurationStatistic,
    /// Running the model.
    pub compute_infer: DurationStatistic,
    /// Splitting outputs.
    pub compute_output: DurationStatistic,
    /// Requests whose response was in the cache: the search for it. They count in `success` and `queue` as well, and in
    /// nothing that an execution has.
    pub cache_hit: DurationStatistic,
    /// Requests whose response was not in the cache: the search for it, and keeping it later.
    pub cache_miss: DurationStatistic,
    /// By batch size.
    pub batches: BTreeMap<usize, BatchStatistics>,
    /// Executions, including failed ones, by the reason that closed their batch.
    pub batch_ends: BatchEnds,
    /// Failures by reason, in the order of [`FailureReason::ALL`].
    pub failures: [u64; 4],
    /// What each instance did, in the order of their creation.
    pub instances: Vec<InstanceStatistics>,
    /// Latency histograms, of the phases that have one.
    pub histograms: Vec<HistogramStatistics>,
    /// How well the latency objective was met; `None` if the model has no objective. Requests that failed for other
    /// reasons do not count.
    pub slo: Option<SloStatistics>,
}

/// How many requests took how long in one phase: `success.count` requests in total.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistogramStatistics {
    /// The phase.
    pub phase: Phase,
    /// Upper bounds in nanoseconds, ascending; each belongs to its bucket.
    pub bounds_ns: Arc<[u64]>,
    /// Requests by bucket, not cumulated; the last count is for those above every bound.
    pub counts: Vec<u64>,
}

impl HistogramStatistics {
    pub(crate) fn new(phase: Phase, bounds_ns: &Arc<[u64]>) -> Self {
        Self {
            phase,
            bounds_ns: Arc::clone(bounds_ns),
            counts: vec![0; bounds_ns.len() + 1],
        }
    }

    pub(crate) fn add(&mut self, counts: &[u64]) {
        for (mine, more) in self.counts.iter_mut().zip(counts) {
            *mine += more;
        }
    }
}

/// How much one instance worked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InstanceStatistics {
    /// Triton's name for it, `<model>_<group>_<index>`.
    pub name: Arc<str>,
    /// Nanoseconds in which it held a batch, including the present one.
    pub busy_ns: u64,
    /// The memory of its last run's intermediate tensors; `None` before a run, or if the backend cannot tell.
    pub memory: Option<RunMemory>,
    /// How often its executable copy was recreated, after a panic or the end of its process.
    pub restarts: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_the_index_of_their_place() {
        for (index, reason) in FailureReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), index);
        }
        for (index, end) in BatchEnd::ALL.into_iter().enumerate() {
            assert_eq!(end as usize, index);
        }
    }
}
