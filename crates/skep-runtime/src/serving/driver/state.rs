//! What a driver keeps under its lock.

use skep_scheduler::{InstanceId, RequestId, Scheduler};
use skep_types::Time;

use crate::{serving::job::Job, timer::Appointment};

/// A scheduler, and what goes with it.
pub(super) struct DriverState {
    pub(super) scheduler: Scheduler<Box<Job>>,
    /// Instances that were removed and whose threads have not ended. A handful.
    pub(super) retired: Vec<InstanceId>,
    pub(super) next_request: u64,
    /// Set if the scheduler may want to be called at some moment.
    pub(super) appointment: Option<Appointment>,
    /// The latest moment that the scheduler was told. Moments are read before the lock is taken, and the scheduler must
    /// not see time go back.
    pub(super) now: Time,
}

impl DriverState {
    /// The number of the next request. Answers that leave in order leave in the order of these numbers.
    pub(super) const fn take_id(&mut self) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        id
    }
}
