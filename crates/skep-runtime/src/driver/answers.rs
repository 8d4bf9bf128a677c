//! Answers on their way out: counted where they are failures, in order where the model wants that.

use std::sync::Mutex;

use skep_scheduler::{Ordering, RejectReason};

use crate::{
    ErrorKind, FailureReason, RuntimeError, clock,
    job::{Job, Outcome, Reply},
    lock::lock,
    recorder::Statistics,
};

/// Triton's words for a queue that holds as many requests as it may.
pub(super) const QUEUE_FULL: &str = "Exceeds maximum queue size";

/// The way out of a model.
pub(super) struct Answers {
    pub(super) statistics: Statistics,
    /// For models whose answers leave in the order of their requests.
    order: Option<Mutex<Ordering<(Reply, Outcome)>>>,
    /// How many answers the order may hold back.
    max_held: usize,
}

impl Answers {
    pub(super) fn new(statistics: Statistics, in_order: bool, max_held: usize) -> Self {
        Self {
            statistics,
            order: in_order.then(Mutex::default),
            max_held,
        }
    }

    /// Answers a request that was taken in.
    pub(super) fn answer(&self, job: Box<Job>, outcome: Outcome) {
        let Job { id, reply, .. } = *job;
        // A client that went away meanwhile is nobody's loss.
        let send = |(reply, outcome): (Reply, Outcome)| drop(reply.send(outcome));
        match &self.order {
            None => send((reply, outcome)),
            // Sent under the lock: the next one must not overtake.
            Some(order) => lock(order).finish(id, Some((reply, outcome)), send),
        }
    }

    /// Refuses a request at once, whatever the order of answers: it was not taken in.
    pub(super) fn refuse(&self, job: Box<Job>, text: String) {
        self.count(FailureReason::Rejected, &job);
        let Job { id, reply, .. } = *job;
        if let Some(order) = &self.order {
            lock(order).finish(id, None, |(reply, outcome)| drop(reply.send(outcome)));
        }
        drop(reply.send(Err(RuntimeError::new(ErrorKind::Unavailable, text))));
    }

    /// Ends a request that was taken in and is not executed; `is_broken` says that no instance is left.
    pub(super) fn reject(&self, job: Box<Job>, reason: RejectReason, is_broken: bool) {
        let label = match reason {
            RejectReason::QueueFull
            | RejectReason::TimedOut
            | RejectReason::TooLate
            | RejectReason::Draining => FailureReason::Rejected,
            RejectReason::Cancelled => FailureReason::Canceled,
        };
        self.count(label, &job);
        let text = match reason {
            RejectReason::QueueFull => QUEUE_FULL,
            RejectReason::TimedOut => "Request timeout expired",
            RejectReason::TooLate => {
                "the request can no longer be answered within its latency objective"
            }
            RejectReason::Draining if is_broken => {
                "no instance of the model is alive: each one failed and could not be restarted"
            }
            RejectReason::Draining => {
                "Server is stopping, scheduler for model has stopped accepting new inference requests"
            }
            RejectReason::Cancelled => "the request was cancelled",
        };
        self.answer(job, Err(RuntimeError::new(ErrorKind::Unavailable, text)));
    }

    /// Whether as many answers wait for those before them as requests may wait: those are a queue as well.
    pub(super) fn are_too_many(&self) -> bool {
        let order = self.order.as_ref();
        order.is_some_and(|order| lock(order).held() >= self.max_held)
    }

    fn count(&self, label: FailureReason, job: &Job) {
        let total = clock::now().since(job.arrived);
        self.statistics.failed(label, total);
    }
}
