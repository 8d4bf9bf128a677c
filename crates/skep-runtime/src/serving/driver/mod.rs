//! The driver of a scheduler: applies inputs and carries out outputs, on the thread that has the input.
//!
//! ```text
//! requests  (arrive, leave) ---+--> deciding: Scheduler::handle under the lock, outputs carried out without it
//! reports   (of instances)  ---+                |--> mailboxes: the instances
//! timer     (a moment)      ---+                |--> answers: the way out
//! device    (a slot)        ---+
//! ```
//!
//! The critical section is `Scheduler::handle` alone. A finished instance that is given its next batch takes it
//! directly, past the mailboxes. Where a scheduler wants to be called at some moment, the process's [`Timer`] does so.
//!
//! The scheduler, of requests or of sequences, is made of the options that [`scheduling`] derives from the model's
//! configuration; [`state`] holds it.

mod answers;
mod deciding;
mod mailboxes;
mod parallelism;
mod reports;
pub(crate) mod requests;
pub(crate) mod room;
pub(crate) mod scheduling;
mod state;

use std::{
    fmt,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use skep_scheduler::{Batch, PolicySnapshot};
use skep_types::Time;

use self::{
    answers::AnswerSink, mailboxes::Mailboxes, parallelism::Parallelism, room::QueueRoom,
    scheduling::Scheduling, state::DriverState,
};
use crate::{
    clock,
    error::RuntimeError,
    serving::{
        device::{Device, DeviceSeat, SlotHolder},
        job::{InferOutcome, InferWaiter, Job},
        resources::{PermitState, RateLimiter, ResourceSeat},
        waiting_limit::WaitingLimit,
    },
    statistics::recorder::Statistics,
    timer::{Appointment, Timer},
};

/// A batch for an instance. Jobs are boxed, since each is handed on from the caller through the queue to the instance.
pub(crate) type JobBatch = Batch<Box<Job>>;

/// A scheduler with its lock, its instances' mailboxes and its statistics.
pub(crate) struct Driver {
    state: Mutex<DriverState>,
    mailboxes: Mailboxes,
    answers: AnswerSink,
    waiting: AtomicUsize,
    /// For requests that wait outside of the full queue.
    pub(crate) room: QueueRoom,
    /// The bound on requests that wait on the node.
    limit: Arc<WaitingLimit>,
    /// Set if executions need slots of a device.
    seat: Option<DeviceSeat>,
    /// Set if instances share resources. An execution gets them before it asks for slots.
    resources: Option<ResourceSeat>,
    /// How long the last run of any instance took; the maximum before the first run.
    last_run_ns: AtomicU64,
    /// Instances that take batches now.
    alive_instances: AtomicUsize,
    /// How many cores executions keep busy.
    parallelism: Parallelism,
    /// Executions that were given up because they take longer than they may, and have not ended.
    overdue: AtomicUsize,
    /// Set when the last instance could not be recreated.
    broken: AtomicBool,
    /// Whether the policy wants to know what executions take before it serves any.
    wants_profile: AtomicBool,
}

/// The device of a model's executions, and the model's share of it.
pub(crate) struct DeviceTerms {
    pub(crate) device: Arc<Device>,
    /// The model's share of the device's time, relative to other models.
    pub(crate) weight: f64,
    /// Slots that an execution keeps busy.
    pub(crate) threads: u32,
}

impl Driver {
    /// A driver without instances.
    ///
    /// # Errors
    /// When the scheduler needs the timer and the process cannot start it.
    pub(crate) fn new(
        scheduling: Scheduling,
        statistics: Statistics,
        limit: Arc<WaitingLimit>,
        terms: Option<DeviceTerms>,
        limiter: Option<Arc<RateLimiter>>,
    ) -> Result<Arc<Self>, RuntimeError> {
        let Scheduling {
            model,
            options,
            preserve_ordering,
            needs_timer,
        } = scheduling;
        let timer = needs_timer.then(Timer::started).transpose()?;
        let max_held = options.max_waiting();
        let answers = AnswerSink::new(model, statistics, preserve_ordering, max_held);
        let wants_profile = options.has_objective();
        let scheduler = options.scheduler(terms.is_some() || limiter.is_some());
        Ok(Arc::new_cyclic(|this: &Weak<Self>| Self {
            seat: terms.map(|terms| {
                let this: Weak<dyn SlotHolder> = this.clone();
                DeviceSeat::new(terms.device, terms.weight, terms.threads, this)
            }),
            resources: limiter.map(|limiter| {
                let this: Weak<dyn SlotHolder> = this.clone();
                ResourceSeat::new(limiter, this)
            }),
            state: Mutex::new(DriverState {
                scheduler,
                retired: Vec::new(),
                next_request: 0,
                permit: PermitState::default(),
                appointment: timer.map(|timer| Appointment::new(timer, this.clone())),
                now: Time::ZERO,
            }),
            mailboxes: Mailboxes::default(),
            answers,
            waiting: AtomicUsize::new(0),
            room: QueueRoom::default(),
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

    /// Why no instance can run; `None` if one can.
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
                "no instance of the model can run: {overdue} of its executions take longer than `max_execution_ms` allows"
            )
        })
    }

    /// Answers a request that was taken in.
    pub(crate) fn answer(&self, waiter: InferWaiter, outcome: InferOutcome) {
        self.answers.answer(waiter, outcome);
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
