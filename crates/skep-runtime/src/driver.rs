//! The driver of a scheduler: applies inputs and carries out outputs, on whichever thread has the input.
//!
//! The critical section is `Scheduler::handle` alone. Instances get their batches through a mailbox of capacity one,
//! which never blocks: an instance has at most one batch at a time. A finished instance that is given its next batch
//! takes it directly.
//!
//! An instance that is taken away ([`Driver::retire`]) leaves the scheduler at once and its mailbox when it is idle: a
//! batch that was decided for it still reaches it and is answered.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
    time::Duration,
};

use skep_scheduler::{
    Batch, Input, InstanceId, Output, Outputs, Payload, RejectReason, Request, RequestId,
    Scheduler, SchedulerOptions,
};
use skep_types::Time;
use tokio::sync::oneshot;

use crate::{
    ErrorKind, FailureReason, InferResponse, RuntimeError, clock, recorder::Statistics,
    validate::Prepared,
};

/// A request on its way: what to run, and who waits.
pub(crate) struct Job {
    pub(crate) prepared: Prepared,
    pub(crate) reply: oneshot::Sender<Result<InferResponse, RuntimeError>>,
    /// When it arrived in the runtime.
    pub(crate) arrived: Time,
}

impl Job {
    /// Answers with an error; nobody may be listening any more.
    pub(crate) fn fail(self: Box<Self>, error: RuntimeError) {
        drop(self.reply.send(Err(error)));
    }
}

/// Jobs can share a batch if their tensors differ in nothing but the first dimension, and they left out the same.
impl Payload for Box<Job> {
    fn joins(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.prepared, &other.prepared);
        let mut pairs = ours.inputs.iter().zip(&theirs.inputs);
        ours.omitted == theirs.omitted
            && pairs.all(|(a, b)| a.shape().dims().get(1..) == b.shape().dims().get(1..))
    }
}

/// What an instance gets: boxed, since a job is handed on from the caller through the queue to the instance.
pub(crate) type Work = Batch<Box<Job>>;

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
    /// How long the last run of any instance took, in nanoseconds; at first for ever.
    last_run_ns: AtomicU64,
    /// Instances that take batches now.
    alive_instances: AtomicUsize,
    /// Instances that take batches or are being made anew.
    possible_instances: AtomicUsize,
    /// Set when no instance could be kept alive.
    broken: AtomicBool,
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
    /// The latest moment that the scheduler was told: moments are taken before the lock, and it must not see time go back.
    now: Time,
}

impl Driver {
    pub(crate) fn new(options: SchedulerOptions, statistics: Statistics) -> Self {
        let scheduler = Scheduler::new(options);
        Self {
            state: Mutex::new(State {
                scheduler,
                retired: Vec::new(),
                next_request: 0,
                now: Time::ZERO,
            }),
            mailboxes: RwLock::default(),
            statistics,
            waiting: AtomicUsize::new(0),
            last_run_ns: AtomicU64::new(u64::MAX),
            alive_instances: AtomicUsize::new(0),
            possible_instances: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        }
    }

    pub(crate) fn statistics(&self) -> &Statistics {
        &self.statistics
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

    /// Takes an instance away: it gets no further batch, and ends when it has answered the one that it has.
    pub(crate) fn retire(&self, instance: InstanceId) {
        let mut state = self.lock();
        state.retired.push(instance);
        let known = state.scheduler.is_busy(instance);
        self.apply(clock::now(), state, Input::InstanceGone(instance), None);
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
    pub(crate) fn enqueue(&self, job: Box<Job>) -> (RequestId, Handover<'_>) {
        let (now, batch_size) = (job.arrived, job.prepared.batch_size);
        let mut state = self.lock();
        let id = RequestId(state.next_request);
        state.next_request += 1;
        let request = Request {
            id,
            batch_size,
            priority: 0,
            timeout: None,
            payload: job,
        };
        let mut handover = Handover {
            driver: self,
            dispatched: None,
        };
        for output in self.decide(now, state, Input::Enqueue(request)) {
            match output {
                // A request that arrives frees nobody: at most one instance takes something.
                Output::Dispatch { instance, batch } => {
                    handover.dispatched = Some((instance, batch));
                }
                Output::Reject { request, reason } => self.reject(request.payload, reason),
                Output::WantSlot | Output::ReturnSlot => unreachable!("no slots are needed"),
            }
        }
        (id, handover)
    }

    /// Takes a request out of the queue if it is still there.
    pub(crate) fn cancel(&self, id: RequestId) {
        self.apply(clock::now(), self.lock(), Input::Cancel(id), None);
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
        self.apply(clock::now(), state, input, Some(instance))
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
        if state.retired.contains(&instance) {
            drop(state);
            self.leave(instance);
            return None;
        }
        state.scheduler.recycle(spent);
        let duration = now.since(taken);
        let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.last_run_ns.store(duration_ns, Ordering::Relaxed);
        let input = Input::Finished { instance, duration };
        self.apply(now, state, input, Some(instance))
    }

    /// An instance died. What waits goes on waiting for the others or for its replacement.
    pub(crate) fn gone(&self, instance: InstanceId) {
        self.alive_instances.fetch_sub(1, Ordering::Relaxed);
        let input = Input::InstanceGone(instance);
        self.apply(clock::now(), self.lock(), input, None);
    }

    /// An instance that died cannot be made anew. After the last one, what waits is answered and nothing more is taken.
    pub(crate) fn give_up(&self, instance: InstanceId) {
        if self.close_mailbox(instance) {
            self.broken.store(true, Ordering::Relaxed);
            self.drain();
        }
    }

    /// Takes no new requests; what waits is still served.
    pub(crate) fn drain(&self) {
        self.apply(clock::now(), self.lock(), Input::Drain, None);
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

    /// Applies one input under the lock, then carries out the outputs without it. A batch for `own` is given back.
    fn apply(
        &self,
        now: Time,
        state: MutexGuard<'_, State>,
        input: Input<Box<Job>>,
        own: Option<InstanceId>,
    ) -> Option<Work> {
        let mut kept = None;
        for output in self.decide(now, state, input) {
            match output {
                Output::Dispatch { instance, batch } if Some(instance) == own => kept = Some(batch),
                Output::Dispatch { instance, batch } => self.send(instance, batch),
                Output::Reject { request, reason } => self.reject(request.payload, reason),
                Output::WantSlot | Output::ReturnSlot => unreachable!("no slots are needed"),
            }
        }
        kept
    }

    /// Applies one input under the lock.
    fn decide(
        &self,
        now: Time,
        mut state: MutexGuard<'_, State>,
        input: Input<Box<Job>>,
    ) -> Outputs<Box<Job>> {
        let mut outputs = Outputs::new();
        state.now = state.now.max(now);
        let now = state.now;
        state.scheduler.handle(now, input, &mut outputs);
        self.waiting
            .store(state.scheduler.waiting(), Ordering::Relaxed);
        outputs
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
            request.payload.fail(RuntimeError::internal(
                "the instance ended before it took the request",
            ));
        }
    }

    fn reject(&self, job: Box<Job>, reason: RejectReason) {
        let label = match reason {
            RejectReason::QueueFull
            | RejectReason::TimedOut
            | RejectReason::TooLate
            | RejectReason::Draining => FailureReason::Rejected,
            RejectReason::Cancelled => FailureReason::Canceled,
        };
        self.statistics
            .failed(label, clock::now().since(job.arrived));
        let text = match reason {
            RejectReason::QueueFull => "Exceeds maximum queue size",
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
        job.fail(RuntimeError::new(ErrorKind::Unavailable, text));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // `handle` does not panic on any input; a poisoned lock still holds a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("batch_size", &self.prepared.batch_size)
            .finish_non_exhaustive()
    }
}
