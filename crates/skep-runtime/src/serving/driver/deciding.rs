//! Decisions: inputs become outputs under the lock, and outputs are carried out without it.

use std::{
    sync::{MutexGuard, atomic::Ordering},
    time::Duration,
};

use skep_host::lock;
use skep_scheduler::{Input, InstanceId, Output, Outputs, RejectReason};
use skep_types::Time;

use super::{Driver, JobBatch, state::DriverState};
use crate::{
    clock,
    error::RuntimeError,
    serving::{
        device::{PendingGrants, SlotHolder, SlotNews},
        job::Job,
    },
    timer::Alarm,
};

impl Driver {
    /// Applies one input under the lock, then carries out the outputs without it. `released` is the duration of the
    /// execution that ends with this input. A batch for the instance `own` is returned instead of sent.
    pub(super) fn apply(
        &self,
        now: Time,
        mut state: MutexGuard<'_, DriverState>,
        input: Input<Box<Job>>,
        released: Option<Duration>,
        own: Option<InstanceId>,
    ) -> Option<JobBatch> {
        let mut outputs = Outputs::new();
        self.decide(now, &mut state, input, &mut outputs);
        self.conclude(state, outputs, released, own)
    }

    /// Completes a decision: settles slots under the lock, and carries out the outputs without it.
    pub(super) fn conclude(
        &self,
        mut state: MutexGuard<'_, DriverState>,
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

    /// Takes the outputs about slots and settles them with the device, until nothing more follows for this model.
    /// Grants to other models are returned, to be delivered once the lock is released.
    pub(super) fn settle(
        &self,
        state: &mut DriverState,
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
            if news.is_empty() {
                return pending;
            }
            // Taken only when there is something to tell the device: taking clears it.
            news.threads = self.parallelism.news();
            if !seat.tell(state.now, news, &mut pending) {
                return pending;
            }
            news = SlotNews::default();
            self.decide(state.now, state, Input::SlotGranted, outputs);
        }
    }

    /// The execution of an instance that gets no further batch has ended: gives back its slot, and lets the next
    /// requests of its sequences run.
    pub(super) fn leave_batch(
        &self,
        state: MutexGuard<'_, DriverState>,
        instance: InstanceId,
        took: Duration,
    ) {
        let gone = Input::InstanceGone(instance);
        self.apply(clock::now(), state, gone, Some(took), None);
    }

    /// Carries out outputs, without the lock. A batch for the instance `own` is returned instead of sent.
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

    /// Applies one input. Returns whether more requests wait on the node than may.
    pub(super) fn decide(
        &self,
        now: Time,
        state: &mut DriverState,
        input: Input<Box<Job>>,
        outputs: &mut Outputs<Box<Job>>,
    ) -> bool {
        state.now = state.now.max(now);
        state.scheduler.handle(state.now, input, outputs);
        self.note(state)
    }

    /// Notes how many requests wait, and when the scheduler wants to be called. Returns whether more wait on the node
    /// than may.
    fn note(&self, state: &mut DriverState) -> bool {
        if let Some(appointment) = &mut state.appointment
            && let Some(moment) = state.scheduler.next_timeout()
        {
            appointment.no_later_than(moment);
        }
        let after = state.scheduler.waiting();
        // Changed only here, under the lock.
        let before = self.waiting.load(Ordering::Relaxed);
        self.waiting.store(after, Ordering::Relaxed);
        self.room.freed(before.saturating_sub(after));
        self.limit.count(before, after)
    }

    /// Sends a batch to an instance.
    pub(super) fn send(&self, instance: InstanceId, batch: JobBatch) {
        let Err(refused) = self.mailboxes.send(instance, batch) else {
            return;
        };
        // Reached only if an instance ended without reporting it.
        for mut request in refused.requests {
            let error = RuntimeError::internal("the instance ended before it took the request");
            self.answer(request.payload.take_waiter(), Err(error));
        }
        self.leave_batch(self.lock(), instance, Duration::ZERO);
    }

    /// Answers a request that will not be executed.
    pub(super) fn reject(&self, job: Box<Job>, reason: RejectReason) {
        self.answers.reject(job, reason, self.why_not().as_deref());
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, DriverState> {
        // A poisoned lock still holds a whole state: `handle` panics on no input.
        lock(&self.state)
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
