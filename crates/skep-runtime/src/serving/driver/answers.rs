//! Answers on their way out: failures are counted, and the order is kept if the model wants that.

use std::sync::Mutex;

use skep_host::lock;
use skep_scheduler::{Ordering, RejectReason, RequestId, SequencePayload as _};
use skep_types::ModelName;

use crate::{
    clock,
    error::{ErrorKind, QUEUE_FULL, RuntimeError},
    serving::job::{InferOutcome, InferReply, InferWaiter, Job},
    statistics::{FailureReason, recorder::Statistics},
};

/// Answers that wait for those before them.
type AnswerOrder = Ordering<(InferReply, InferOutcome)>;

/// The turn of a request that waits for no other's answer.
pub(super) const OUT_OF_ORDER: RequestId = RequestId(u64::MAX);

/// The way out of a model version.
pub(super) struct AnswerSink {
    model: ModelName,
    pub(super) statistics: Statistics,
    /// Set if answers leave in the order of their requests.
    order: Option<Mutex<AnswerOrder>>,
    /// How many answers may be held back to keep the order.
    max_held: usize,
}

impl AnswerSink {
    pub(super) fn new(
        model: ModelName,
        statistics: Statistics,
        in_order: bool,
        max_held: usize,
    ) -> Self {
        Self {
            model,
            statistics,
            order: in_order.then(Mutex::default),
            max_held,
        }
    }

    /// Answers a request that was taken in.
    pub(super) fn answer(&self, waiter: InferWaiter, outcome: InferOutcome) {
        let InferWaiter { id, reply, .. } = waiter;
        match self.order_of(id) {
            None => send((reply, outcome)),
            // Sent under the lock, so that the next answer cannot overtake.
            Some(order) => lock(order).finish(id, Some((reply, outcome)), send),
        }
    }

    /// Refuses a request at once, since the model takes no more.
    pub(super) fn refuse(&self, job: Box<Job>, text: String) {
        self.refuse_with(job, RuntimeError::new(ErrorKind::Unavailable, text));
    }

    /// Refuses a request at once, outside of the order of answers, since it was not taken in.
    pub(super) fn refuse_with(&self, mut job: Box<Job>, error: RuntimeError) {
        let waiter = job.take_waiter();
        self.count(FailureReason::Rejected, &waiter);
        let InferWaiter { id, reply, .. } = waiter;
        if let Some(order) = self.order_of(id) {
            lock(order).finish(id, None, send);
        }
        drop(reply.send(Err(error)));
    }

    /// Refuses a request of a sequence that is not live. Triton's words.
    pub(super) fn refuse_without_start(&self, job: Box<Job>) {
        let error = RuntimeError::invalid(format!(
            "inference request for sequence {} to model '{}' must specify the START flag on the first request of the sequence",
            job.step().id,
            self.model
        ));
        self.refuse_with(job, error);
    }

    /// The order in which a request's answer leaves, if it has a turn.
    fn order_of(&self, id: RequestId) -> Option<&Mutex<AnswerOrder>> {
        self.order.as_ref().filter(|_| id != OUT_OF_ORDER)
    }

    /// Answers a request that was taken in and will not be executed. `why_not` says why no instance can run, if none
    /// can.
    pub(super) fn reject(&self, mut job: Box<Job>, reason: RejectReason, why_not: Option<&str>) {
        let waiter = job.take_waiter();
        let label = match reason {
            RejectReason::QueueFull
            | RejectReason::TimedOut
            | RejectReason::TooLate
            | RejectReason::Draining
            | RejectReason::NoInstance
            | RejectReason::NoStart
            | RejectReason::SequenceTimedOut => FailureReason::Rejected,
            RejectReason::Cancelled | RejectReason::SequenceCancelled => FailureReason::Canceled,
        };
        self.count(label, &waiter);
        if matches!(reason, RejectReason::TimedOut | RejectReason::TooLate) {
            self.statistics.gave_up();
        }
        let text = match reason {
            RejectReason::QueueFull => QUEUE_FULL,
            RejectReason::TimedOut => "Request timeout expired",
            RejectReason::TooLate => {
                "the request can no longer be answered within its latency objective"
            }
            RejectReason::Draining | RejectReason::NoInstance if why_not.is_some() => {
                why_not.unwrap_or_default()
            }
            RejectReason::NoInstance => "no instance of the model can run",
            RejectReason::Draining => {
                "Server is stopping, scheduler for model has stopped accepting new inference requests"
            }
            RejectReason::Cancelled => "the request was cancelled",
            RejectReason::SequenceCancelled => {
                "the request was cancelled: another request of its sequence was"
            }
            RejectReason::SequenceTimedOut => {
                "timeout of the corresponding sequence has been expired"
            }
            // Refused where it is enqueued.
            RejectReason::NoStart => "the sequence was not started",
        };
        self.answer(waiter, Err(RuntimeError::new(ErrorKind::Unavailable, text)));
    }

    /// Whether answers leave in the order of their requests.
    pub(super) const fn keeps_order(&self) -> bool {
        self.order.is_some()
    }

    /// Whether the order holds back as many answers as requests may wait: these are a queue as well.
    pub(super) fn are_too_many(&self) -> bool {
        let order = self.order.as_ref();
        order.is_some_and(|order| lock(order).held() >= self.max_held)
    }

    fn count(&self, label: FailureReason, waiter: &InferWaiter) {
        let total = clock::now().since(waiter.arrived);
        self.statistics.failed(label, total);
    }
}

/// Sends an answer. The client may have gone.
fn send((reply, outcome): (InferReply, InferOutcome)) {
    drop(reply.send(outcome));
}
