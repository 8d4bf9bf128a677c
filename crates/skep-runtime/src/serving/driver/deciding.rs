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
        resources::{InstanceNews, PermitState, ResourceSeat},
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

    /// Takes the outputs about slots and settles them with the resources and the device, until nothing more follows for
    /// this model. Grants to other models are returned, to be delivered once the lock is released.
    pub(super) fn settle(
        &self,
        state: &mut DriverState,
        outputs: &mut Outputs<Box<Job>>,
        released: Option<Duration>,
    ) -> PendingGrants {
        let news = SlotNews {
            released,
            ..SlotNews::default()
        };
        self.settle_news(state, outputs, news)
    }

    /// As [`Driver::settle`], with news for the device.
    fn settle_news(
        &self,
        state: &mut DriverState,
        outputs: &mut Outputs<Box<Job>>,
        mut news: SlotNews,
    ) -> PendingGrants {
        let mut pending = PendingGrants::default();
        if self.seat.is_none() && self.resources.is_none() {
            return pending;
        }
        loop {
            let (wanted, returned) = take_slot_outputs(outputs);
            news.returned |= returned;
            news.wanted |= match &self.resources {
                Some(seat) => permit(seat, &mut state.permit, wanted, returned, &mut pending),
                None => wanted,
            };
            let is_granted = match &self.seat {
                None => news.wanted,
                Some(_) if news.is_empty() => false,
                Some(seat) => {
                    // Taken only when there is something to tell the device: taking clears it.
                    news.threads = self.parallelism.news();
                    seat.tell(state.now, news, &mut pending)
                }
            };
            if !is_granted {
                return pending;
            }
            news = SlotNews::default();
            match self.grant_input(&mut state.permit) {
                Some(input) => {
                    self.decide(state.now, state, input, outputs);
                }
                // The slot was asked for when an instance had its resources, which has gone since.
                None => news.returned = true,
            }
        }
    }

    /// Notes what has become of an instance, for the rate limiter, which is told when slots are settled.
    pub(super) fn note_instance(&self, state: &mut DriverState, news: InstanceNews) {
        if self.resources.is_some() {
            state.permit.news.push(news);
        }
    }

    /// What the scheduler is told of a slot; `None` if no instance has its resources.
    fn grant_input(&self, permit: &mut PermitState) -> Option<Input<Box<Job>>> {
        if self.resources.is_none() {
            return Some(Input::SlotGranted);
        }
        let instance = permit.held.take()?;
        permit.used = Some(instance);
        Some(Input::SlotGrantedFor(instance))
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
        if let Some(news) = instance_news(state, &input) {
            self.note_instance(state, news);
        }
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
        let mut state = self.lock();
        self.note_instance(&mut state, InstanceNews::Away(instance));
        self.leave_batch(state, instance, Duration::ZERO);
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
        let mut guard = self.lock();
        let state = &mut *guard;
        state.now = state.now.max(clock::now());
        let mut news = SlotNews::default();
        match self.grant_input(&mut state.permit) {
            Some(input) => {
                self.decide(state.now, state, input, &mut outputs);
            }
            // As in `settle_news`.
            None => news.returned = true,
        }
        pending.append(self.settle_news(state, &mut outputs, news));
        drop(guard);
        self.carry_out(outputs, None);
    }

    fn resources_granted(&self, pending: &mut PendingGrants) {
        let mut outputs = Outputs::new();
        let mut state = self.lock();
        state.now = state.now.max(clock::now());
        pending.append(self.settle(&mut state, &mut outputs, None));
        drop(state);
        self.carry_out(outputs, None);
    }
}

/// Takes the outputs about slots off the list: whether one is wanted, and whether one is returned.
fn take_slot_outputs(outputs: &mut Outputs<Box<Job>>) -> (bool, bool) {
    let (mut wanted, mut returned) = (false, false);
    outputs.retain(|output| match output {
        Output::WantSlot => {
            wanted = true;
            false
        }
        Output::ReturnSlot => {
            returned = true;
            false
        }
        Output::Dispatch { .. } | Output::Reject { .. } => true,
    });
    (wanted, returned)
}

/// Tells the limiter the news. Returns whether an instance has just got its resources.
fn permit(
    seat: &ResourceSeat,
    permit: &mut PermitState,
    wanted: bool,
    returned: bool,
    pending: &mut PendingGrants,
) -> bool {
    let mut news = std::mem::take(&mut permit.news);
    if returned {
        news.extend(permit.used.take().map(InstanceNews::Unused));
    }
    let gone = |news: &InstanceNews| match *news {
        InstanceNews::Away(instance) | InstanceNews::Removed(instance) => {
            permit.held == Some(instance)
        }
        InstanceNews::Free(_) | InstanceNews::Unused(_) => false,
    };
    let mut wants = wanted;
    if news.iter().any(gone) {
        permit.held = None;
        wants = true;
    }
    let claimed = seat.tell(&news, wants, pending);
    permit.held = claimed.or(permit.held);
    claimed.is_some()
}

/// What an input means for the resources of its instance. One that is removed while it executes keeps them until its
/// execution ends.
fn instance_news(state: &DriverState, input: &Input<Box<Job>>) -> Option<InstanceNews> {
    match *input {
        Input::InstanceReady(instance) | Input::Finished { instance, .. } => {
            Some(InstanceNews::Free(instance))
        }
        Input::InstanceGone(instance) if state.scheduler.is_busy(instance) == Some(false) => {
            Some(InstanceNews::Away(instance))
        }
        _ => None,
    }
}
