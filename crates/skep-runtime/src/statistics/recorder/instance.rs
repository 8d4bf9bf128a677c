//! The live figures of one instance.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use skep_backend::RunMemory;
use skep_host::lock;
use skep_scheduler::BatchEnd;
use skep_types::Time;

use crate::{
    clock::{self, nanoseconds},
    statistics::{
        BatchEnds, BatchStatistics, DurationStatistic, InstanceStatistics,
        latency::{LatencyBuckets, LatencyWindow, Phase},
        options::RecorderOptions,
    },
};

/// An instance runs no batch.
const IDLE: u64 = u64::MAX;

/// When the phases of one execution ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExecutionTimes {
    /// The instance took the batch.
    pub(crate) taken: Time,
    /// The inputs were gathered.
    pub(crate) gathered: Time,
    /// The model finished.
    pub(crate) ran: Time,
    /// The outputs were split.
    pub(crate) ended: Time,
}

/// When a request was answered that other versions answered together, and what they computed for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ComposedTimes {
    pub(crate) arrived: Time,
    /// The first of them got it.
    pub(crate) taken: Time,
    pub(crate) ended: Time,
    /// Gathering inputs, running the models, splitting outputs.
    pub(crate) compute: [Duration; 3],
}

/// The figures of one instance, whose thread alone records; or of an ensemble.
///
/// In its own cache line (two, since processors fetch lines in pairs), so that instances do not slow each other down.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct InstanceRecorder {
    figures: Mutex<RecorderFigures>,
    /// When the running batch was taken, on the process's clock; [`IDLE`] without one.
    running_since_ns: AtomicU64,
    /// The memory of its last run, if the backend can tell.
    memory: Mutex<Option<RunMemory>>,
    /// How often its executable copy was recreated.
    restarts: AtomicU64,
    name: Arc<str>,
    /// The instance was removed; its figures still count.
    has_ended: AtomicBool,
}

/// This many executions of a single inference in a row that take longer than the objective are not a coincidence.
pub(super) const TOO_SLOW: u32 = 8;

#[derive(Debug, Default)]
pub(super) struct RecorderFigures {
    pub(super) success: DurationStatistic,
    pub(super) queue: DurationStatistic,
    pub(super) compute_input: DurationStatistic,
    pub(super) compute_infer: DurationStatistic,
    pub(super) compute_output: DurationStatistic,
    pub(super) inference_count: u64,
    pub(super) execution_count: u64,
    busy_ns: u64,
    pub(super) last_inference: Option<Time>,
    /// By batch size, ascending. A handful: a lookup is a few comparisons.
    pub(super) batches: Vec<(usize, BatchStatistics)>,
    pub(super) batch_ends: BatchEnds,
    pub(super) window: Option<Box<LatencyWindow>>,
    pub(super) histograms: Vec<(Phase, LatencyBuckets)>,
    /// The latency objective in nanoseconds; without one everything is in time.
    objective_ns: u64,
    pub(super) in_time: u64,
    pub(super) late: u64,
    /// How many executions of a single inference in a row took longer than the objective.
    too_slow: u32,
}

/// How large a batch was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExecutedSize {
    /// The batch size that the model saw.
    pub(crate) rows: usize,
    /// The inferences of its requests: fewer, if rows had no request.
    pub(crate) inferences: usize,
}

impl From<usize> for ExecutedSize {
    fn from(inferences: usize) -> Self {
        Self {
            rows: inferences,
            inferences,
        }
    }
}

impl InstanceRecorder {
    pub(super) fn new(name: &str, options: &RecorderOptions) -> Arc<Self> {
        Arc::new(Self {
            figures: Mutex::new(RecorderFigures::new(options)),
            running_since_ns: AtomicU64::new(IDLE),
            memory: Mutex::default(),
            restarts: AtomicU64::new(0),
            name: name.into(),
            has_ended: AtomicBool::new(false),
        })
    }

    /// Takes the recorder for a new instance, if it has this name and its instance has ended.
    pub(super) fn reuse(&self, name: &str) -> bool {
        *self.name == *name && self.has_ended.swap(false, Ordering::Relaxed)
    }

    /// The figures now. They hold all of a batch or nothing, as long as the lock is held.
    pub(super) fn figures(&self) -> MutexGuard<'_, RecorderFigures> {
        lock(&self.figures)
    }

    /// For how long it has held batches, the present one included.
    pub(super) fn busy_ns(&self, figures: &RecorderFigures) -> u64 {
        let running_ns = match self.running_since_ns.load(Ordering::Relaxed) {
            IDLE => 0,
            since => clock::now().as_nanos().saturating_sub(since),
        };
        figures.busy_ns + running_ns
    }

    /// What the instance has done, with its locked figures; `None` if it has ended.
    pub(super) fn instance(&self, figures: &RecorderFigures) -> Option<InstanceStatistics> {
        let busy_ns = self.busy_ns(figures);
        (!self.has_ended.load(Ordering::Relaxed)).then(|| InstanceStatistics {
            name: Arc::clone(&self.name),
            busy_ns,
            memory: *lock(&self.memory),
            restarts: self.restarts.load(Ordering::Relaxed),
        })
    }

    /// Notes that the instance has ended: it is not listed any more, and its figures still count.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
        *lock(&self.memory) = None;
    }

    /// Notes the memory of the last run.
    pub(crate) fn took(&self, memory: RunMemory) {
        *lock(&self.memory) = Some(memory);
    }

    /// Notes that the instance's executable copy was recreated.
    pub(crate) fn restarted(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the instance took a batch.
    pub(crate) fn began(&self, taken: Time) {
        self.running_since_ns
            .store(taken.as_nanos(), Ordering::Relaxed);
    }

    /// Notes that the batch failed: it has no figures.
    pub(crate) fn failed(&self, end: BatchEnd, taken: Time, ended: Time) {
        let mut figures = lock(&self.figures);
        figures.batch_ends.count(end);
        figures.busy_ns += ns(ended, taken);
        self.running_since_ns.store(IDLE, Ordering::Relaxed);
    }

    /// Records a successful execution, for requests that arrived at `arrivals`. `end` is
    /// `None` if no scheduler made the batch.
    ///
    /// Call it before the answers are sent, so that statistics never lag behind what a client has seen. Returns whether
    /// this execution establishes that a single inference takes longer than the objective: true once for each instance
    /// at most.
    pub(crate) fn executed(
        &self,
        batch: impl Into<ExecutedSize>,
        end: Option<BatchEnd>,
        at: &ExecutionTimes,
        arrivals: impl Iterator<Item = Time>,
    ) -> bool {
        let batch = batch.into();
        let batch_size = batch.rows;
        let input = ns(at.gathered, at.taken);
        let infer = ns(at.ran, at.gathered);
        let output = ns(at.ended, at.ran);
        let mut figures = lock(&self.figures);
        let (mut requests, mut late) = (0, 0);
        let mut is_clear = false;
        for arrived in arrivals {
            requests += 1;
            late += u64::from(figures.answered(arrived, at.taken, at.ended));
        }
        figures.computed(batch, at.ended, [input, infer, output], requests);
        if let Some(end) = end {
            figures.batch_ends.count(end);
            // A warm-up, whose batch no scheduler made, has no client to be late for.
            figures.late += late;
            figures.in_time += requests - late;
            if batch_size == 1 && figures.too_slow < TOO_SLOW {
                let is_slow = ns(at.ended, at.taken) > figures.objective_ns;
                figures.too_slow = if is_slow { figures.too_slow + 1 } else { 0 };
                is_clear = figures.too_slow == TOO_SLOW;
            }
        }
        figures.busy_ns += input + infer + output;
        // Under the lock, so that a reader counts the batch either as running or as done.
        self.running_since_ns.store(IDLE, Ordering::Relaxed);
        is_clear
    }

    /// Records a request that other versions have answered together, as one execution of `batch_size` inferences.
    ///
    /// Call it before the answer is sent.
    pub(crate) fn composed(&self, batch_size: usize, at: &ComposedTimes) {
        let mut figures = lock(&self.figures);
        let is_late = figures.answered(at.arrived, at.taken, at.ended);
        figures.computed(batch_size.into(), at.ended, at.compute.map(nanoseconds), 1);
        figures.late += u64::from(is_late);
        figures.in_time += u64::from(!is_late);
    }
}

impl RecorderFigures {
    pub(super) fn new(recording: &RecorderOptions) -> Self {
        let histograms = recording.histograms.iter();
        Self {
            window: recording.quantiles.then(Box::default),
            histograms: histograms
                .map(|(phase, bounds)| (*phase, LatencyBuckets::new(bounds)))
                .collect(),
            objective_ns: recording.objective.map_or(u64::MAX, nanoseconds),
            ..Self::default()
        }
    }

    /// Counts a request that arrived at `arrived`, waited until `taken`, and was answered at `ended`. Returns whether that
    /// was later than the objective.
    pub(super) fn answered(&mut self, arrived: Time, taken: Time, ended: Time) -> bool {
        let (total, queue) = (ns(ended, arrived), ns(taken, arrived));
        self.success.add(1, total);
        self.queue.add(1, queue);
        let phases = [(Phase::Request, total), (Phase::Queue, queue)];
        self.distribute(ended, phases, 1);
        total > self.objective_ns
    }

    /// Counts an execution for this many requests, by the nanoseconds of its three phases.
    fn computed(
        &mut self,
        size: ExecutedSize,
        ended: Time,
        [input, infer, output]: [u64; 3],
        requests: u64,
    ) {
        self.compute_input.add(requests, input * requests);
        self.compute_infer.add(requests, infer * requests);
        self.compute_output.add(requests, output * requests);
        let phases = [
            (Phase::ComputeInput, input),
            (Phase::ComputeInfer, infer),
            (Phase::ComputeOutput, output),
        ];
        self.distribute(ended, phases, requests);
        self.inference_count += size.inferences as u64;
        self.execution_count += 1;
        self.last_inference = Some(ended);
        let batch = self.batch(size.rows);
        batch.compute_input.add(1, input);
        batch.compute_infer.add(1, infer);
        batch.compute_output.add(1, output);
    }

    /// Records durations, each for this many requests.
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

/// Nanoseconds from `earlier` to `later`.
fn ns(later: Time, earlier: Time) -> u64 {
    later.as_nanos().saturating_sub(earlier.as_nanos())
}
