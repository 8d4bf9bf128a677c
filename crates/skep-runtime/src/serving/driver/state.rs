//! What a driver keeps under its lock.

use skep_scheduler::{
    Input, InstanceId, Outputs, PolicySnapshot, Request, RequestId, Scheduler, SequenceScheduler,
};
use skep_types::Time;

use super::answers::OUT_OF_ORDER;
use crate::{
    serving::{job::Job, resources::PermitState},
    timer::Appointment,
};

/// A scheduler, and what goes with it.
pub(super) struct DriverState {
    pub(super) scheduler: ModelScheduler,
    /// Instances that were removed and whose threads have not ended. A handful.
    pub(super) retired: Vec<InstanceId>,
    pub(super) next_request: u64,
    /// Set if the scheduler may want to be called at some moment.
    pub(super) appointment: Option<Appointment>,
    /// Unused unless executions need resources.
    pub(super) permit: PermitState,
    /// The latest moment that the scheduler was told. Moments are read before the lock is taken, and the scheduler must
    /// not see time go back.
    pub(super) now: Time,
}

impl DriverState {
    /// The number of the next request.
    pub(super) const fn take_id(&mut self) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        id
    }

    /// The turn of a request's answer, if answers leave in order: the request's number. A scheduler of sequences gives
    /// turns later, to requests that may run.
    pub(super) const fn turn(&self, id: RequestId) -> RequestId {
        match self.scheduler {
            ModelScheduler::Requests(_) => id,
            ModelScheduler::Sequences(_) => OUT_OF_ORDER,
        }
    }
}

/// The scheduler of a model version.
pub(super) enum ModelScheduler {
    /// Of requests that know nothing of each other.
    Requests(Box<Scheduler<Box<Job>>>),
    /// Of requests that belong to sequences.
    Sequences(Box<SequenceScheduler<Box<Job>>>),
}

/// Calls the same method of either scheduler.
macro_rules! either {
    ($scheduler:expr, $method:ident ( $($argument:expr),* )) => {
        match $scheduler {
            ModelScheduler::Requests(scheduler) => scheduler.$method($($argument),*),
            ModelScheduler::Sequences(scheduler) => scheduler.$method($($argument),*),
        }
    };
}

impl ModelScheduler {
    pub(super) fn handle(
        &mut self,
        now: Time,
        input: Input<Box<Job>>,
        outputs: &mut Outputs<Box<Job>>,
    ) {
        either!(self, handle(now, input, outputs));
    }

    pub(super) fn handle_timeout(&mut self, now: Time, outputs: &mut Outputs<Box<Job>>) {
        either!(self, handle_timeout(now, outputs));
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        either!(self, next_timeout())
    }

    pub(super) fn waiting(&self) -> usize {
        either!(self, waiting())
    }

    pub(super) fn is_busy(&self, instance: InstanceId) -> Option<bool> {
        either!(self, is_busy(instance))
    }

    pub(super) fn recycle(&mut self, requests: Vec<Request<Box<Job>>>) {
        either!(self, recycle(requests));
    }

    pub(super) fn policy_snapshot(&self, now: Time) -> PolicySnapshot {
        match self {
            Self::Requests(scheduler) => scheduler.policy_snapshot(now),
            Self::Sequences(scheduler) => scheduler.policy_snapshot(),
        }
    }
}
