//! The driver of a scheduler: applies inputs and carries out outputs, on whichever thread has the input.
//!
//! The critical section is `Scheduler::handle` alone. Instances get their batches through [`mailboxes`]; a finished
//! instance that is given its next batch takes it directly. [`answers`] is the way out.
//!
//! Where a scheduler wants to be called at some moment, the process's [`Timer`] does so.
//!
//! An instance that is taken away ([`Driver::retire`]) leaves the scheduler at once and its mailbox when it is idle: a
//! batch that was decided for it still reaches it and is answered.

mod answers;
mod deciding;
mod mailboxes;
mod parallelism;
pub(crate) mod scheduling;

use std::{
    fmt,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::SyncSender,
    },
    time::Duration,
};

use skep_scheduler::{
    Batch, Input, InstanceId, Output, Outputs, Policy, PolicySnapshot, RejectReason, Request,
    RequestId, Scheduler,
};
use skep_types::Time;

use self::{
    answers::{Answers, QUEUE_FULL},
    deciding::State,
    mailboxes::Mailboxes,
};
use crate::{
    FailureReason, RuntimeError, WaitingLimit, clock,
    serving::{
        device::{Device, DeviceSeat, OccupiedSlots, SlotHolder},
        driver::{parallelism::Parallelism, scheduling::Scheduling},
        job::{InferOutcome, InferWaiter, Job, Waiters},
    },
    statistics::recorder::Statistics,
    timer::{Appointment, Timer},
};

/// What an instance gets: boxed, since a job is handed on from the caller through the queue to the instance.
pub(crate) type JobBatch = Batch<Box<Job>>;

/// A run shorter than this is not worth a wake-up of its own: waking a thread and letting it sleep again costs the two
/// threads some 5 us of CPU.
const SHORT_RUN: Duration = Duration::from_micros(100);

/// A batch on its way to an idle instance. Dropping it hands it over, which wakes the instance's thread.
#[must_use]
pub(crate) struct Handover<'a> {
    driver: &'a Driver,
    dispatched: Option<(InstanceId, JobBatch)>,
}

impl Handover<'_> {
    /// Hands the batch over. Where the model's runs are short, what has arrived on this thread meanwhile is taken in
    /// first: it queues behind this batch and the instance, once awake, finds it all. That joins many wake-ups into
    /// one; an instance whose runs are long is never kept waiting for it.
    pub(crate) async fn complete(self) {
        let last_run_ns = self.driver.last_run_ns.load(Ordering::Relaxed);
        if self.dispatched.is_some() && Duration::from_nanos(last_run_ns) < SHORT_RUN {
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Handover<'_> {
    fn drop(&mut self) {
        if let Some((instance, batch)) = self.dispatched.take() {
            self.driver.send(instance, batch);
        }
    }
}

/// A scheduler with its lock, its instances' mailboxes and its statistics.
pub(crate) struct Driver {
    state: Mutex<State>,
    mailboxes: Mailboxes,
    answers: Answers,
    waiting: AtomicUsize,
    /// The bound on what waits for all models.
    limit: Arc<WaitingLimit>,
    /// Where executions need slots of a device.
    seat: Option<DeviceSeat>,
    /// How long the last run of any instance took, in nanoseconds; at first for ever.
    last_run_ns: AtomicU64,
    /// Instances that take batches now.
    alive_instances: AtomicUsize,
    /// How many cores executions keep busy.
    parallelism: Parallelism,
    /// Executions that have been answered for since they take longer than they may, and have not ended.
    overdue: AtomicUsize,
    /// Set when no instance could be kept alive.
    broken: AtomicBool,
    /// Whether the policy would like to know what executions take before it serves any.
    wants_profile: AtomicBool,
}

/// Where a model's executions take place.
pub(crate) struct DeviceTerms {
    pub(crate) device: Arc<Device>,
    /// Its share of the device's time among others.
    pub(crate) weight: f64,
    /// The slots that an execution keeps busy.
    pub(crate) threads: u32,
}

impl Driver {
    /// A driver without instances.
    ///
    /// # Errors
    /// When the process cannot start its timer and the scheduler needs it.
    pub(crate) fn new(
        scheduling: Scheduling,
        statistics: Statistics,
        limit: Arc<WaitingLimit>,
        place: Option<DeviceTerms>,
    ) -> Result<Arc<Self>, RuntimeError> {
        let Scheduling {
            mut options,
            preserve_ordering,
            needs_timer,
        } = scheduling;
        let timer = needs_timer.then(Timer::started).transpose()?;
        let answers = Answers::new(statistics, preserve_ordering, options.max_waiting);
        options.slots = place.is_some();
        let wants_profile = matches!(options.policy, Policy::Objective(_));
        let scheduler = Scheduler::new(options);
        Ok(Arc::new_cyclic(|this: &Weak<Self>| Self {
            seat: place.map(|place| {
                let this: Weak<dyn SlotHolder> = this.clone();
                DeviceSeat::new(place.device, place.weight, place.threads, this)
            }),
            state: Mutex::new(State {
                scheduler,
                retired: Vec::new(),
                next_request: 0,
                appointment: timer.map(|timer| Appointment::new(timer, this.clone())),
                now: Time::ZERO,
            }),
            mailboxes: Mailboxes::default(),
            answers,
            waiting: AtomicUsize::new(0),
            limit,
            last_run_ns: AtomicU64::new(u64::MAX),
            alive_instances: AtomicUsize::new(0),
            parallelism: Parallelism::default(),
            overdue: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            wants_profile: AtomicBool::new(wants_profile),
        }))
    }

    pub(crate) fn statistics(&self) -> &Statistics {
        &self.answers.statistics
    }

    /// What the policy is doing now.
    pub(crate) fn policy_snapshot(&self) -> PolicySnapshot {
        let state = self.lock();
        state.scheduler.policy_snapshot(state.now.max(clock::now()))
    }

    /// Requests that wait for an instance.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.alive_instances.load(Ordering::Relaxed) > 0 && !self.broken.load(Ordering::Relaxed)
    }

    /// Gives an instance's mailbox and gets its number; batches come once the instance has said that it is ready, and
    /// never for a passive one.
    pub(crate) fn connect(&self, mailbox: SyncSender<JobBatch>, passive: bool) -> InstanceId {
        self.mailboxes.open(mailbox, passive)
    }

    /// Waits for the slots of an execution that the scheduler does not know; none where executions need none.
    pub(crate) fn occupy(&self) -> Option<OccupiedSlots> {
        self.seat.as_ref().map(DeviceSeat::occupy)
    }

    /// Whether whoever asks should measure what executions take; true once at most.
    pub(crate) fn wants_profile(&self) -> bool {
        self.wants_profile.swap(false, Ordering::Relaxed)
    }

    /// An execution of this batch size took so long, outside of serving.
    pub(crate) fn measured(&self, batch_size: usize, duration: Duration) {
        let input = Input::Measured {
            batch_size,
            duration,
        };
        self.apply(clock::now(), self.lock(), input, None, None);
    }

    /// An execution took so much CPU time in so long.
    pub(crate) fn used(&self, cpu: Duration, duration: Duration) {
        if self.seat.is_some() {
            self.parallelism.measured(cpu, duration);
        }
    }

    /// Takes an instance away: it gets no further batch, and ends when it has answered the one that it has.
    pub(crate) fn retire(&self, instance: InstanceId) {
        let mut state = self.lock();
        state.retired.push(instance);
        let known = state.scheduler.is_busy(instance);
        self.apply(
            clock::now(),
            state,
            Input::InstanceGone(instance),
            None,
            None,
        );
        match known {
            // What was decided for it may still be on its way; it leaves when it has finished.
            Some(true) => {}
            Some(false) => self.leave(instance),
            // Passive, or being made again.
            None => {
                self.mailboxes.close(instance);
            }
        }
    }

    /// An instance could not be made at all.
    pub(crate) fn abandon(&self, instance: InstanceId) {
        self.mailboxes.close(instance);
        self.vacate(instance);
    }

    /// The thread of an instance has ended: its number is free.
    pub(crate) fn vacate(&self, instance: InstanceId) {
        self.lock().retired.retain(|retired| *retired != instance);
        self.mailboxes.vacate(instance);
    }

    /// An instance that took batches takes none any more.
    fn leave(&self, instance: InstanceId) {
        self.alive_instances.fetch_sub(1, Ordering::Relaxed);
        self.mailboxes.close(instance);
    }

    /// Takes a request in: it is queued, answered with an error, or dispatched, which the caller has to complete.
    pub(crate) fn enqueue(
        &self,
        mut job: Box<Job>,
        priority: u64,
        timeout: Option<Duration>,
    ) -> (RequestId, Handover<'_>) {
        let (now, batch_size) = (job.arrived, job.prepared.batch_size);
        let mut state = self.lock();
        let id = RequestId(state.next_request);
        state.next_request += 1;
        job.id = id;
        let mut handover = Handover {
            driver: self,
            dispatched: None,
        };
        let refused = match self.why_not() {
            None if self.answers.are_too_many() => Some(QUEUE_FULL.to_owned()),
            why_not => why_not,
        };
        if let Some(why) = refused {
            drop(state);
            self.answers.refuse(job, why);
            return (id, handover);
        }
        let request = Request {
            id,
            batch_size,
            priority,
            timeout,
            payload: job,
        };
        let mut outputs = Outputs::new();
        let is_too_many = self.decide(now, &mut state, Input::Enqueue(request), &mut outputs);
        if is_too_many {
            // It would wait, and more wait on the node than may. What else the arrival led to stays.
            self.decide(now, &mut state, Input::Cancel(id), &mut outputs);
        }
        let pending = self.settle(&mut state, &mut outputs, None);
        drop(state);
        pending.deliver();
        for output in outputs {
            match output {
                Output::Dispatch { instance, batch } => {
                    // What arrives may end the batch before it, so that two leave.
                    if let Some((instance, batch)) = handover.dispatched.replace((instance, batch))
                    {
                        self.send(instance, batch);
                    }
                }
                Output::Reject { request, .. } if is_too_many && request.id == id => {
                    self.answers.refuse(request.payload, self.node_is_full());
                }
                Output::Reject {
                    request,
                    reason: RejectReason::QueueFull,
                } => self.answers.refuse(request.payload, QUEUE_FULL.to_owned()),
                Output::Reject { request, reason } => self.reject(request.payload, reason),
                Output::WantSlot | Output::ReturnSlot => unreachable!("slots are settled"),
            }
        }
        (id, handover)
    }

    /// Takes a request out of the queue if it is still there.
    pub(crate) fn cancel(&self, id: RequestId) {
        self.apply(clock::now(), self.lock(), Input::Cancel(id), None, None);
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

    /// An instance that began at `taken` finished at `now`; what it should run next, if anything waits. `spent` is the
    /// list of the batch that it had.
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
            self.give_back_slot(state, duration);
            self.leave(instance);
            return None;
        }
        state.scheduler.recycle(spent);
        let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.last_run_ns.store(duration_ns, Ordering::Relaxed);
        let input = Input::Finished { instance, duration };
        self.apply(now, state, input, Some(duration), Some(instance))
    }

    /// An instance that began at `taken` died; whether it is to be made again, which one that was taken away meanwhile is not.
    /// What waits goes on waiting for the others or for its replacement.
    pub(crate) fn gone(&self, instance: InstanceId, taken: Time) -> bool {
        let now = clock::now();
        let duration = now.since(taken);
        let state = self.lock();
        if state.retired.contains(&instance) {
            self.give_back_slot(state, duration);
            self.leave(instance);
            return false;
        }
        self.alive_instances.fetch_sub(1, Ordering::Relaxed);
        let input = Input::InstanceGone(instance);
        self.apply(now, state, input, Some(duration), None);
        self.mailboxes.is_open(instance)
    }

    /// An execution that began at `taken` takes longer than it may, and its batch has been answered: the instance gets no
    /// further one until [`Driver::back`], and its slots are others'. Where no other instance can run, what waits is answered.
    pub(crate) fn overdue(&self, instance: InstanceId, taken: Time) {
        let now = clock::now();
        let duration = now.since(taken);
        let mut state = self.lock();
        self.overdue.fetch_add(1, Ordering::Relaxed);
        if state.retired.contains(&instance) {
            self.give_back_slot(state, duration);
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

    /// Answers those who wait for a failed execution, which ended at `ended`.
    pub(crate) fn fail(&self, waiters: Waiters, error: &RuntimeError, ended: Time) {
        for waiter in waiters {
            let total = ended.since(waiter.arrived);
            self.statistics().failed(FailureReason::Backend, total);
            self.answer(waiter, Err(error.clone()));
        }
    }

    /// An execution that was overdue has ended after all; whether the instance is still wanted.
    pub(crate) fn back(&self, instance: InstanceId) -> bool {
        self.overdue.fetch_sub(1, Ordering::Relaxed);
        self.mailboxes.is_open(instance)
    }

    /// An instance that died cannot be made again. After the last one, what waits is answered and nothing more is taken.
    pub(crate) fn give_up(&self, instance: InstanceId) {
        if self.mailboxes.close(instance) {
            self.broken.store(true, Ordering::Relaxed);
            self.drain();
        }
    }

    /// Lets nothing wait for more requests any longer; new ones are still taken.
    pub(crate) fn hurry(&self) {
        self.apply(clock::now(), self.lock(), Input::Hurry, None, None);
    }

    /// Takes no new requests; what waits is still served.
    pub(crate) fn drain(&self) {
        self.apply(clock::now(), self.lock(), Input::Drain, None, None);
    }

    /// Ends the instances once they have finished what they run. Only when nobody can enqueue any more.
    pub(crate) fn close(&self) {
        self.drain();
        self.mailboxes.close_all();
    }

    fn send(&self, instance: InstanceId, batch: JobBatch) {
        let Err(refused) = self.mailboxes.send(instance, batch) else {
            return;
        };
        // Reached only by an instance that ended without saying so.
        for mut request in refused.requests {
            let error = RuntimeError::internal("the instance ended before it took the request");
            self.answer(request.payload.take_waiter(), Err(error));
        }
        self.give_back_slot(self.lock(), Duration::ZERO);
    }

    /// Answers a request that was taken in.
    pub(crate) fn answer(&self, waiter: InferWaiter, outcome: InferOutcome) {
        self.answers.answer(waiter, outcome);
    }

    fn reject(&self, job: Box<Job>, reason: RejectReason) {
        self.answers.reject(job, reason, self.why_not().as_deref());
    }

    /// Why no instance can run, `None` where one can.
    pub(crate) fn why_not(&self) -> Option<String> {
        if self.broken.load(Ordering::Relaxed) {
            return Some(
                "no instance of the model is alive: each one failed and could not be restarted"
                    .to_owned(),
            );
        }
        let overdue = self.overdue.load(Ordering::Relaxed);
        (overdue > 0 && self.alive_instances.load(Ordering::Relaxed) == 0).then(|| {
            format!(
                "no instance of the model can run: {overdue} of its executions take longer than they may (`max_execution_ms`)"
            )
        })
    }

    fn node_is_full(&self) -> String {
        format!(
            "Exceeds maximum queue size of the server: {} requests wait for its models (`--max-waiting-requests`)",
            self.limit.max()
        )
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.limit.count(self.waiting(), 0);
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}
