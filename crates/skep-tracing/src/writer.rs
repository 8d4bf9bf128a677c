//! The thread that writes traces, behind a bounded queue: requests never wait for it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use skep_runtime::TraceRecord;

use crate::{parent::TraceParent, sampler::Sampler};

/// Traces that wait to be written, at most, unless OpenTelemetry's `bsp_max_queue_size` says otherwise; OpenTelemetry's
/// own default.
pub(crate) const WAITING_TRACES: usize = 2048;

/// Bytes of tensors of the traces that wait, at most. As text they take several times as much.
const WAITING_TENSOR_BYTES: usize = 16 << 20;

/// How long the thread lets traces gather behind the first one: woken for each, it would cost requests more than the
/// traces themselves.
const GATHER: Duration = Duration::from_millis(5);

/// Traces that are handed to the sink at once.
const TRACES_A_TURN: usize = 512;

/// How often the log speaks of traces that were lost.
const QUIET: Duration = Duration::from_secs(60);

/// A trace whose request is over.
#[derive(Debug)]
pub(crate) struct FinishedTrace {
    pub(crate) record: TraceRecord,
    /// What chose the request.
    pub(crate) sampler: Arc<Sampler>,
    /// The client's span that it belongs to.
    pub(crate) parent: Option<TraceParent>,
}

/// What a sink did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SinkOutcome {
    /// Traces that are written or sent.
    pub(crate) written: usize,
    /// Traces that were lost.
    pub(crate) lost: usize,
    /// Why something went wrong.
    pub(crate) error: Option<String>,
}

/// Where traces go.
pub(crate) trait TraceSink: Send {
    /// Its name in the log.
    fn name(&self) -> String;

    /// Takes traces. It may keep some of them for a while.
    fn write(&mut self, traces: Vec<FinishedTrace>) -> SinkOutcome;

    /// When [`TraceSink::tick`] wants to be called; `None` if nothing waits in the sink.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Passes on what has waited long enough.
    fn tick(&mut self) -> SinkOutcome {
        SinkOutcome::default()
    }

    /// Passes on all that waits.
    fn finish(&mut self) -> SinkOutcome;
}

/// What became of traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TraceCounts {
    /// Traces that were written or sent.
    pub written: u64,
    /// Traces that found the queue full.
    pub queue_full: u64,
    /// Traces that could not be written or sent.
    pub failed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    written: AtomicU64,
    queue_full: AtomicU64,
    failed: AtomicU64,
}

enum WriterRequest {
    Trace(Box<FinishedTrace>),
    /// Everything before this is passed on when it is answered.
    Finish(SyncSender<()>),
}

/// The queue before the thread.
pub(crate) struct TraceQueue {
    sender: SyncSender<WriterRequest>,
    counters: Arc<Counters>,
    tensor_bytes: Arc<AtomicUsize>,
}

impl TraceQueue {
    /// Starts the thread. `capacity` traces wait at most.
    pub(crate) fn start(sink: Box<dyn TraceSink>, capacity: usize) -> std::io::Result<Arc<Self>> {
        let (sender, requests) = sync_channel(capacity);
        let queue = Arc::new(Self {
            sender,
            counters: Arc::default(),
            tensor_bytes: Arc::default(),
        });
        let writer = Writer {
            sink,
            counters: Arc::clone(&queue.counters),
            tensor_bytes: Arc::clone(&queue.tensor_bytes),
            is_failing: false,
            said_full: None,
        };
        thread::Builder::new()
            .name("traces".to_owned())
            .spawn(move || writer.run(&requests))?;
        Ok(queue)
    }

    /// Hands a trace over, or drops and counts it if the queue is full.
    pub(crate) fn offer(&self, trace: FinishedTrace) {
        let bytes = trace.record.tensor_bytes();
        let before = self.tensor_bytes.fetch_add(bytes, Ordering::Relaxed);
        let has_room = bytes == 0 || before.saturating_add(bytes) <= WAITING_TENSOR_BYTES;
        let request = WriterRequest::Trace(Box::new(trace));
        let is_sent = has_room
            && match self.sender.try_send(request) {
                Ok(()) => true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
            };
        if !is_sent {
            self.tensor_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.counters.queue_full.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until the traces so far are passed on, for so long at most. Returns whether they are.
    pub(crate) fn finish(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let (done, is_done) = sync_channel(1);
        let mut request = WriterRequest::Finish(done);
        while let Err(TrySendError::Full(returned)) = self.sender.try_send(request) {
            if Instant::now() >= end {
                return false;
            }
            request = returned;
            thread::sleep(GATHER);
        }
        let left = end.saturating_duration_since(Instant::now());
        is_done.recv_timeout(left).is_ok()
    }

    pub(crate) fn counts(&self) -> TraceCounts {
        let Counters {
            written,
            queue_full,
            failed,
        } = &*self.counters;
        TraceCounts {
            written: written.load(Ordering::Relaxed),
            queue_full: queue_full.load(Ordering::Relaxed),
            failed: failed.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for TraceQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceQueue").finish_non_exhaustive()
    }
}

/// The thread.
struct Writer {
    sink: Box<dyn TraceSink>,
    counters: Arc<Counters>,
    tensor_bytes: Arc<AtomicUsize>,
    /// Whether the sink failed last; said when it changes.
    is_failing: bool,
    /// How many traces found the queue full when the log last said so, and when.
    said_full: Option<(u64, Instant)>,
}

impl Writer {
    /// Passes traces on until nobody can bring any more.
    fn run(mut self, requests: &Receiver<WriterRequest>) {
        loop {
            let first = match self.sink.due() {
                None => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => requests.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            match first {
                Ok(first) => self.turn(first, requests),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.finish(),
            }
            if self.sink.due().is_some_and(|due| due <= Instant::now()) {
                let outcome = self.sink.tick();
                self.note(outcome);
            }
            self.say_full();
        }
    }

    /// Takes what waits behind `first`.
    fn turn(&mut self, first: WriterRequest, requests: &Receiver<WriterRequest>) {
        if matches!(first, WriterRequest::Trace(_)) {
            thread::sleep(GATHER);
        }
        let mut traces = Vec::new();
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                WriterRequest::Trace(trace) => traces.push(*trace),
                WriterRequest::Finish(done) => {
                    self.write(std::mem::take(&mut traces));
                    self.finish();
                    let _ = done.send(());
                }
            }
            if traces.len() >= TRACES_A_TURN {
                break;
            }
            next = requests.try_recv().ok();
        }
        self.write(traces);
    }

    fn write(&mut self, traces: Vec<FinishedTrace>) {
        if traces.is_empty() {
            return;
        }
        let bytes = traces.iter().map(|trace| trace.record.tensor_bytes()).sum();
        let outcome = self.sink.write(traces);
        self.tensor_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.note(outcome);
    }

    fn finish(&mut self) {
        let outcome = self.sink.finish();
        self.note(outcome);
    }

    fn note(&mut self, outcome: SinkOutcome) {
        let SinkOutcome {
            written,
            lost,
            error,
        } = outcome;
        let counters = &self.counters;
        counters
            .written
            .fetch_add(written as u64, Ordering::Relaxed);
        counters.failed.fetch_add(lost as u64, Ordering::Relaxed);
        match error {
            Some(why) if !self.is_failing => {
                self.is_failing = true;
                tracing::warn!(
                    "cannot write traces to {}: {why}; until it accepts some again they are dropped and counted in `skep_traces_dropped_total`",
                    self.sink.name()
                );
            }
            None if written > 0 && self.is_failing => {
                self.is_failing = false;
                tracing::info!("traces are written to {} again", self.sink.name());
            }
            _ => {}
        }
    }

    fn say_full(&mut self) {
        let full = self.counters.queue_full.load(Ordering::Relaxed);
        let said = self.said_full;
        let is_recent = said.is_some_and(|(_, at)| at.elapsed() < QUIET);
        if is_recent || full == said.map_or(0, |(count, _)| count) {
            return;
        }
        self.said_full = Some((full, Instant::now()));
        tracing::warn!(
            "dropped {full} traces: requests are traced faster than {} accepts traces",
            self.sink.name()
        );
    }
}

#[cfg(test)]
mod tests {
    use skep_runtime::TracedTensor;
    use skep_tensor::Tensor;
    use skep_types::{DataType, Shape};

    use super::*;
    use crate::settings::TraceSettings;

    /// Reports what it takes, and waits to be let go.
    struct Gate {
        taken: SyncSender<usize>,
        go: Receiver<SinkOutcome>,
    }

    impl TraceSink for Gate {
        fn name(&self) -> String {
            "a gate".to_owned()
        }

        fn write(&mut self, traces: Vec<FinishedTrace>) -> SinkOutcome {
            self.taken.send(traces.len()).expect("the test listens");
            self.go.recv().expect("the test answers")
        }

        fn finish(&mut self) -> SinkOutcome {
            SinkOutcome::default()
        }
    }

    fn trace() -> FinishedTrace {
        FinishedTrace {
            record: TraceRecord::default(),
            sampler: Arc::new(Sampler::new(&TraceSettings::default(), 0)),
            parent: None,
        }
    }

    #[test]
    fn tensors_that_wait_are_bounded() {
        let (taken, is_taken) = sync_channel(8);
        let (go, is_told) = sync_channel(8);
        let gate = Gate { taken, go: is_told };
        let queue = TraceQueue::start(Box::new(gate), 8).expect("a thread");
        let with = |bytes: usize| {
            let shape = Shape::new(&[bytes]).expect("a shape");
            let mut trace = trace();
            trace.record.tensors.push(TracedTensor {
                point: "TENSOR_QUEUE_INPUT",
                name: "x".into(),
                tensor: Tensor::zeros(DataType::Uint8, shape),
            });
            trace
        };
        queue.offer(with(WAITING_TENSOR_BYTES + 1));
        assert_eq!(queue.counts().queue_full, 1);
        queue.offer(with(WAITING_TENSOR_BYTES));
        assert_eq!(is_taken.recv(), Ok(1));
        // The sink still has them.
        queue.offer(with(1));
        assert_eq!(queue.counts().queue_full, 2);
        go.send(SinkOutcome::default()).expect("the thread listens");
        assert!(queue.finish(Duration::from_secs(60)));
        queue.offer(with(1));
        assert_eq!(is_taken.recv(), Ok(1));
        assert_eq!(queue.counts().queue_full, 2);
        go.send(SinkOutcome::default()).expect("the thread listens");
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (taken, is_taken) = sync_channel(8);
        let (go, is_told) = sync_channel(8);
        let gate = Gate { taken, go: is_told };
        let queue = TraceQueue::start(Box::new(gate), 2).expect("a thread");
        let outcome = |written, lost| SinkOutcome {
            written,
            lost,
            error: (lost > 0).then(|| "no".to_owned()),
        };
        queue.offer(trace());
        assert_eq!(is_taken.recv(), Ok(1));
        // The thread is in the sink: two wait, the others have no room.
        for _ in 0..5 {
            queue.offer(trace());
        }
        assert_eq!(queue.counts().queue_full, 3);
        go.send(outcome(1, 0)).expect("the thread listens");
        assert_eq!(is_taken.recv(), Ok(2));
        go.send(outcome(1, 1)).expect("the thread listens");
        assert!(queue.finish(Duration::from_secs(60)));
        let expected = TraceCounts {
            written: 2,
            queue_full: 3,
            failed: 1,
        };
        assert_eq!(queue.counts(), expected);
    }
}
