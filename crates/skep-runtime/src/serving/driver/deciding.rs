//! Inputs become outputs under the lock; outputs are carried out without it.

use std::{
    sync::{MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use skep_scheduler::{Input, InstanceId, Output, Outputs, Scheduler};
use skep_types::Time;

use super::{Driver, JobBatch};
use crate::{
    clock,
    serving::{
        device::{PendingGrants, SlotHolder, SlotNews},
        job::Job,
    },
    timer::{Alarm, Appointment},
};

pub(super) struct State {
    pub(super) scheduler: Scheduler<Box<Job>>,
    /// Instances that were taken away and whose threads have not ended. A handful.
    pub(super) retired: Vec<InstanceId>,
    pub(super) next_request: u64,
    /// Where the scheduler may want to be called.
    pub(super) appointment: Option<Appointment>,
    /// The latest moment that the scheduler was told: moments are taken before the lock, and it must not see time go back.
    pub(super) now: Time,
}

impl Driver {
    /// Applies one input under the lock, then carries out the outputs without it. `released` is how long the execution
    /// took that is over with this input; a batch for `own` is given back.
    pub(super) fn apply(
        &self,
        now: Time,
        mut state: MutexGuard<'_, State>,
        input: Input<Box<Job>>,
        released: Option<Duration>,
        own: Option<InstanceId>,
    ) -> Option<JobBatch> {
        let mut outputs = Outputs::new();
        self.decide(now, &mut state, input, &mut outputs);
        self.conclude(state, outputs, released, own)
    }

    /// What follows from a decision: slots are settled under the lock, the outputs carried out without it.
    pub(super) fn conclude(
        &self,
        mut state: MutexGuard<'_, State>,
        mut outputs: Outputs<Box<Job>>,
        released: Option<Duration>,
        own: Option<InstanceId>,
    ) -> Option<JobBatch> {
        let pending = self.settle(&mut state, &mut outputs, released);
        drop(state);
        let kept = self.carry_out(outputs, own);
        pending.deliver();
        kept
    }

    /// Takes what concerns slots out of the outputs and settles it with the device, until nothing more follows for this
    /// model. What follows for others is given back, to be delivered when the lock is not held any more.
    pub(super) fn settle(
        &self,
        state: &mut State,
        outputs: &mut Outputs<Box<Job>>,
        released: Option<Duration>,
    ) -> PendingGrants {
        let mut pending = PendingGrants::default();
        let Some(seat) = &self.seat else {
            return pending;
        };
        let mut news = SlotNews {
            released,
            ..SlotNews::default()
        };
        loop {
            outputs.retain(|output| match output {
                Output::WantSlot => {
                    news.wanted = true;
                    false
                }
                Output::ReturnSlot => {
                    news.returned = true;
                    false
                }
                Output::Dispatch { .. } | Output::Reject { .. } => true,
            });
            if news.is_none() {
                return pending;
            }
            // Only now: what is taken from there is told.
            news.threads = self.parallelism.news();
            if !seat.tell(state.now, news, &mut pending) {
                return pending;
            }
            news = SlotNews::default();
            self.decide(state.now, state, Input::SlotGranted, outputs);
        }
    }

    /// An execution is over of which the scheduler knows nothing any more.
    pub(super) fn give_back_slot(&self, mut state: MutexGuard<'_, State>, took: Duration) {
        state.now = state.now.max(clock::now());
        self.conclude(state, Outputs::new(), Some(took), None);
    }

    /// A batch for `own` is given back.
    fn carry_out(&self, outputs: Outputs<Box<Job>>, own: Option<InstanceId>) -> Option<JobBatch> {
        let mut kept = None;
        for output in outputs {
            match output {
                Output::Dispatch { instance, batch } if Some(instance) == own => kept = Some(batch),
                Output::Dispatch { instance, batch } => self.send(instance, batch),
                Output::Reject { request, reason } => self.reject(request.payload, reason),
                Output::WantSlot | Output::ReturnSlot => unreachable!("slots are settled"),
            }
        }
        kept
    }

    /// Applies one input; whether more wait on the node than may.
    pub(super) fn decide(
        &self,
        now: Time,
        state: &mut State,
        input: Input<Box<Job>>,
        outputs: &mut Outputs<Box<Job>>,
    ) -> bool {
        state.now = state.now.max(now);
        state.scheduler.handle(state.now, input, outputs);
        self.note(state)
    }

    /// Notes how many wait, and when the scheduler wants to be called; whether more wait on the node than may.
    fn note(&self, state: &mut State) -> bool {
        if let Some(appointment) = &mut state.appointment
            && let Some(moment) = state.scheduler.next_timeout()
        {
            appointment.no_later_than(moment);
        }
        let after = state.scheduler.waiting();
        // Changed nowhere but here, under the lock.
        let before = self.waiting.load(Ordering::Relaxed);
        self.waiting.store(after, Ordering::Relaxed);
        self.limit.count(before, after)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // `handle` does not panic on any input; a poisoned lock still holds a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Alarm for Driver {
    fn ring(&self) {
        let mut outputs = Outputs::new();
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(appointment) = &mut state.appointment {
            appointment.rung();
        }
        state.now = state.now.max(clock::now());
        state.scheduler.handle_timeout(state.now, &mut outputs);
        self.note(state);
        self.conclude(guard, outputs, None, None);
    }
}

impl SlotHolder for Driver {
    fn granted(&self, pending: &mut PendingGrants) {
        let mut outputs = Outputs::new();
        let mut state = self.lock();
        self.decide(clock::now(), &mut state, Input::SlotGranted, &mut outputs);
        pending.append(self.settle(&mut state, &mut outputs, None));
        drop(state);
        self.carry_out(outputs, None);
    }
}
