//! What became of the requests of a simulation.

use std::time::Duration;

use skep_scheduler::BatchEnd;

/// What became of the requests of a simulation, and in which batches. It leaves out the requests of the warm-up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TraceOutcome {
    /// How many were sent.
    pub sent: usize,
    /// Over what time.
    pub span: Duration,
    /// How many were answered within the objective; without an objective, all that were answered.
    pub good: usize,
    /// How many were answered, but too late.
    pub late: usize,
    /// How many were refused, or given up before they were executed.
    pub rejected: usize,
    /// Latencies of the answered requests from arrival to answer, ascending, in nanoseconds.
    latencies: Vec<u64>,
    /// Executions, by why their batches were not larger; in the order of [`BatchEnd::ALL`].
    batches: [usize; BatchEnd::ALL.len()],
    /// Requests in these batches.
    batched: usize,
    /// Inferences per request.
    request_size: usize,
}

impl TraceOutcome {
    pub(crate) fn new(request_size: usize) -> Self {
        Self {
            request_size,
            ..Self::default()
        }
    }

    pub(crate) fn batch(&mut self, requests: usize, end: BatchEnd) {
        let index = BatchEnd::ALL.iter().position(|other| *other == end);
        self.batches[index.expect("all are in the list")] += 1;
        self.batched += requests;
    }

    pub(crate) fn answered(&mut self, latency: u64, objective: u64) {
        self.latencies.push(latency);
        if latency <= objective {
            self.good += 1;
        } else {
            self.late += 1;
        }
    }

    pub(crate) fn finish(&mut self, span: Duration) {
        self.span = span;
        self.latencies.sort_unstable();
    }

    /// Requests sent per second.
    #[must_use]
    pub fn offered(&self) -> f64 {
        self.per_second(self.sent)
    }

    /// Answers within the objective per second.
    #[must_use]
    pub fn goodput(&self) -> f64 {
        self.per_second(self.good)
    }

    /// Answers per second, in time or not.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        self.per_second(self.latencies.len())
    }

    fn per_second(&self, count: usize) -> f64 {
        count as f64 / self.span.as_secs_f64().max(1e-9)
    }

    /// The latency that this share of the answered requests did not exceed (nearest rank); `None` without an answer.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        // Between 0 and the number of latencies.
        #[allow(clippy::cast_sign_loss)]
        let rank = (share.clamp(0.0, 1.0) * self.latencies.len() as f64).ceil() as usize;
        let nanos = self.latencies.get(rank.saturating_sub(1))?;
        Some(Duration::from_nanos(*nanos))
    }

    /// How many executions there were.
    #[must_use]
    pub fn executions(&self) -> usize {
        self.batches.iter().sum()
    }

    /// Inferences per execution; `None` without an execution.
    #[must_use]
    pub fn mean_batch(&self) -> Option<f64> {
        let executions = self.executions();
        let inferences = (self.batched * self.request_size) as f64;
        (executions > 0).then(|| inferences / executions as f64)
    }

    /// How many batches ended for which reason.
    pub fn batches(&self) -> impl Iterator<Item = (BatchEnd, usize)> + '_ {
        BatchEnd::ALL.into_iter().zip(self.batches)
    }
}
