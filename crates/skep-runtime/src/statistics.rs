//! Counts and durations of one model version, with Triton's meaning of each.
//!
//! Source: Triton's statistics extension (`ModelStatistics`) and its metrics `nv_inference_*`. Each *request* of a
//! batch is charged the whole batch's compute time; `batch_stats` count *executions*.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::clock;

/// How often something happened and how long it took altogether.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DurationStatistic {
    /// Occurrences.
    pub count: u64,
    /// Nanoseconds, summed.
    pub ns: u64,
}

impl DurationStatistic {
    fn add(&mut self, count: u64, each: Duration) {
        let each = u64::try_from(each.as_nanos()).unwrap_or(u64::MAX);
        self.count += count;
        self.ns = self.ns.saturating_add(each.saturating_mul(count));
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

/// The figures at one moment.
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
    /// By batch size.
    pub batches: BTreeMap<usize, BatchStatistics>,
    /// Failures by reason, in the order of [`FailureReason::ALL`].
    pub failures: [u64; 4],
}

/// The durations of one execution.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExecutionTimes {
    pub(crate) input: Duration,
    pub(crate) infer: Duration,
    pub(crate) output: Duration,
}

/// One request of an execution: when it arrived and how long it waited.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestTimes {
    pub(crate) total: Duration,
    pub(crate) queue: Duration,
}

/// The live figures of one model version.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    figures: Mutex<StatisticsSnapshot>,
}

impl Statistics {
    /// Records a successful execution of a batch of `batch_size` inferences.
    pub(crate) fn executed(
        &self,
        batch_size: usize,
        times: ExecutionTimes,
        requests: impl Iterator<Item = RequestTimes>,
    ) {
        let mut figures = self.lock();
        for request in requests {
            figures.success.add(1, request.total);
            figures.queue.add(1, request.queue);
            figures.compute_input.add(1, times.input);
            figures.compute_infer.add(1, times.infer);
            figures.compute_output.add(1, times.output);
        }
        figures.inference_count += batch_size as u64;
        figures.execution_count += 1;
        figures.last_inference_ms = clock::unix_millis();
        let batch = figures.batches.entry(batch_size).or_default();
        batch.compute_input.add(1, times.input);
        batch.compute_infer.add(1, times.infer);
        batch.compute_output.add(1, times.output);
    }

    /// Records a request that failed after it was enqueued.
    pub(crate) fn failed(&self, reason: FailureReason, total: Duration) {
        let mut figures = self.lock();
        figures.fail.add(1, total);
        let index = FailureReason::ALL
            .iter()
            .position(|r| *r == reason)
            .unwrap_or(FailureReason::ALL.len() - 1);
        figures.failures[index] += 1;
    }

    pub(crate) fn snapshot(&self) -> StatisticsSnapshot {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, StatisticsSnapshot> {
        // The figures are plain numbers: a panic elsewhere cannot leave them half-written in a way that matters.
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_charged_its_batchs_time_and_a_batch_counts_once() {
        let statistics = Statistics::default();
        let ns = Duration::from_nanos;
        let times = ExecutionTimes {
            input: ns(1),
            infer: ns(10),
            output: ns(2),
        };
        let request = RequestTimes {
            total: ns(100),
            queue: ns(50),
        };
        statistics.executed(5, times, [request, request].into_iter());
        statistics.failed(FailureReason::Backend, ns(7));
        let figures = statistics.snapshot();
        assert_eq!(figures.inference_count, 5);
        assert_eq!(figures.execution_count, 1);
        assert_eq!(figures.success, DurationStatistic { count: 2, ns: 200 });
        assert_eq!(
            figures.compute_infer,
            DurationStatistic { count: 2, ns: 20 }
        );
        assert_eq!(
            figures.batches[&5].compute_infer,
            DurationStatistic { count: 1, ns: 10 }
        );
        assert_eq!(figures.failures, [0, 0, 1, 0]);
        assert_eq!(figures.fail, DurationStatistic { count: 1, ns: 7 });
    }
}
