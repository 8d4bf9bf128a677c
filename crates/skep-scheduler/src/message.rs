//! Inputs and outputs of a scheduler.

use std::time::Duration;

use smallvec::SmallVec;

use crate::InstanceId;

/// Identifies a request within one scheduler: each request's is above those of all enqueued before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A request as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<P> {
    /// Its identity.
    pub id: RequestId,
    /// The inferences it counts for (its batch size; 1 for models without a batch dimension).
    pub batch_size: usize,
    /// The priority level it asks for, from 1, which is served first; 0 for the model's default.
    pub priority: u64,
    /// How long its client lets it wait; `None` if the client sets no limit.
    pub timeout: Option<Duration>,
    /// What the instance receives.
    pub payload: P,
}

/// What the scheduler must know of a payload.
pub trait Payload {
    /// Whether it can run in one batch with another: their tensors agree in all dimensions but the batch's. This is an
    /// equivalence relation.
    fn joins(&self, other: &Self) -> bool;
}

/// Without tensors, all requests agree.
impl Payload for () {
    fn joins(&self, (): &Self) -> bool {
        true
    }
}

/// Something that happened.
#[derive(Debug)]
pub enum Input<P> {
    /// A request arrived.
    Enqueue(Request<P>),
    /// The client has gone. Drops the request if it still waits; a running one continues.
    Cancel(RequestId),
    /// The request that was enqueued last cannot be taken in after all. Drops it if it still waits.
    Withdraw(RequestId),
    /// An instance joined and is free.
    InstanceReady(InstanceId),
    /// An instance finished its batch, after this long, and is free.
    Finished {
        /// Which one.
        instance: InstanceId,
        /// How long the execution took; policies that learn a latency model use it.
        duration: Duration,
    },
    /// An execution outside of serving took this long; policies that learn a latency model start from it.
    Measured {
        /// Its inferences.
        batch_size: usize,
        /// How long it took.
        duration: Duration,
    },
    /// An instance died or was removed, and its batch, if it had one, is answered.
    InstanceGone(InstanceId),
    /// An instance gets no further batch. If it executes one, [`Input::InstanceGone`] follows when that is answered.
    InstanceRetired(InstanceId),
    /// No instance can run, and it is unknown when one can: rejects all waiting requests. New ones are still accepted.
    RejectWaiting,
    /// Batches formed from now on have so many inferences at most, within the maximum of the options; at least 1. Without
    /// effect on a policy with an objective, which chooses sizes itself.
    BatchCap(usize),
    /// Grants the compute slot that the scheduler asked for.
    SlotGranted,
    /// The same, for an execution on this instance, which is free.
    SlotGrantedFor(InstanceId),
    /// Stops waiting for more requests to fill batches, and for the next request of a sequence while others wait for its
    /// slot; new requests are still accepted.
    Hurry,
    /// Accepts no new requests, and serves the waiting ones without delay while there are instances.
    Drain,
}

/// Requests to execute together.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<P> {
    /// In the order of service; never empty.
    pub requests: Vec<Request<P>>,
    /// Why the batch is not larger.
    pub end: BatchEnd,
    /// Where the requests lie in the batch, if it has rows without a request.
    pub rows: Option<Box<BatchRows>>,
}

/// The rows of a batch of which each belongs to a sequence's slot. Each request has one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRows {
    /// The row of each request, ascending.
    pub of_requests: Vec<u32>,
    /// All rows, those without a request included.
    pub total: usize,
}

impl<P> Batch<P> {
    /// The inferences in the batch, rows without a request included.
    #[must_use]
    pub fn size(&self) -> usize {
        match &self.rows {
            Some(rows) => rows.total,
            None => self.requests.iter().map(|r| r.batch_size).sum(),
        }
    }
}

/// Why a batch is as large as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BatchEnd {
    /// The model's requests are never merged.
    NoBatching,
    /// No more requests waited, and the policy does not wait for any.
    QueueEmpty,
    /// It is full, or the next request does not fit.
    MaxBatchSize,
    /// It has a preferred size, or the next request goes past the largest.
    PreferredSize,
    /// Its oldest request had waited for others as long as it may.
    Delay,
    /// The next request's tensors have other shapes.
    ShapeChange,
    /// It has the largest size that keeps the objective, as the policy has learned.
    Cap,
    /// One more request would make the most urgent one late.
    Deadline,
    /// It waited for more requests until deadlines left no time.
    Waited,
    /// It has the requests of all sequence slots that are ready.
    Slots,
}

impl BatchEnd {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::NoBatching,
        Self::QueueEmpty,
        Self::MaxBatchSize,
        Self::PreferredSize,
        Self::Delay,
        Self::ShapeChange,
        Self::Cap,
        Self::Deadline,
        Self::Waited,
        Self::Slots,
    ];

    /// Its name in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoBatching => "no_batching",
            Self::QueueEmpty => "queue_empty",
            Self::MaxBatchSize => "max_batch_size",
            Self::PreferredSize => "preferred_batch_size",
            Self::Delay => "queue_delay",
            Self::ShapeChange => "shape_change",
            Self::Cap => "cap",
            Self::Deadline => "deadline",
            Self::Waited => "waited",
            Self::Slots => "sequence_slots",
        }
    }
}

/// Something to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Output<P> {
    /// Execute a batch on an instance, which is busy from now on. Where executions need compute slots, this one holds a
    /// slot until the instance has finished or is gone.
    Dispatch {
        /// Where.
        instance: InstanceId,
        /// What.
        batch: Batch<P>,
    },
    /// Answer a request with an error.
    Reject {
        /// Which one.
        request: Request<P>,
        /// Why.
        reason: RejectReason,
    },
    /// A batch could run with a compute slot: ask the device for one, and send [`Input::SlotGranted`]. The scheduler
    /// does not repeat the request before that.
    WantSlot,
    /// The granted slot is not needed.
    ReturnSlot,
}

/// Why a request is not executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// The queue is full.
    QueueFull,
    /// It waited as long as it may.
    TimedOut,
    /// It can no longer be answered within its objective.
    TooLate,
    /// The scheduler drains.
    Draining,
    /// The client has gone.
    Cancelled,
    /// No instance can run.
    NoInstance,
    /// Its sequence is not live, and it does not start one.
    NoStart,
    /// Its sequence waited for a slot as long as it may.
    SequenceTimedOut,
    /// Another request of its sequence was cancelled.
    SequenceCancelled,
}

/// What one call decided: rarely more than one thing, so the list stays off the heap.
pub type Outputs<P> = SmallVec<[Output<P>; 2]>;
