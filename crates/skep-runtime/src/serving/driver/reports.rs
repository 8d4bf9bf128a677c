//! What instances report: connected, ready, finished, gone, overdue; and their removal.
//!
//! An instance that is removed ([`Driver::retire`]) leaves the scheduler at once, and its mailbox when it is idle: a
//! batch that is already on its way still reaches it and is answered.

use std::{
    num::NonZeroUsize,
    sync::{atomic::Ordering, mpsc::SyncSender},
    time::Duration,
};

use skep_scheduler::{Input, InstanceId, Outputs, Request, ResourceDemand};
use skep_types::Time;

use super::{Driver, JobBatch};
use crate::{
    clock,
    error::{ErrorKind, RuntimeError},
    serving::{
        device::{DeviceSeat, OccupiedSlots},
        job::{Job, Waiters},
        resources::InstanceNews,
    },
    statistics::FailureReason,
};

impl Driver {
    /// Connects an instance's mailbox and assigns its number. Batches come once the instance reports that it is ready,
    /// and never to a passive one.
    pub(crate) fn connect(&self, mailbox: SyncSender<JobBatch>, passive: bool) -> InstanceId {
        self.mailboxes.open(mailbox, passive)
    }

    /// An instance that is connected needs so much for each of its executions. Only with a rate limiter it matters.
    pub(crate) fn limit(
        &self,
        instance: InstanceId,
        priority: u32,
        demands: &[ResourceDemand],
    ) -> Result<(), RuntimeError> {
        let Some(seat) = &self.resources else {
            return Ok(());
        };
        let added = seat.add(instance, priority, demands);
        added.map_err(|error| RuntimeError::new(ErrorKind::InvalidArgument, error.to_string()))
    }

    /// Waits for the slots of an execution outside of serving; `None` if executions need no slots.
    pub(crate) fn occupy(&self) -> Option<OccupiedSlots> {
        self.seat.as_ref().map(DeviceSeat::occupy)
    }

    /// Whether the caller should measure what executions take. True once at most.
    pub(crate) fn wants_profile(&self) -> bool {
        self.wants_profile.swap(false, Ordering::Relaxed)
    }

    /// An execution of this batch size, outside of serving, took `duration`.
    pub(crate) fn measured(&self, batch_size: usize, duration: Duration) {
        let input = Input::Measured {
            batch_size,
            duration,
        };
        self.apply(clock::now(), self.lock(), input, None, None);
    }

    /// An execution took `cpu` of CPU time within `duration`.
    pub(crate) fn used(&self, cpu: Duration, duration: Duration) {
        if self.seat.is_some() {
            self.parallelism.measured(cpu, duration);
        }
    }

    /// Executions keep so many threads busy from now on, as far as is known before some were measured.
    pub(crate) fn assume_threads(&self, threads: NonZeroUsize) {
        if self.seat.is_some() {
            let threads = u32::try_from(threads.get()).unwrap_or(u32::MAX);
            self.parallelism.assume(threads);
        }
    }

    /// Batches formed from now on have so many inferences at most.
    pub(crate) fn cap_batches(&self, inferences: usize) {
        let input = Input::BatchCap(inferences);
        self.apply(clock::now(), self.lock(), input, None, None);
    }

    /// An instance is ready for its first batch.
    pub(crate) fn ready(&self, instance: InstanceId) -> Option<JobBatch> {
        let state = self.lock();
        if state.retired.contains(&instance) {
            drop(state);
            self.mailboxes.close(instance);
            return None;
        }
        self.alive_instances.fetch_add(1, Ordering::Relaxed);
        let input = Input::InstanceReady(instance);
        self.apply(clock::now(), state, input, None, Some(instance))
    }

    /// An instance that began at `taken` finished at `now`. Returns its next batch, if any waits. `spent` is the
    /// emptied list of the finished batch, to be used again.
    pub(crate) fn finished(
        &self,
        instance: InstanceId,
        taken: Time,
        now: Time,
        spent: Vec<Request<Box<Job>>>,
    ) -> Option<JobBatch> {
        let mut state = self.lock();
        let duration = now.since(taken);
        if state.retired.contains(&instance) {
            self.note_instance(&mut state, InstanceNews::Away(instance));
            self.leave_batch(state, instance, duration);
            self.leave(instance);
            return None;
        }
        state.scheduler.recycle(spent);
        let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.last_run_ns.store(duration_ns, Ordering::Relaxed);
        let input = Input::Finished { instance, duration };
        self.apply(now, state, input, Some(duration), Some(instance))
    }

    /// An instance that began at `taken` died. Returns whether to recreate it, which is false if it was removed
    /// meanwhile. Requests that wait keep waiting for the other instances or for the replacement.
    pub(crate) fn gone(&self, instance: InstanceId, taken: Time) -> bool {
        let now = clock::now();
        let duration = now.since(taken);
        let mut state = self.lock();
        self.note_instance(&mut state, InstanceNews::Away(instance));
        if state.retired.contains(&instance) {
            self.leave_batch(state, instance, duration);
            self.leave(instance);
            return false;
        }
        self.alive_instances.fetch_sub(1, Ordering::Relaxed);
        let input = Input::InstanceGone(instance);
        self.apply(now, state, input, Some(duration), None);
        self.mailboxes.is_open(instance)
    }

    /// An execution that began at `taken` takes longer than it may, and its batch has been answered. The instance gets
    /// no batch until [`Driver::back`], and other models get its slots. It keeps its resources until then. If no other instance can run, waiting requests
    /// are answered.
    pub(crate) fn overdue(&self, instance: InstanceId, taken: Time) {
        let now = clock::now();
        let duration = now.since(taken);
        let mut state = self.lock();
        self.overdue.fetch_add(1, Ordering::Relaxed);
        if state.retired.contains(&instance) {
            self.leave_batch(state, instance, duration);
            self.leave(instance);
            return;
        }
        self.alive_instances.fetch_sub(1, Ordering::Relaxed);
        let mut outputs = Outputs::new();
        let gone = Input::InstanceGone(instance);
        self.decide(now, &mut state, gone, &mut outputs);
        if self.why_not().is_some() {
            self.decide(now, &mut state, Input::RejectWaiting, &mut outputs);
        }
        self.conclude(state, outputs, Some(duration), None);
    }

    /// An overdue execution has ended. Returns whether the instance is still wanted.
    pub(crate) fn back(&self, instance: InstanceId) -> bool {
        self.overdue.fetch_sub(1, Ordering::Relaxed);
        self.settle_instance(InstanceNews::Away(instance));
        self.mailboxes.is_open(instance)
    }

    /// Answers the waiters of a failed execution, which ended at `ended`.
    pub(crate) fn fail(&self, waiters: Waiters, error: &RuntimeError, ended: Time) {
        for waiter in waiters {
            let total = ended.since(waiter.arrived);
            self.statistics().failed(FailureReason::Backend, total);
            self.answer(waiter, Err(error.clone()));
        }
    }

    /// Removes an instance: it gets no further batch, and ends when it has answered its present one.
    pub(crate) fn retire(&self, instance: InstanceId) {
        let mut state = self.lock();
        state.retired.push(instance);
        let known = state.scheduler.is_busy(instance);
        self.apply(
            clock::now(),
            state,
            Input::InstanceRetired(instance),
            None,
            None,
        );
        match known {
            // Its batch may still be on its way. It leaves when it has finished.
            Some(true) => {}
            Some(false) => self.leave(instance),
            // Passive, or being recreated.
            None => {
                self.mailboxes.close(instance);
            }
        }
    }

    /// A dead instance cannot be recreated. After the last one, waiting requests are answered and new ones refused.
    pub(crate) fn give_up(&self, instance: InstanceId) {
        if self.mailboxes.close(instance) {
            self.broken.store(true, Ordering::Relaxed);
            self.drain();
        }
    }

    /// An instance could not be started.
    pub(crate) fn abandon(&self, instance: InstanceId) {
        self.mailboxes.close(instance);
        self.vacate(instance);
    }

    /// The thread of an instance has ended: its number is free.
    pub(crate) fn vacate(&self, instance: InstanceId) {
        self.lock().retired.retain(|retired| *retired != instance);
        self.settle_instance(InstanceNews::Removed(instance));
        self.mailboxes.vacate(instance);
    }

    /// Tells the rate limiter, if there is one, what has become of an instance.
    fn settle_instance(&self, news: InstanceNews) {
        if self.resources.is_none() {
            return;
        }
        let mut state = self.lock();
        state.now = state.now.max(clock::now());
        self.note_instance(&mut state, news);
        self.conclude(state, Outputs::new(), None, None);
    }

    /// A ready instance takes no batches any more.
    fn leave(&self, instance: InstanceId) {
        self.alive_instances.fetch_sub(1, Ordering::Relaxed);
        self.mailboxes.close(instance);
    }
}
