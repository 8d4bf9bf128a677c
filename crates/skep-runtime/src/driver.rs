//! The driver of a scheduler: applies inputs and carries out outputs, on whichever thread has the input.
//!
//! The critical section is `Scheduler::handle` alone. Instances get their batches through a mailbox of capacity one,
//! which never blocks: an instance has at most one batch at a time. A finished instance that is given its next batch
//! takes it directly.
//!
//! Where a scheduler wants to be called at some moment, the process's [`Timer`] does so.
//!
//! An instance that is taken away ([`Driver::retire`]) leaves the scheduler at once and its mailbox when it is idle: a
//! batch that was decided for it still reaches it and is answered.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
    time::Duration,
};

use skep_scheduler::{
    Batch, Input, InstanceId, Output, Outputs, Policy, PolicySnapshot, RejectReason, Request,
    RequestId, Scheduler,
};
use skep_types::Time;

use crate::{
    ErrorKind, FailureReason, RuntimeError, WaitingLimit, clock,
    device::{Device, PendingGrants, Seat, SlotNews, Tenant},
    job::{Job, Outcome, Reply},
    recorder::Statistics,
    scheduling::Scheduling,
    timer::{Alarm, Appointment, Timer},
};

/// What an instance gets: boxed, since a job is handed on from the caller through the queue to the instance.
pub(crate) type Work = Batch<Box<Job>>;

/// Triton's words for a queue that holds as many requests as it may.
const QUEUE_FULL: &str = "Exceeds maximum queue size";

/// A run shorter than this is not worth a wake-up of its own: waking a thread and letting it sleep again costs the two
/// threads some 5 us of CPU.
const SHORT_RUN: Duration = Duration::from_micros(100);

/// A batch on its way to an idle instance. Dropping it hands it over, which wakes the instance's thread.
#[must_use]
pub(crate) struct Handover<'a> {
    driver: &'a Driver,
    dispatched: Option<(InstanceId, Work)>,
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
    /// By instance. Apart from the state, so that waking an instance's thread is outside of the critical section.
    mailboxes: RwLock<Vec<Mailbox>>,
    statistics: Statistics,
    waiting: AtomicUsize,
    /// The bound on what waits for all models.
    limit: Arc<WaitingLimit>,
    /// Where executions need slots of a device.
    seat: Option<Seat>,
    /// Answers on their way out, for models whose answers leave in the order of their requests.
    order: Option<Mutex<skep_scheduler::Ordering<(Reply, Outcome)>>>,
    /// How many answers the order may hold back.
    max_held: usize,
    /// How long the last run of any instance took, in nanoseconds; at first for ever.
    last_run_ns: AtomicU64,
    /// Instances that take batches now.
    alive_instances: AtomicUsize,
    /// Instances that take batches or are being made anew.
    possible_instances: AtomicUsize,
    /// Set when no instance could be kept alive.
    broken: AtomicBool,
    /// Whether the policy would like to know what executions take before it serves any.
    wants_profile: AtomicBool,
}

/// Where a model's executions take place.
pub(crate) struct Place {
    pub(crate) device: Arc<Device>,
    /// Its share of the device's time among others.
    pub(crate) weight: f64,
    /// The slots that an execution keeps busy.
    pub(crate) threads: u32,
}

/// How an instance is reached.
enum Mailbox {
    /// No instance has this number.
    Vacant,
    Open {
        sender: SyncSender<Work>,
        /// It gets no batches.
        passive: bool,
    },
    /// The instance ends; its number is taken until its thread has.
    Closed,
}

struct State {
    scheduler: Scheduler<Box<Job>>,
    /// Instances that were taken away and whose threads have not ended. A handful.
    retired: Vec<InstanceId>,
    next_request: u64,
    /// Where the scheduler may want to be called.
    appointment: Option<Appointment>,
    /// The latest moment that the scheduler was told: moments are taken before the lock, and it must not see time go back.
    now: Time,
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
        place: Option<Place>,
    ) -> Result<Arc<Self>, RuntimeError> {
        let Scheduling {
            mut options,
            preserve_ordering,
            needs_timer,
        } = scheduling;
        let timer = needs_timer.then(Timer::started).transpose()?;
        let max_held = options.max_waiting;
        options.slots = place.is_some();
        let wants_profile = matches!(options.policy, Policy::Objective(_));
        let scheduler = Scheduler::new(options);
        Ok(Arc::new_cyclic(|this: &Weak<Self>| Self {
            seat: place.map(|place| {
                let this: Weak<dyn Tenant> = this.clone();
                Seat::new(place.device, place.weight, place.threads, this)
            }),
            state: Mutex::new(State {
                scheduler,
                retired: Vec::new(),
                next_request: 0,
                appointment: timer.map(|timer| Appointment::new(timer, this.clone())),
                now: Time::ZERO,
            }),
            mailboxes: RwLock::default(),
            statistics,
            waiting: AtomicUsize::new(0),
            limit,
            order: preserve_ordering.then(Mutex::default),
            max_held,
            last_run_ns: AtomicU64::new(u64::MAX),
            alive_instances: AtomicUsize::new(0),
            possible_instances: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            wants_profile: AtomicBool::new(wants_profile),
        }))
    }

    pub(crate) fn statistics(&self) -> &Statistics {
        &self.statistics
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
    pub(crate) fn connect(&self, mailbox: SyncSender<Work>, passive: bool) -> InstanceId {
        let mut mailboxes = self
            .mailboxes
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let vacant = mailboxes
            .iter()
            .position(|mailbox| matches!(mailbox, Mailbox::Vacant));
        let index = vacant.unwrap_or_else(|| {
            mailboxes.push(Mailbox::Vacant);
            mailboxes.len() - 1
        });
        mailboxes[index] = Mailbox::Open {
            sender: mailbox,
            passive,
        };
        if !passive {
            self.possible_instances.fetch_add(1, Ordering::Relaxed);
        }
        InstanceId(u32::try_from(index).unwrap_or(u32::MAX))
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
            // Passive, or being made anew.
            None => {
                self.close_mailbox(instance);
            }
        }
    }

    /// An instance could not be made at all.
    pub(crate) fn abandon(&self, instance: InstanceId) {
        self.close_mailbox(instance);
        self.vacate(instance);
    }

    /// The thread of an instance has ended: its number is free.
    pub(crate) fn vacate(&self, instance: InstanceId) {
        self.lock().retired.retain(|retired| *retired != instance);
        let mut mailboxes = self
            .mailboxes
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(mailbox) = mailboxes.get_mut(index(instance)) {
            *mailbox = Mailbox::Vacant;
        }
    }

    /// An instance that took batches takes none any more.
    fn leave(&self, instance: InstanceId) {
        self.alive_instances.fetch_sub(1, Ordering::Relaxed);
        self.close_mailbox(instance);
    }

    /// Closes an instance's mailbox; whether it was the last one that could take batches.
    fn close_mailbox(&self, instance: InstanceId) -> bool {
        let mut mailboxes = self
            .mailboxes
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(mailbox) = mailboxes.get_mut(index(instance)) else {
            return false;
        };
        let before = std::mem::replace(mailbox, Mailbox::Closed);
        matches!(before, Mailbox::Open { passive: false, .. })
            && self.possible_instances.fetch_sub(1, Ordering::AcqRel) == 1
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
        if self.holds_too_many() {
            drop(state);
            self.refuse(job, QUEUE_FULL.to_owned());
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
                    self.refuse(request.payload, self.node_is_full());
                }
                Output::Reject {
                    request,
                    reason: RejectReason::QueueFull,
                } => self.refuse(request.payload, QUEUE_FULL.to_owned()),
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
    pub(crate) fn ready(&self, instance: InstanceId) -> Option<Work> {
        let state = self.lock();
        if state.retired.contains(&instance) {
            drop(state);
            self.close_mailbox(instance);
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
    ) -> Option<Work> {
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

    /// An instance that began at `taken` died. What waits goes on waiting for the others or for its replacement.
    pub(crate) fn gone(&self, instance: InstanceId, taken: Time) {
        self.alive_instances.fetch_sub(1, Ordering::Relaxed);
        let now = clock::now();
        let input = Input::InstanceGone(instance);
        self.apply(now, self.lock(), input, Some(now.since(taken)), None);
    }

    /// An instance that died cannot be made anew. After the last one, what waits is answered and nothing more is taken.
    pub(crate) fn give_up(&self, instance: InstanceId) {
        if self.close_mailbox(instance) {
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
        let mut mailboxes = self
            .mailboxes
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for mailbox in mailboxes.iter_mut() {
            *mailbox = Mailbox::Closed;
        }
    }

    /// Applies one input under the lock, then carries out the outputs without it. `released` is how long the execution
    /// took that is over with this input; a batch for `own` is given back.
    fn apply(
        &self,
        now: Time,
        mut state: MutexGuard<'_, State>,
        input: Input<Box<Job>>,
        released: Option<Duration>,
        own: Option<InstanceId>,
    ) -> Option<Work> {
        let mut outputs = Outputs::new();
        self.decide(now, &mut state, input, &mut outputs);
        let pending = self.settle(&mut state, &mut outputs, released);
        drop(state);
        let kept = self.carry_out(outputs, own);
        pending.deliver();
        kept
    }

    /// Takes what concerns slots out of the outputs and settles it with the device, until nothing more follows for this
    /// model. What follows for others is given back, to be delivered when the lock is not held any more.
    fn settle(
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
            if news.is_none() || !seat.tell(news, &mut pending) {
                return pending;
            }
            news = SlotNews::default();
            self.decide(state.now, state, Input::SlotGranted, outputs);
        }
    }

    /// An execution is over of which the scheduler knows nothing any more.
    fn give_back_slot(&self, mut state: MutexGuard<'_, State>, took: Duration) {
        let mut outputs = Outputs::new();
        let pending = self.settle(&mut state, &mut outputs, Some(took));
        drop(state);
        self.carry_out(outputs, None);
        pending.deliver();
    }

    /// A batch for `own` is given back.
    fn carry_out(&self, outputs: Outputs<Box<Job>>, own: Option<InstanceId>) -> Option<Work> {
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
    fn decide(
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

    /// Gives a batch to an instance. The mailbox of one that was free is empty: this neither blocks nor allocates.
    fn send(&self, instance: InstanceId, batch: Work) {
        let mailboxes = self
            .mailboxes
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let refused = match mailboxes.get(index(instance)) {
            Some(Mailbox::Open { sender, .. }) => match sender.try_send(batch) {
                Ok(()) => return,
                Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => batch,
            },
            _ => batch,
        };
        drop(mailboxes);
        // Reached only by an instance that ended without saying so.
        for request in refused.requests {
            let error = RuntimeError::internal("the instance ended before it took the request");
            self.answer(request.payload, Err(error));
        }
        self.give_back_slot(self.lock(), Duration::ZERO);
    }

    /// Answers a request that was taken in.
    pub(crate) fn answer(&self, job: Box<Job>, outcome: Outcome) {
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
    fn refuse(&self, job: Box<Job>, text: String) {
        self.count_failure(FailureReason::Rejected, &job);
        let Job { id, reply, .. } = *job;
        if let Some(order) = &self.order {
            lock(order).finish(id, None, |(reply, outcome)| drop(reply.send(outcome)));
        }
        drop(reply.send(Err(RuntimeError::new(ErrorKind::Unavailable, text))));
    }

    /// Ends a request that was taken in and is not executed.
    fn reject(&self, job: Box<Job>, reason: RejectReason) {
        let label = match reason {
            RejectReason::QueueFull
            | RejectReason::TimedOut
            | RejectReason::TooLate
            | RejectReason::Draining => FailureReason::Rejected,
            RejectReason::Cancelled => FailureReason::Canceled,
        };
        self.count_failure(label, &job);
        let text = match reason {
            RejectReason::QueueFull => QUEUE_FULL,
            RejectReason::TimedOut => "Request timeout expired",
            RejectReason::TooLate => {
                "the request can no longer be answered within its latency objective"
            }
            RejectReason::Draining if self.broken.load(Ordering::Relaxed) => {
                "no instance of the model is alive: each one failed and could not be restarted"
            }
            RejectReason::Draining => {
                "Server is stopping, scheduler for model has stopped accepting new inference requests"
            }
            RejectReason::Cancelled => "the request was cancelled",
        };
        self.answer(job, Err(RuntimeError::new(ErrorKind::Unavailable, text)));
    }

    fn count_failure(&self, label: FailureReason, job: &Job) {
        let total = clock::now().since(job.arrived);
        self.statistics.failed(label, total);
    }

    /// Whether as many answers wait for those before them as requests may wait: those are a queue as well.
    fn holds_too_many(&self) -> bool {
        let order = self.order.as_ref();
        order.is_some_and(|order| lock(order).held() >= self.max_held)
    }

    fn node_is_full(&self) -> String {
        format!(
            "Exceeds maximum queue size of the server: {} requests wait for its models (`--max-waiting-requests`)",
            self.limit.max()
        )
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // `handle` does not panic on any input; a poisoned lock still holds a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Alarm for Driver {
    fn ring(&self) {
        let mut outputs = Outputs::new();
        let mut state = self.lock();
        if let Some(appointment) = &mut state.appointment {
            appointment.rung();
        }
        let state_ref = &mut *state;
        state_ref.now = state_ref.now.max(clock::now());
        state_ref
            .scheduler
            .handle_timeout(state_ref.now, &mut outputs);
        self.note(state_ref);
        let pending = self.settle(state_ref, &mut outputs, None);
        drop(state);
        self.carry_out(outputs, None);
        pending.deliver();
    }
}

impl Tenant for Driver {
    fn granted(&self, pending: &mut PendingGrants) {
        let mut outputs = Outputs::new();
        let mut state = self.lock();
        self.decide(clock::now(), &mut state, Input::SlotGranted, &mut outputs);
        pending.append(self.settle(&mut state, &mut outputs, None));
        drop(state);
        self.carry_out(outputs, None);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.limit.count(self.waiting(), 0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn index(instance: InstanceId) -> usize {
    usize::try_from(instance.0).unwrap_or(usize::MAX)
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}
