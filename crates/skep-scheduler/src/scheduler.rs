//! The state machine.

use std::time::Duration;

use skep_types::Time;

use crate::{
    Batch, BatchEnd, Input, InstanceId, Output, Outputs, Payload, Policy, RejectReason, Request,
    SchedulerOptions, TimeoutAction,
    instances::Instances,
    policy::Verdict,
    prefix::Prefix,
    waiting::{Lane, Place, Waiting},
};

/// The scheduler of one model version. See the crate's page.
#[derive(Debug)]
pub struct Scheduler<P> {
    options: SchedulerOptions,
    waiting: Waiting<P>,
    prefix: Prefix,
    instances: Instances,
    slot: Slot,
    /// When the policy wants to look again.
    wake: Option<Time>,
    draining: bool,
    /// Emptied batches, for the next ones.
    spare: Vec<Vec<Request<P>>>,
}

/// Emptied batches that are kept; each instance has one at a time.
const MAX_SPARE: usize = 64;

/// The compute slot of the next execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    NotAsked,
    Asked,
    Granted,
}

impl<P: Payload> Scheduler<P> {
    /// A scheduler without instances: requests wait until one joins.
    #[must_use]
    pub fn new(options: SchedulerOptions) -> Self {
        Self {
            waiting: Waiting::new(options.levels.len()),
            options,
            prefix: Prefix::default(),
            instances: Instances::default(),
            slot: Slot::NotAsked,
            wake: None,
            draining: false,
            spare: Vec::new(),
        }
    }

    /// Applies one input and appends what follows from it. Moments never go back.
    pub fn handle(&mut self, now: Time, input: Input<P>, outputs: &mut Outputs<P>) {
        self.handle_all(now, [input], outputs);
    }

    /// Applies inputs of one moment, and only then decides what follows from them.
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

    /// Appends what follows from the mere passing of time: nothing before [`Scheduler::next_timeout`].
    pub fn handle_timeout(&mut self, now: Time, outputs: &mut Outputs<P>) {
        self.decide(now, outputs);
    }

    /// When [`Scheduler::handle_timeout`] has something to do, if nothing else happens before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        [self.wake, self.waiting.next_expiry()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Takes the list of a batch back when its requests have been taken out, so that the next batch needs no memory.
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

    /// Whether an instance executes a batch; `None` for one that is not (or no longer) there.
    #[must_use]
    pub fn is_busy(&self, instance: InstanceId) -> Option<bool> {
        self.instances.is_busy(instance)
    }

    fn apply(&mut self, now: Time, input: Input<P>, outputs: &mut Outputs<P>) {
        match input {
            Input::Enqueue(request) => self.enqueue(now, request, outputs),
            Input::Cancel(id) => {
                if let Some(place) = self.waiting.place_of(id) {
                    self.reject(place, RejectReason::Cancelled, outputs);
                }
            }
            Input::InstanceReady(instance) | Input::Finished { instance, .. } => {
                self.instances.set_free(instance);
            }
            Input::InstanceGone(instance) => self.instances.remove(instance),
            Input::SlotGranted => self.slot = Slot::Granted,
            Input::Drain => self.draining = true,
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
        let expires = wait_of(
            policy.timeout,
            policy.allow_timeout_override,
            request.timeout,
        )
        .map(|wait| now + wait);
        let lane = Lane {
            level,
            overstayed: false,
        };
        let place = self.waiting.insert(request, now, lane, Time::ZERO, expires);
        self.prefix.touch(place);
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

    /// Takes a request out and answers it with an error.
    fn reject(&mut self, place: Place, reason: RejectReason, outputs: &mut Outputs<P>) {
        let request = self.take(place);
        outputs.push(Output::Reject { request, reason });
    }

    fn take(&mut self, place: Place) -> Request<P> {
        self.prefix.touch(place);
        self.waiting.take(place).request
    }

    fn decide(&mut self, now: Time, outputs: &mut Outputs<P>) {
        self.expire(now, outputs);
        self.dispatch(now, outputs);
        self.reject_unservable(outputs);
    }

    /// Ends the waits that are over.
    fn expire(&mut self, now: Time, outputs: &mut Outputs<P>) {
        while let Some(place) = self.waiting.expired(now) {
            let level = self.waiting.get(place).lane().level;
            match self.options.levels[level as usize].timeout_action {
                TimeoutAction::Reject => self.reject(place, RejectReason::TimedOut, outputs),
                TimeoutAction::Delay => {
                    self.prefix.touch(place);
                    let waiter = self.waiting.take(place);
                    let lane = Lane {
                        level,
                        overstayed: true,
                    };
                    // In the order in which their waits ended.
                    let urgency = waiter.expires.unwrap_or(now);
                    let place =
                        self.waiting
                            .insert(waiter.request, waiter.since, lane, urgency, None);
                    self.prefix.touch(place);
                }
            }
        }
    }

    fn dispatch(&mut self, now: Time, outputs: &mut Outputs<P>) {
        self.wake = None;
        while self.waiting.len() > 0 && self.instances.any_free() {
            match self.verdict(now) {
                Verdict::Send { requests, end } => {
                    if self.options.slots {
                        match self.slot {
                            Slot::Granted => self.slot = Slot::NotAsked,
                            Slot::Asked => return,
                            Slot::NotAsked => {
                                self.slot = Slot::Asked;
                                outputs.push(Output::WantSlot);
                                return;
                            }
                        }
                    }
                    self.send(requests, end, outputs);
                }
                Verdict::Wait(until) => {
                    self.wake = Some(until);
                    break;
                }
            }
        }
        if self.slot == Slot::Granted {
            self.slot = Slot::NotAsked;
            outputs.push(Output::ReturnSlot);
        }
    }

    /// What the policy makes of what waits.
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
                triton.decide(now, &self.prefix, max, self.draining)
            }
        }
    }

    /// Sends the first requests to a free instance.
    fn send(&mut self, requests: usize, end: BatchEnd, outputs: &mut Outputs<P>) {
        let instance = self.instances.take_free().expect("an instance is free");
        let mut batch = self.spare.pop().unwrap_or_default();
        batch.reserve(requests);
        for _ in 0..requests {
            let place = self.waiting.first().expect("as many wait as are sent");
            batch.push(self.waiting.take(place).request);
        }
        self.prefix.clear();
        outputs.push(Output::Dispatch {
            instance,
            batch: Batch {
                requests: batch,
                end,
            },
        });
    }

    /// A draining scheduler whose last instance is gone can serve nothing any more: what waits is answered now.
    fn reject_unservable(&mut self, outputs: &mut Outputs<P>) {
        if self.draining && self.instances.is_empty() {
            while let Some(place) = self.waiting.first() {
                self.reject(place, RejectReason::Draining, outputs);
            }
        }
    }
}

/// How long a request may wait: its queue's time, or its own where that counts and is shorter.
fn wait_of(default: Option<Duration>, own_counts: bool, own: Option<Duration>) -> Option<Duration> {
    let default = default?;
    match own {
        Some(own) if own_counts => Some(own.min(default)),
        _ => Some(default),
    }
}
