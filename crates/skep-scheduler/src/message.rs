//! What a scheduler is told, and what it says.

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
    /// How long its client lets it wait; none where it does not say.
    pub timeout: Option<Duration>,
    /// What the instance gets.
    pub payload: P,
}

/// What the scheduler asks of a payload.
pub trait Payload {
    /// Whether it can be executed together with another: their tensors agree in all dimensions but the batch's. An
    /// equivalence relation.
    fn joins(&self, other: &Self) -> bool;
}

/// Something without tensors agrees with everything.
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
    /// Nobody waits for a request's answer any more. Drops it if it still waits; one that runs goes on.
    Cancel(RequestId),
    /// An instance joined and is free.
    InstanceReady(InstanceId),
    /// An instance finished its batch, after this long, and is free.
    Finished {
        /// Which one.
        instance: InstanceId,
        /// How long the execution took; policies that learn a latency model use it.
        duration: Duration,
    },
    /// An execution outside of serving took so long; policies that learn a latency model begin with it.
    Measured {
        /// Its inferences.
        batch_size: usize,
        /// How long it took.
        duration: Duration,
    },
    /// An instance died or was taken away; a batch it had is its owner's to answer.
    InstanceGone(InstanceId),
    /// No instance can run, and nobody knows when one can: answer what waits now. New requests are still taken.
    RejectWaiting,
    /// The compute slot that was asked for is there.
    SlotGranted,
    /// Let nothing wait for more requests any longer; new ones are still taken.
    Hurry,
    /// Take no new requests; what waits is still served while there are instances, in a hurry.
    Drain,
}

/// Requests to execute together.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<P> {
    /// In the order in which they are served; never empty.
    pub requests: Vec<Request<P>>,
    /// Why there are not more.
    pub end: BatchEnd,
}

impl<P> Batch<P> {
    /// The inferences in the batch.
    #[must_use]
    pub fn size(&self) -> usize {
        self.requests.iter().map(|r| r.batch_size).sum()
    }
}

/// Why a batch is as large as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BatchEnd {
    /// The model's requests are never merged.
    NoBatching,
    /// Nothing more waited, and the policy waits for nothing.
    QueueEmpty,
    /// It is full, or the next request does not fit any more.
    MaxBatchSize,
    /// It has a preferred size, or the next request goes past the largest.
    PreferredSize,
    /// The longest time that its oldest request waits for others was over.
    Delay,
    /// The next request's tensors have other shapes.
    ShapeChange,
    /// The size that the policy has learned to be the largest that keeps the objective.
    Cap,
    /// With one more, the most urgent request would be too late.
    Deadline,
    /// It was to wait for more, and deadlines left no more time for that.
    Waited,
}

impl BatchEnd {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::NoBatching,
        Self::QueueEmpty,
        Self::MaxBatchSize,
        Self::PreferredSize,
        Self::Delay,
        Self::ShapeChange,
        Self::Cap,
        Self::Deadline,
        Self::Waited,
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
        }
    }
}

/// Something to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Output<P> {
    /// Execute a batch on an instance, which is busy from now on. Where executions need compute slots, this one has
    /// its own, which is free again when the instance has finished or is gone.
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
    /// A batch could run if there were a compute slot: ask for one, and say when it is there. Not said again before
    /// that.
    WantSlot,
    /// The granted slot is not needed after all.
    ReturnSlot,
}

/// Why a request is not executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// As many requests wait as may.
    QueueFull,
    /// It waited for as long as it may.
    TimedOut,
    /// It cannot be answered within its objective any more.
    TooLate,
    /// The scheduler drains.
    Draining,
    /// Nobody waits for the answer any more.
    Cancelled,
    /// No instance can run.
    NoInstance,
}

/// What one call decided; a call rarely decides more than one thing, so the list stays off the heap.
pub type Outputs<P> = SmallVec<[Output<P>; 2]>;
