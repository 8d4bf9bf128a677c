//! The live figures of a model version: one shard an instance, summed up when somebody looks.
//!
//! An instance records a whole batch under its own lock, which nobody contends for but a reader now and then, from
//! instants that it has anyway; nothing is allocated once a batch size has been seen. On the request path this costs one
//! lock and some additions a batch and two subtractions a request.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use skep_backend::RunMemory;
use skep_host::lock;
use skep_scheduler::BatchEnd;
use skep_types::Time;

use crate::{
    BatchEnds, BatchStatistics, FailureReason, InstanceStatistics, Latencies, Phase, SloStatistics,
    StatisticsSnapshot,
    clock::{self, nanoseconds},
    statistics::{
        DurationStatistic, HistogramStatistics,
        latency::{Buckets, Window},
        options::RecorderOptions,
    },
};

/// When the phases of one execution ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Execution {
    /// The instance took the batch.
    pub(crate) taken: Time,
    /// The inputs were gathered.
    pub(crate) gathered: Time,
    /// The model had run.
    pub(crate) ran: Time,
    /// The outputs were split.
    pub(crate) ended: Time,
}

/// The live figures of one model version.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    recording: RecorderOptions,
    recorders: Mutex<Vec<Arc<Recorder>>>,
    failed: Mutex<Failed>,
    /// The last execution that was looked at, and the time of day that it was given then: the same at every look.
    last_inference: Mutex<Option<(Time, u64)>>,
}

/// The figures of one instance. Only its own thread records.
///
/// In a cache line of its own (two, since processors fetch lines in pairs): instances must not slow each other down.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Recorder {
    figures: Mutex<Figures>,
    /// When the batch that runs now was taken, on the process's clock; [`IDLE`] without one.
    running_since_ns: AtomicU64,
    /// What its last run took, where the backend can see it.
    memory: Mutex<Option<RunMemory>>,
    /// How often its executable copy was made again.
    restarts: AtomicU64,
    name: Arc<str>,
    /// The instance was taken away; its figures still count.
    has_ended: AtomicBool,
}

/// So many executions of a single inference in a row that take longer than the objective are no accident.
const TOO_SLOW: u32 = 8;

/// No batch runs.
const IDLE: u64 = u64::MAX;

#[derive(Debug, Default)]
struct Figures {
    success: DurationStatistic,
    queue: DurationStatistic,
    compute_input: DurationStatistic,
    compute_infer: DurationStatistic,
    compute_output: DurationStatistic,
    inference_count: u64,
    execution_count: u64,
    busy_ns: u64,
    last_inference: Option<Time>,
    /// By batch size, ascending. A handful: looking one up is a few comparisons.
    batches: Vec<(usize, BatchStatistics)>,
    batch_ends: BatchEnds,
    window: Option<Box<Window>>,
    histograms: Vec<(Phase, Buckets)>,
    /// The latency objective in nanoseconds; without one everything is in time.
    objective_ns: u64,
    in_time: u64,
    late: u64,
    /// Executions of a single inference that took longer than the objective by themselves, one after the other.
    too_slow: u32,
}

#[derive(Debug, Default)]
struct Failed {
    requests: DurationStatistic,
    /// Those among them that were given up for being late.
    given_up: u64,
    /// In the order of [`FailureReason::ALL`].
    reasons: [u64; 4],
}

impl Recorder {
    /// The instance has ended: it is no longer listed, and its figures still count.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
        *lock(&self.memory) = None;
    }

    /// Notes what the last run took.
    pub(crate) fn took(&self, memory: RunMemory) {
        *lock(&self.memory) = Some(memory);
    }

    /// Notes that the instance's executable copy was made again.
    pub(crate) fn restarted(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the instance took a batch.
    pub(crate) fn began(&self, taken: Time) {
        self.running_since_ns
            .store(taken.as_nanos(), Ordering::Relaxed);
    }

    /// Notes that the batch ended without figures: it failed.
    pub(crate) fn gave_up(&self, end: BatchEnd, taken: Time, ended: Time) {
        let mut figures = lock(&self.figures);
        figures.batch_ends.count(end);
        figures.busy_ns += ns(ended, taken);
        self.running_since_ns.store(IDLE, Ordering::Relaxed);
    }

    /// Records a successful execution of `batch_size` inferences, for requests that arrived at `arrivals`; no `end` where
    /// no scheduler made the batch.
    ///
    /// Before the answers are sent, so that statistics never lag behind what a client has seen. Whether it has become clear just
    /// now that a single inference takes longer than the objective: at most once an instance.
    pub(crate) fn executed(
        &self,
        batch_size: usize,
        end: Option<BatchEnd>,
        at: &Execution,
        arrivals: impl Iterator<Item = Time>,
    ) -> bool {
        let input = ns(at.gathered, at.taken);
        let infer = ns(at.ran, at.gathered);
        let output = ns(at.ended, at.ran);
        let mut figures = lock(&self.figures);
        let (mut requests, mut late) = (0, 0);
        let mut is_clear = false;
        for arrived in arrivals {
            requests += 1;
            let (total, queue) = (ns(at.ended, arrived), ns(at.taken, arrived));
            late += u64::from(total > figures.objective_ns);
            figures.success.ns += total;
            figures.queue.ns += queue;
            figures.distribute(
                at.ended,
                [(Phase::Request, total), (Phase::Queue, queue)],
                1,
            );
        }
        figures.success.count += requests;
        figures.queue.count += requests;
        figures.compute_input.add(requests, input * requests);
        figures.compute_infer.add(requests, infer * requests);
        figures.compute_output.add(requests, output * requests);
        let phases = [
            (Phase::ComputeInput, input),
            (Phase::ComputeInfer, infer),
            (Phase::ComputeOutput, output),
        ];
        figures.distribute(at.ended, phases, requests);
        figures.inference_count += batch_size as u64;
        figures.execution_count += 1;
        if let Some(end) = end {
            figures.batch_ends.count(end);
            // A warm-up, which no scheduler made a batch of, has no client to be late for.
            figures.late += late;
            figures.in_time += requests - late;
            if batch_size == 1 && figures.too_slow < TOO_SLOW {
                let is_slow = ns(at.ended, at.taken) > figures.objective_ns;
                figures.too_slow = if is_slow { figures.too_slow + 1 } else { 0 };
                is_clear = figures.too_slow == TOO_SLOW;
            }
        }
        figures.busy_ns += input + infer + output;
        figures.last_inference = Some(at.ended);
        let batch = figures.batch(batch_size);
        batch.compute_input.add(1, input);
        batch.compute_infer.add(1, infer);
        batch.compute_output.add(1, output);
        // Under the lock: a reader counts the batch either as running or as done.
        self.running_since_ns.store(IDLE, Ordering::Relaxed);
        is_clear
    }
}

impl Figures {
    fn new(recording: &RecorderOptions) -> Self {
        let histograms = recording.histograms.iter();
        Self {
            window: recording.quantiles.then(Box::default),
            histograms: histograms
                .map(|(phase, bounds)| (*phase, Buckets::new(bounds)))
                .collect(),
            objective_ns: recording.objective.map_or(u64::MAX, nanoseconds),
            ..Self::default()
        }
    }

    /// Records durations that `requests` requests had.
    fn distribute<const N: usize>(&mut self, now: Time, phases: [(Phase, u64); N], requests: u64) {
        if let Some(window) = &mut self.window {
            let mut slot = window.slot(now);
            for (phase, ns) in phases {
                slot.record(phase, ns, requests);
            }
        }
        for (of, buckets) in &mut self.histograms {
            for (_, ns) in phases.iter().filter(|(phase, _)| phase == of) {
                buckets.record(*ns, requests);
            }
        }
    }

    fn batch(&mut self, size: usize) -> &mut BatchStatistics {
        let index = match self.batches.binary_search_by_key(&size, |(size, _)| *size) {
            Ok(index) => index,
            Err(index) => {
                self.batches
                    .insert(index, (size, BatchStatistics::default()));
                index
            }
        };
        &mut self.batches[index].1
    }
}

impl Statistics {
    pub(crate) fn new(recording: RecorderOptions) -> Self {
        Self {
            recording,
            ..Self::default()
        }
    }

    /// A shard for an instance: that of an earlier one of the same name if that has ended, so that shards stay few.
    pub(crate) fn recorder(&self, name: &str) -> Arc<Recorder> {
        let mut recorders = lock(&self.recorders);
        let free = recorders.iter().find(|recorder| {
            *recorder.name == *name && recorder.has_ended.swap(false, Ordering::Relaxed)
        });
        if let Some(recorder) = free {
            return Arc::clone(recorder);
        }
        let recorder = Arc::new(Recorder {
            figures: Mutex::new(Figures::new(&self.recording)),
            running_since_ns: AtomicU64::new(IDLE),
            memory: Mutex::default(),
            restarts: AtomicU64::new(0),
            name: name.into(),
            has_ended: AtomicBool::new(false),
        });
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

    /// The figures now. Each instance's are whole: they hold all of a batch or nothing.
    pub(crate) fn snapshot(&self) -> StatisticsSnapshot {
        let recorders = lock(&self.recorders).clone();
        let histograms = self.recording.histograms.iter();
        let mut sum = StatisticsSnapshot {
            histograms: histograms
                .map(|(phase, bounds)| HistogramStatistics::new(*phase, bounds))
                .collect(),
            ..Default::default()
        };
        let mut last = None;
        let (mut in_time, mut late) = (0, 0);
        for recorder in recorders {
            let figures = lock(&recorder.figures);
            let since = recorder.running_since_ns.load(Ordering::Relaxed);
            let running_ns = match since {
                IDLE => 0,
                since => clock::now().as_nanos().saturating_sub(since),
            };
            if !recorder.has_ended.load(Ordering::Relaxed) {
                sum.instances.push(InstanceStatistics {
                    name: Arc::clone(&recorder.name),
                    busy_ns: figures.busy_ns + running_ns,
                    memory: *lock(&recorder.memory),
                    restarts: recorder.restarts.load(Ordering::Relaxed),
                });
            }
            last = last.max(figures.last_inference);
            sum.inference_count += figures.inference_count;
            sum.execution_count += figures.execution_count;
            sum.batch_ends.merge(figures.batch_ends);
            in_time += figures.in_time;
            late += figures.late;
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
        sum.last_inference_ms = self.unix_millis(last);
        let failed = lock(&self.failed);
        sum.fail = failed.requests;
        sum.failures = failed.reasons;
        sum.slo = self.recording.objective.map(|objective| SloStatistics {
            objective,
            in_time,
            late,
            given_up: failed.given_up,
        });
        sum
    }

    /// Quantiles of the last minute, if they are recorded.
    pub(crate) fn latencies(&self) -> Option<Latencies> {
        if !self.recording.quantiles {
            return None;
        }
        let recorders = lock(&self.recorders).clone();
        let now = clock::now();
        let mut sum = Latencies::default();
        for recorder in recorders {
            if let Some(window) = &lock(&recorder.figures).window {
                sum.add(window, now);
            }
        }
        Some(sum)
    }

    /// The time of day of an instant, 0 for never. The clock is read here, never on the request path.
    fn unix_millis(&self, instant: Option<Time>) -> u64 {
        let Some(instant) = instant else {
            return 0;
        };
        let mut known = lock(&self.last_inference);
        // Another look may have seen a later execution meanwhile.
        match *known {
            Some((at, millis)) if at >= instant => millis,
            _ => {
                // The monotonic clock first: neither before the instant nor after now.
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

/// Nanoseconds from `earlier` to `later`.
fn ns(later: Time, earlier: Time) -> u64 {
    later.as_nanos().saturating_sub(earlier.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An execution of 1 + 10 + 2 ns, `taken` at the given instant.
    fn execution(taken: Time) -> Execution {
        let after = |ns| taken + Duration::from_nanos(ns);
        Execution {
            taken,
            gathered: after(1),
            ran: after(11),
            ended: after(13),
        }
    }

    #[test]
    fn each_request_is_charged_its_batchs_time_and_a_batch_counts_once() {
        let statistics = Statistics::default();
        let arrived = clock::now();
        let taken = arrived + Duration::from_nanos(50);
        let recorder = statistics.recorder("m_0");
        let end = Some(BatchEnd::QueueEmpty);
        recorder.executed(5, end, &execution(taken), [arrived, arrived].into_iter());
        recorder.gave_up(BatchEnd::Delay, taken, taken);
        statistics.failed(FailureReason::Backend, Duration::from_nanos(7));
        let figures = statistics.snapshot();
        assert_eq!(figures.inference_count, 5);
        assert_eq!(figures.execution_count, 1);
        let statistic = |count, ns| DurationStatistic { count, ns };
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
    fn instances_are_summed_up() {
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
    fn distributions_are_summed_up_and_count_every_request() {
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
    fn answers_are_counted_against_the_objective_and_warm_ups_are_not() {
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
    fn a_single_inference_that_is_too_slow_is_noticed_once() {
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
        // Of larger batches it is the policy's affair.
        assert!(!(0..2 * TOO_SLOW).any(|_| run(2)));
        assert!(!(1..TOO_SLOW).any(|_| run(1)));
        assert!(run(1), "13 ns against 12, so often");
        assert!(!run(1), "said");
    }

    #[test]
    fn a_batch_that_runs_is_busy_time_already_and_counted_once() {
        let statistics = Statistics::default();
        let recorder = statistics.recorder("m_0");
        let busy = || statistics.snapshot().instances[0].busy_ns;
        assert_eq!(busy(), 0);
        let taken = clock::now();
        recorder.began(taken);
        let running = loop {
            match busy() {
                0 => std::hint::spin_loop(),
                busy => break busy,
            }
        };
        assert!(u128::from(running) <= clock::now().since(taken).as_nanos());
        recorder.gave_up(BatchEnd::Delay, taken, taken + Duration::from_nanos(70));
        assert_eq!(busy(), 70);
    }

    #[test]
    fn the_time_of_the_last_inference_is_the_same_at_every_look() {
        let statistics = Statistics::default();
        assert_eq!(statistics.snapshot().last_inference_ms, 0);
        let recorder = statistics.recorder("m_0");
        let unix = || SystemTime::now().duration_since(UNIX_EPOCH).expect("now");
        let before = unix().as_millis();
        let taken = clock::now();
        recorder.executed(1, None, &execution(taken), [taken].into_iter());
        let first = statistics.snapshot().last_inference_ms;
        assert!(before <= u128::from(first) && u128::from(first) <= unix().as_millis());
        for _ in 0..1000 {
            assert_eq!(statistics.snapshot().last_inference_ms, first);
        }
    }
}
