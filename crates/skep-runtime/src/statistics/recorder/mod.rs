//! The live figures of a model version: one recorder for each instance, summed when somebody asks.
//!
//! An instance records a whole batch under its own lock, which only an occasional reader contends for, from instants
//! that it has anyway. Nothing is allocated once a batch size has been seen. On the request path this costs one lock
//! and some additions for each batch, and two subtractions for each request.

mod cached;
mod instance;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use skep_host::lock;
use skep_types::Time;

pub(crate) use instance::{ComposedTimes, ExecutedSize, ExecutionTimes, InstanceRecorder};

use self::{cached::CachedRequests, instance::RecorderFigures};
use crate::{
    clock::{self, nanoseconds},
    statistics::{
        DurationStatistic, FailureReason, HistogramStatistics, SloStatistics, StatisticsSnapshot,
        latency::Latencies, options::RecorderOptions,
    },
};

/// The live figures of one model version.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    options: RecorderOptions,
    recorders: Mutex<Vec<Arc<InstanceRecorder>>>,
    failed: Mutex<FailedRequests>,
    /// `None` until a response cache has been asked.
    cached: Mutex<Option<Box<CachedRequests>>>,
    /// The last execution that a snapshot reported, and its time of day, so that every snapshot reports the same time.
    last_inference: Mutex<Option<(Time, u64)>>,
}

/// Requests that failed after they were enqueued.
#[derive(Debug, Default)]
struct FailedRequests {
    requests: DurationStatistic,
    /// Failed requests that were given up for being late.
    given_up: u64,
    /// In the order of [`FailureReason::ALL`].
    reasons: [u64; 4],
}

impl Statistics {
    pub(crate) fn new(options: RecorderOptions) -> Self {
        Self {
            options,
            ..Self::default()
        }
    }

    /// A recorder for an instance: that of an ended instance of the same name if there is one, so that recorders stay
    /// few.
    pub(crate) fn recorder(&self, name: &str) -> Arc<InstanceRecorder> {
        let mut recorders = lock(&self.recorders);
        if let Some(free) = recorders.iter().find(|recorder| recorder.reuse(name)) {
            return Arc::clone(free);
        }
        let recorder = InstanceRecorder::new(name, &self.options);
        recorders.push(Arc::clone(&recorder));
        recorder
    }

    /// Records a request that failed after it was enqueued.
    pub(crate) fn failed(&self, reason: FailureReason, total: Duration) {
        let mut failed = lock(&self.failed);
        failed.requests.add(1, nanoseconds(total));
        failed.reasons[reason.index()] += 1;
    }

    /// Notes that a request which failed was given up for being late.
    pub(crate) fn gave_up(&self) {
        lock(&self.failed).given_up += 1;
    }

    /// Records a request whose response was found in the cache, by a search from `began` to `ended`.
    ///
    /// Call it before the answer is sent.
    pub(crate) fn found(&self, arrived: Time, began: Time, ended: Time) {
        self.with_cached(|cached| cached.found(arrived, began, ended));
    }

    /// Records that a response was not found, and that looking for it and keeping it later took so long together.
    pub(crate) fn missed(&self, took: Duration) {
        self.with_cached(|cached| cached.missed(took));
    }

    fn with_cached(&self, record: impl FnOnce(&mut CachedRequests)) {
        let mut cached = lock(&self.cached);
        record(cached.get_or_insert_with(|| Box::new(CachedRequests::new(&self.options))));
    }

    /// How many requests have ended, well or not, and when the last execution did or the last response was found; cheaper
    /// than a snapshot.
    pub(crate) fn ended(&self) -> (u64, Option<Time>) {
        let mut ended = lock(&self.failed).requests.count;
        let mut last = None;
        if let Some(cached) = &*lock(&self.cached) {
            ended += cached.figures.success.count;
            last = cached.last_hit;
        }
        for recorder in lock(&self.recorders).iter() {
            let figures = recorder.figures();
            ended += figures.success.count;
            last = last.max(figures.last_inference);
        }
        (ended, last)
    }

    /// How many inferences have ended well, and requests that have failed, without those that needed no instance; cheaper
    /// than a snapshot.
    pub(crate) fn inferences(&self) -> u64 {
        let failed = lock(&self.failed).requests.count;
        let recorders = lock(&self.recorders);
        let inferences = recorders
            .iter()
            .map(|recorder| recorder.figures().inference_count);
        failed + inferences.sum::<u64>()
    }

    /// For how long instances have held batches, over all of them, the ended ones included.
    pub(crate) fn busy(&self) -> Duration {
        let recorders = lock(&self.recorders);
        let busy = recorders
            .iter()
            .map(|recorder| recorder.busy_ns(&recorder.figures()));
        Duration::from_nanos(busy.sum())
    }

    /// The figures now. Those of an instance hold all of a batch or nothing.
    pub(crate) fn snapshot(&self) -> StatisticsSnapshot {
        let recorders = lock(&self.recorders).clone();
        let histograms = self.options.histograms.iter();
        let mut sum = StatisticsSnapshot {
            histograms: histograms
                .map(|(phase, bounds)| HistogramStatistics::new(*phase, bounds))
                .collect(),
            ..Default::default()
        };
        let mut last = None;
        let (mut in_time, mut late) = (0, 0);
        for recorder in recorders {
            let figures = recorder.figures();
            sum.instances.extend(recorder.instance(&figures));
            last = last.max(figures.last_inference);
            in_time += figures.in_time;
            late += figures.late;
            add(&mut sum, &figures);
        }
        if let Some(cached) = &*lock(&self.cached) {
            in_time += cached.figures.in_time;
            late += cached.figures.late;
            add(&mut sum, &cached.figures);
            (sum.cache_hit, sum.cache_miss) = (cached.hit, cached.miss);
        }
        sum.last_inference_ms = self.unix_millis(last);
        let failed = lock(&self.failed);
        sum.fail = failed.requests;
        sum.failures = failed.reasons;
        sum.slo = self.options.objective.map(|objective| SloStatistics {
            objective,
            in_time,
            late,
            given_up: failed.given_up,
        });
        sum
    }

    /// Latencies of the last minute, if they are recorded.
    pub(crate) fn latencies(&self) -> Option<Latencies> {
        if !self.options.quantiles {
            return None;
        }
        let recorders = lock(&self.recorders).clone();
        let now = clock::now();
        let mut sum = Latencies::default();
        for recorder in recorders {
            if let Some(window) = &recorder.figures().window {
                sum.add(window, now);
            }
        }
        if let Some(cached) = &*lock(&self.cached)
            && let Some(window) = &cached.figures.window
        {
            sum.add(window, now);
        }
        Some(sum)
    }

    /// The time of day of an instant, 0 for never. The clock is read here, never on the request path.
    fn unix_millis(&self, instant: Option<Time>) -> u64 {
        let Some(instant) = instant else {
            return 0;
        };
        let mut known = lock(&self.last_inference);
        // Another snapshot may have seen a later execution meanwhile.
        match *known {
            Some((at, millis)) if at >= instant => millis,
            _ => {
                // The monotonic clock first, so that the result lies neither before the instant nor after now.
                let ago = clock::now().since(instant);
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                let millis = u64::try_from(now.saturating_sub(ago).as_millis()).unwrap_or(u64::MAX);
                *known = Some((instant, millis));
                millis
            }
        }
    }
}

/// Adds the figures of one recorder to those of a version.
fn add(sum: &mut StatisticsSnapshot, figures: &RecorderFigures) {
    sum.inference_count += figures.inference_count;
    sum.execution_count += figures.execution_count;
    sum.batch_ends.merge(figures.batch_ends);
    sum.success.merge(figures.success);
    sum.queue.merge(figures.queue);
    sum.compute_input.merge(figures.compute_input);
    sum.compute_infer.merge(figures.compute_infer);
    sum.compute_output.merge(figures.compute_output);
    for (size, batch) in &figures.batches {
        sum.batches.entry(*size).or_default().merge(batch);
    }
    for (sum, (_, buckets)) in sum.histograms.iter_mut().zip(&figures.histograms) {
        sum.add(buckets.counts());
    }
}

#[cfg(test)]
mod tests {
    use skep_scheduler::BatchEnd;

    use super::*;
    use crate::statistics::{BatchStatistics, latency::Phase, recorder::instance::TOO_SLOW};

    /// An execution of 1 + 10 + 2 ns, `taken` at the given instant.
    fn execution(taken: Time) -> ExecutionTimes {
        ExecutionTimes {
            taken,
            gathered: taken + Duration::from_nanos(1),
            ran: taken + Duration::from_nanos(11),
            ended: taken + Duration::from_nanos(13),
        }
    }

    fn statistic(count: u64, ns: u64) -> DurationStatistic {
        DurationStatistic { count, ns }
    }

    #[test]
    fn requests_are_charged_the_time_of_their_batch_and_a_batch_counts_once() {
        let statistics = Statistics::default();
        let arrived = clock::now();
        let taken = arrived + Duration::from_nanos(50);
        let recorder = statistics.recorder("m_0");
        let end = Some(BatchEnd::QueueEmpty);
        recorder.executed(5, end, &execution(taken), [arrived, arrived].into_iter());
        recorder.failed(BatchEnd::Delay, taken, taken);
        statistics.failed(FailureReason::Backend, Duration::from_nanos(7));
        let figures = statistics.snapshot();
        assert_eq!(figures.inference_count, 5);
        assert_eq!(figures.execution_count, 1);
        assert_eq!(figures.success, statistic(2, 126));
        assert_eq!(figures.queue, statistic(2, 100));
        assert_eq!(figures.compute_input, statistic(2, 2));
        assert_eq!(figures.compute_infer, statistic(2, 20));
        assert_eq!(figures.compute_output, statistic(2, 4));
        let batch = BatchStatistics {
            compute_input: statistic(1, 1),
            compute_infer: statistic(1, 10),
            compute_output: statistic(1, 2),
        };
        assert_eq!(figures.batches, [(5, batch)].into());
        assert_eq!(figures.failures, [0, 0, 1, 0]);
        assert_eq!(figures.fail, statistic(1, 7));
        assert_eq!(figures.instances[0].busy_ns, 13);
        let ends = figures.batch_ends.iter().filter(|(_, count)| *count > 0);
        assert_eq!(
            ends.collect::<Vec<_>>(),
            [("queue_empty", 1), ("queue_delay", 1)]
        );
    }

    #[test]
    fn instances_are_summed() {
        let statistics = Statistics::default();
        let (a, b) = (statistics.recorder("m_0"), statistics.recorder("m_1"));
        let now = clock::now();
        for (recorder, sizes) in [(&a, [3, 1, 3]), (&b, [8, 3, 1])] {
            for size in sizes {
                recorder.executed(size, None, &execution(now), [now].into_iter());
            }
        }
        let figures = statistics.snapshot();
        assert_eq!((figures.inference_count, figures.execution_count), (19, 6));
        let counts: Vec<(usize, u64)> = figures
            .batches
            .iter()
            .map(|(size, batch)| (*size, batch.compute_infer.count))
            .collect();
        assert_eq!(counts, [(1, 2), (3, 3), (8, 1)]);
        let names: Vec<&str> = figures.instances.iter().map(|i| &*i.name).collect();
        assert_eq!(names, ["m_0", "m_1"]);
    }

    #[test]
    fn distributions_are_summed_and_count_every_request() {
        let statistics = Statistics::new(RecorderOptions {
            quantiles: true,
            histograms: vec![(Phase::Queue, [40, 100].into())],
            objective: None,
        });
        let (a, b) = (statistics.recorder("m_0"), statistics.recorder("m_1"));
        let arrived = clock::now();
        for (recorder, waited_ns) in [(&a, 40), (&b, 41), (&b, 2_000_000)] {
            let taken = arrived + Duration::from_nanos(waited_ns);
            recorder.executed(2, None, &execution(taken), [arrived, arrived].into_iter());
        }
        let figures = statistics.snapshot();
        assert_eq!(figures.histograms[0].phase, Phase::Queue);
        assert_eq!(figures.histograms[0].counts, [2, 2, 2]);
        assert_eq!(figures.success.count, 6);
        let latencies = statistics.latencies().expect("recorded");
        assert_eq!(latencies.quantile_us(Phase::Queue, 0.5), Some(0.0));
        let slowest = latencies.quantile_us(Phase::Queue, 0.99).expect("recorded");
        assert!((slowest - 2_000.0).abs() <= 2_000.0 / 128.0);
        assert!(Statistics::default().latencies().is_none());
    }

    #[test]
    fn requests_count_against_the_objective_and_warm_ups_do_not() {
        let statistics = Statistics::new(RecorderOptions {
            objective: Some(Duration::from_nanos(60)),
            ..RecorderOptions::default()
        });
        let recorder = statistics.recorder("m_0");
        let taken = clock::now() + Duration::from_nanos(100);
        let waited = |ns| Time::from_nanos(taken.as_nanos() - ns);
        // The execution takes 13 ns: 60 ns altogether are in time, 61 are late.
        let arrivals = [waited(47), waited(48), taken];
        let end = Some(BatchEnd::Waited);
        recorder.executed(3, end, &execution(taken), arrivals.into_iter());
        recorder.executed(1, None, &execution(taken), [taken].into_iter());
        statistics.gave_up();
        let expected = SloStatistics {
            objective: Duration::from_nanos(60),
            in_time: 2,
            late: 1,
            given_up: 1,
        };
        assert_eq!(statistics.snapshot().slo, Some(expected));
        assert_eq!(Statistics::default().snapshot().slo, None);
    }

    #[test]
    fn a_too_slow_single_inference_is_reported_once() {
        let statistics = Statistics::new(RecorderOptions {
            objective: Some(Duration::from_nanos(12)),
            ..RecorderOptions::default()
        });
        let recorder = statistics.recorder("m_0");
        let taken = clock::now();
        let run = |size| {
            let end = Some(BatchEnd::QueueEmpty);
            recorder.executed(size, end, &execution(taken), [taken].into_iter())
        };
        // Larger batches are the policy's concern.
        assert!(!(0..2 * TOO_SLOW).any(|_| run(2)));
        assert!(!(1..TOO_SLOW).any(|_| run(1)));
        assert!(run(1), "13 ns against 12, eight times");
        assert!(!run(1), "reported already");
    }

    #[test]
    fn responses_that_were_found_are_requests_without_an_execution() {
        let statistics = Statistics::new(RecorderOptions {
            quantiles: true,
            histograms: vec![
                (Phase::Request, [15, 100].into()),
                (Phase::ComputeInfer, [100].into()),
            ],
            objective: Some(Duration::from_nanos(20)),
        });
        assert_eq!(statistics.ended(), (0, None));
        let arrived = clock::now();
        let after = |ns| arrived + Duration::from_nanos(ns);
        let recorder = statistics.recorder("m_0");
        let end = Some(BatchEnd::QueueEmpty);
        recorder.executed(2, end, &execution(arrived), [arrived].into_iter());
        statistics.missed(Duration::from_nanos(5));
        statistics.found(arrived, after(3), after(10));
        statistics.found(arrived, after(1), after(21));
        let figures = statistics.snapshot();
        assert_eq!(figures.cache_hit, statistic(2, 27));
        assert_eq!(figures.cache_miss, statistic(1, 5));
        assert_eq!(figures.success, statistic(3, 13 + 31));
        assert_eq!(figures.queue, statistic(3, 4));
        assert_eq!((figures.inference_count, figures.execution_count), (2, 1));
        assert_eq!(figures.compute_infer, statistic(1, 10));
        assert_eq!(figures.histograms[0].counts, [2, 1, 0]);
        assert_eq!(figures.histograms[1].counts, [1, 0]);
        let slo = figures.slo.expect("an objective");
        assert_eq!((slo.in_time, slo.late), (2, 1));
        // A use of the model, but no work for its instances.
        assert_eq!(statistics.ended(), (3, Some(after(21))));
        assert_eq!(statistics.inferences(), 2);
        let latencies = statistics.latencies().expect("recorded");
        assert_eq!(latencies.quantile_us(Phase::Request, 1.0), Some(0.0));
    }

    fn busy_ns(statistics: &Statistics) -> u64 {
        statistics.snapshot().instances[0].busy_ns
    }

    #[test]
    fn a_running_batch_is_busy_time_and_counts_once() {
        let statistics = Statistics::default();
        let recorder = statistics.recorder("m_0");
        assert_eq!(busy_ns(&statistics), 0);
        let taken = clock::now();
        recorder.began(taken);
        let running = loop {
            match busy_ns(&statistics) {
                0 => std::hint::spin_loop(),
                busy => break busy,
            }
        };
        assert!(u128::from(running) <= clock::now().since(taken).as_nanos());
        recorder.failed(BatchEnd::Delay, taken, taken + Duration::from_nanos(70));
        assert_eq!(busy_ns(&statistics), 70);
    }

    fn unix_time() -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).expect("now")
    }

    #[test]
    fn every_snapshot_reports_the_same_time_of_the_last_inference() {
        let statistics = Statistics::default();
        assert_eq!(statistics.snapshot().last_inference_ms, 0);
        let recorder = statistics.recorder("m_0");
        let before = unix_time().as_millis();
        let taken = clock::now();
        recorder.executed(1, None, &execution(taken), [taken].into_iter());
        let first = statistics.snapshot().last_inference_ms;
        assert!(before <= u128::from(first) && u128::from(first) <= unix_time().as_millis());
        for _ in 0..1000 {
            assert_eq!(statistics.snapshot().last_inference_ms, first);
        }
    }
}
