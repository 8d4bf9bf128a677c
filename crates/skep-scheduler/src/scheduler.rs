//! The state machine.

use std::time::Duration;

use skep_types::Time;

use crate::{
    Batch, BatchEnd, Input, InstanceId, Output, Outputs, Payload, Policy, PolicySnapshot,
    QueuePolicy, RejectReason, Request, SchedulerOptions, TimeoutAction,
    instances::{Instances, RunningBatch},
    policy::{Verdict, objective::ObjectiveEngine},
    prefix::Prefix,
    waiting::{QueueLane, QueuePosition, WaitQueue},
};

/// The scheduler of one model version. See the crate's page.
#[derive(Debug)]
pub struct Scheduler<P> {
    options: SchedulerOptions,
    /// The most inferences of a batch that the options allow; their present maximum may be less.
    largest_batch: usize,
    waiting: WaitQueue<P>,
    prefix: Prefix,
    instances: Instances,
    /// The engine that keeps the objective, if the policy has one.
    engine: Option<Box<ObjectiveEngine>>,
    slot: SlotState,
    /// When the policy wants to decide again.
    wake: Option<Time>,
    draining: bool,
    hurried: bool,
    /// Emptied batches, for the next ones.
    spare: Vec<Vec<Request<P>>>,
    last_batch: Option<(usize, BatchEnd)>,
    /// How many overdue requests were rejected, and how many were put behind all others.
    rejected: u64,
    delayed: u64,
}

/// Emptied batches that are kept; each instance has one at a time.
const MAX_SPARE: usize = 64;

/// The compute slot of the next execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotState {
    NotAsked,
    Asked,
    /// For an instance, or for any.
    Granted(Option<InstanceId>),
}

impl<P: Payload> Scheduler<P> {
    /// A scheduler without instances: requests wait until one joins.
    #[must_use]
    pub fn new(options: SchedulerOptions) -> Self {
        let engine = match &options.policy {
            Policy::Objective(objective) => Some(Box::new(ObjectiveEngine::new(
                objective.clone(),
                options.max_batch_size,
            ))),
            Policy::OneByOne | Policy::Triton(_) => None,
        };
        Self {
            engine,
            waiting: WaitQueue::new(options.levels.len()),
            largest_batch: options.max_batch_size,
            options,
            prefix: Prefix::default(),
            instances: Instances::default(),
            slot: SlotState::NotAsked,
            wake: None,
            draining: false,
            hurried: false,
            spare: Vec::new(),
            last_batch: None,
            rejected: 0,
            delayed: 0,
        }
    }

    /// Applies one input and appends the outputs. `now` never decreases.
    pub fn handle(&mut self, now: Time, input: Input<P>, outputs: &mut Outputs<P>) {
        self.handle_all(now, [input], outputs);
    }

    /// Applies all inputs of one moment, then decides.
    pub fn handle_all(
        &mut self,
        now: Time,
        inputs: impl IntoIterator<Item = Input<P>>,
        outputs: &mut Outputs<P>,
    ) {
        for input in inputs {
            self.apply(now, input, outputs);
        }
        self.decide(now, outputs);
    }

    /// Appends the outputs that are due since time has passed: none before [`Scheduler::next_timeout`].
    pub fn handle_timeout(&mut self, now: Time, outputs: &mut Outputs<P>) {
        self.decide(now, outputs);
    }

    /// When [`Scheduler::handle_timeout`] has something to do, if nothing else happens before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        let expiry = match &self.engine {
            Some(engine) => self.waiting.most_urgent().map(|w| engine.gives_up_at(w)),
            None => self.waiting.next_expiry(),
        };
        self.wake.into_iter().chain(expiry).min()
    }

    /// Takes back the list of a batch, so that the next batch needs no allocation.
    pub fn recycle(&mut self, mut requests: Vec<Request<P>>) {
        requests.clear();
        if self.spare.len() < MAX_SPARE {
            self.spare.push(requests);
        }
    }

    /// How many requests wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many inferences wait.
    #[must_use]
    pub fn waiting_inferences(&self) -> usize {
        self.waiting.inferences()
    }

    /// Whether an instance executes a batch; `None` for an unknown or removed one.
    #[must_use]
    pub fn is_busy(&self, instance: InstanceId) -> Option<bool> {
        self.instances.is_busy(instance)
    }

    /// The policy's present state. Allocates; do not call it for each request.
    #[must_use]
    pub fn policy_snapshot(&self, now: Time) -> PolicySnapshot {
        let engine = self.engine.as_deref();
        let max = self.options.max_batch_size;
        let (policy, cap, target) = match &self.options.policy {
            Policy::OneByOne => ("none", 1, 1),
            Policy::Triton(triton) => ("triton", max, triton.target(max)),
            Policy::Objective(objective) => {
                let engine = engine.expect("the policy has one");
                let instances = &self.instances;
                let (cap, target) = (engine.cap(now, instances), engine.target(now, instances));
                (objective.policy.name(), cap, target)
            }
        };
        PolicySnapshot {
            policy,
            objective: engine.map(|engine| engine.objective().latency),
            percentile: engine.map(|engine| engine.objective().percentile),
            cap,
            target,
            arrivals_per_s: engine.and_then(|engine| engine.arrivals_per_s(now)),
            latencies: engine.map(ObjectiveEngine::latencies).unwrap_or_default(),
            last_batch: self.last_batch,
            rejected: self.rejected,
            delayed: self.delayed,
            sequences: None,
        }
    }

    fn apply(&mut self, now: Time, input: Input<P>, outputs: &mut Outputs<P>) {
        match input {
            Input::Enqueue(request) => self.enqueue(now, request, outputs),
            Input::Cancel(id) | Input::Withdraw(id) => {
                if let Some(position) = self.waiting.position_of(id) {
                    self.reject(position, RejectReason::Cancelled, outputs);
                }
            }
            Input::InstanceReady(instance) => {
                self.instances.set_free(instance);
            }
            Input::Finished { instance, duration } => {
                let run = self.instances.set_free(instance);
                if let (Some(engine), Some(run)) = (&mut self.engine, run) {
                    engine.finished(run.size, duration);
                }
            }
            Input::Measured {
                batch_size,
                duration,
            } => {
                if let Some(engine) = &mut self.engine {
                    engine.measured(batch_size, duration);
                }
            }
            Input::InstanceGone(instance) | Input::InstanceRetired(instance) => {
                self.instances.remove(instance);
            }
            Input::RejectWaiting => {
                while let Some(position) = self.waiting.first() {
                    self.reject(position, RejectReason::NoInstance, outputs);
                }
            }
            Input::BatchCap(cap) => {
                if self.engine.is_none() {
                    self.options.max_batch_size = cap.clamp(1, self.largest_batch);
                    self.prefix.clear();
                }
            }
            Input::SlotGranted => self.slot = SlotState::Granted(None),
            Input::SlotGrantedFor(instance) => self.slot = SlotState::Granted(Some(instance)),
            Input::Hurry => self.hurried = true,
            Input::Drain => (self.draining, self.hurried) = (true, true),
        }
    }

    fn enqueue(&mut self, now: Time, request: Request<P>, outputs: &mut Outputs<P>) {
        let level = self.level(request.priority);
        let policy = &self.options.levels[level as usize];
        let full = self.waiting.len() >= self.options.max_waiting
            || policy
                .max_queue_size
                .is_some_and(|max| self.waiting.in_level(level) >= max);
        if self.draining || full {
            let reason = if self.draining {
                RejectReason::Draining
            } else {
                RejectReason::QueueFull
            };
            outputs.push(Output::Reject { request, reason });
            return;
        }
        let (urgency, expires) = match &mut self.engine {
            Some(engine) => {
                let deadline = engine.deadline(now, policy.timeout, request.timeout);
                let oldest = self.waiting.most_urgent().map(|waiter| waiter.since);
                engine.arrived(now, deadline, request.batch_size, &self.instances, oldest);
                (engine.urgency(deadline), Some(deadline))
            }
            None => {
                let wait = wait_of(policy, request.timeout);
                (Time::ZERO, wait.map(|wait| now + wait))
            }
        };
        let lane = QueueLane {
            level,
            overstayed: false,
        };
        let position = self.waiting.insert(request, now, lane, urgency, expires);
        self.prefix.touch(position);
    }

    /// The level's index of a request's priority.
    fn level(&self, priority: u64) -> u32 {
        let levels = self.options.levels.len();
        let named = usize::try_from(priority).unwrap_or(usize::MAX);
        let index = if (1..=levels).contains(&named) {
            named - 1
        } else {
            self.options.default_level
        };
        u32::try_from(index).expect("levels are few")
    }

    /// Removes a request and rejects it.
    fn reject(&mut self, position: QueuePosition, reason: RejectReason, outputs: &mut Outputs<P>) {
        let request = self.take(position);
        outputs.push(Output::Reject { request, reason });
    }

    fn take(&mut self, position: QueuePosition) -> Request<P> {
        self.prefix.touch(position);
        self.waiting.take(position).request
    }

    fn decide(&mut self, now: Time, outputs: &mut Outputs<P>) {
        self.expire(now, outputs);
        self.dispatch(now, outputs);
        self.reject_unservable(outputs);
    }

    /// Ends the waits whose time is over.
    fn expire(&mut self, now: Time, outputs: &mut Outputs<P>) {
        if let Some(engine) = &self.engine {
            let action = engine.objective().miss_action;
            while let Some(engine) = &self.engine
                && let Some(waiter) = self.waiting.most_urgent()
                && engine.gives_up_at(waiter) <= now
            {
                let position = waiter.position();
                self.end_wait(position, action, RejectReason::TooLate, outputs);
            }
            return;
        }
        while let Some(position) = self.waiting.expired(now) {
            let level = self.waiting.get(position).lane().level;
            let action = self.options.levels[level as usize].timeout_action;
            self.end_wait(position, action, RejectReason::TimedOut, outputs);
        }
    }

    /// Ends the wait of a request that has a time-out or a deadline.
    fn end_wait(
        &mut self,
        position: QueuePosition,
        action: TimeoutAction,
        reason: RejectReason,
        outputs: &mut Outputs<P>,
    ) {
        match action {
            TimeoutAction::Reject => {
                self.rejected += 1;
                self.reject(position, reason, outputs);
            }
            TimeoutAction::Delay => {
                self.delayed += 1;
                self.prefix.touch(position);
                let waiter = self.waiting.take(position);
                let lane = QueueLane {
                    level: waiter.lane().level,
                    overstayed: true,
                };
                // In the order in which their waits were to end.
                let urgency = waiter.expires.unwrap_or(waiter.since);
                let position =
                    self.waiting
                        .insert(waiter.request, waiter.since, lane, urgency, None);
                self.prefix.touch(position);
            }
        }
    }

    fn dispatch(&mut self, now: Time, outputs: &mut Outputs<P>) {
        self.wake = None;
        if self.waiting.len() >= self.options.hold_until || self.hurried {
            self.options.hold_until = 0;
        } else {
            return;
        }
        while self.waiting.len() > 0 && self.instances.any_free() {
            match self.verdict(now) {
                Verdict::Send { requests, end } => {
                    let mut chosen = None;
                    if self.options.slots {
                        match self.slot {
                            SlotState::Granted(instance) => {
                                chosen = instance;
                                self.slot = SlotState::NotAsked;
                            }
                            SlotState::Asked => return,
                            SlotState::NotAsked => {
                                self.slot = SlotState::Asked;
                                outputs.push(Output::WantSlot);
                                return;
                            }
                        }
                    }
                    self.send(now, requests, end, chosen, outputs);
                }
                Verdict::Drop { requests } => self.drop_first(requests, outputs),
                Verdict::Wait(until) => {
                    self.wake = Some(until);
                    break;
                }
            }
        }
        if matches!(self.slot, SlotState::Granted(_)) {
            self.slot = SlotState::NotAsked;
            outputs.push(Output::ReturnSlot);
        }
    }

    /// The policy's decision about the waiting requests.
    fn verdict(&mut self, now: Time) -> Verdict {
        match &self.options.policy {
            Policy::OneByOne => Verdict::Send {
                requests: 1,
                end: BatchEnd::NoBatching,
            },
            Policy::Triton(triton) => {
                let max = self.options.max_batch_size;
                self.prefix
                    .extend(&self.waiting, max, &triton.preferred_batch_sizes);
                triton.decide(now, &self.prefix, max, self.hurried)
            }
            Policy::Objective(_) => {
                let engine = self.engine.as_mut().expect("the policy has one");
                let max = self.options.max_batch_size;
                self.prefix.extend(&self.waiting, max, &[]);
                engine.decide(
                    now,
                    &self.prefix,
                    &self.waiting,
                    &self.instances,
                    self.hurried,
                )
            }
        }
    }

    /// Sends the first requests to a free instance: the chosen one, if one was.
    fn send(
        &mut self,
        now: Time,
        requests: usize,
        end: BatchEnd,
        chosen: Option<InstanceId>,
        outputs: &mut Outputs<P>,
    ) {
        let mut batch = self.spare.pop().unwrap_or_default();
        batch.reserve(requests);
        for _ in 0..requests {
            let position = self.waiting.first().expect("as many wait as are sent");
            batch.push(self.waiting.take(position).request);
        }
        self.prefix.clear();
        let size = batch.iter().map(|request| request.batch_size).sum();
        self.last_batch = Some((size, end));
        let run = RunningBatch { size, since: now };
        let instance = match chosen {
            Some(instance) => self.instances.take(instance, run),
            None => self.instances.take_free(run),
        };
        let instance = instance.expect("an instance is free");
        outputs.push(Output::Dispatch {
            instance,
            batch: Batch {
                requests: batch,
                end,
                rows: None,
            },
        });
    }

    /// Gives up the first requests; all have deadlines.
    fn drop_first(&mut self, requests: usize, outputs: &mut Outputs<P>) {
        let action = self
            .engine
            .as_ref()
            .map_or(TimeoutAction::Reject, |engine| {
                engine.objective().miss_action
            });
        for _ in 0..requests {
            let position = self.waiting.first().expect("as many wait as are dropped");
            self.end_wait(position, action, RejectReason::TooLate, outputs);
        }
    }

    /// Rejects all waiting requests when a draining scheduler has lost its last instance.
    fn reject_unservable(&mut self, outputs: &mut Outputs<P>) {
        if self.draining && self.instances.is_empty() {
            while let Some(position) = self.waiting.first() {
                self.reject(position, RejectReason::Draining, outputs);
            }
        }
    }
}

/// How long a request may wait: its queue's time-out, or its own if that counts and is shorter.
fn wait_of(policy: &QueuePolicy, own: Option<Duration>) -> Option<Duration> {
    let default = policy.timeout?;
    match own {
        Some(own) if policy.allow_timeout_override => Some(own.min(default)),
        _ => Some(default),
    }
}
