//! What holds under any policy and any sequence of events.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;
use skep_scheduler::{
    Input, InstanceId, Objective, ObjectivePolicy, Output, Outputs, Payload, Percentile, Policy,
    QueuePolicy, RejectReason, Request, RequestId, Scheduler, SchedulerOptions, TimeoutAction,
    TritonPolicy,
};
use skep_types::Time;

/// Of two kinds of shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape(bool);

impl Payload for Shape {
    fn joins(&self, other: &Self) -> bool {
        self == other
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Time passes, in units of 100 us.
    Pass(u64),
    Enqueue {
        size: usize,
        priority: u64,
        timeout: Option<u64>,
        shape: bool,
    },
    Cancel(u64),
    Join(u32),
    Leave(u32),
    /// The busy instance with the lowest number finishes.
    Finish,
    Grant,
    /// Batches have fewer inferences from now on, or more again.
    Cap(usize),
    Drain,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let enqueue = (
        1usize..5,
        0u64..5,
        prop::option::of(1u64..80),
        any::<bool>(),
    )
        .prop_map(|(size, priority, timeout, shape)| Step::Enqueue {
            size,
            priority,
            timeout,
            shape,
        });
    let step = prop_oneof![
        30 => enqueue,
        15 => (0u64..40).prop_map(Step::Pass),
        20 => Just(Step::Finish),
        8 => Just(Step::Grant),
        6 => (0u64..200).prop_map(Step::Cancel),
        4 => (0u32..4).prop_map(Step::Join),
        2 => (0u32..4).prop_map(Step::Leave),
        2 => (0usize..12).prop_map(Step::Cap),
        1 => Just(Step::Drain),
    ];
    prop::collection::vec(step, 1..300)
}

fn queue_policy() -> impl Strategy<Value = QueuePolicy> {
    let action = prop_oneof![Just(TimeoutAction::Reject), Just(TimeoutAction::Delay)];
    let timeout = prop::option::of((1u64..60).prop_map(units));
    (prop::option::of(1usize..20), timeout, any::<bool>(), action).prop_map(
        |(max_queue_size, timeout, allow_timeout_override, timeout_action)| QueuePolicy {
            max_queue_size,
            timeout,
            allow_timeout_override,
            timeout_action,
        },
    )
}

fn policy(max: usize) -> impl Strategy<Value = Policy> {
    let triton =
        (prop::collection::btree_set(1..=max, 0..3), 0u64..30).prop_map(|(sizes, delay)| {
            Policy::Triton(TritonPolicy {
                preferred_batch_sizes: sizes.into_iter().collect(),
                max_queue_delay: units(delay),
            })
        });
    let kinds = prop::sample::select(ObjectivePolicy::ALL.to_vec());
    let profile = prop::collection::vec((1..=max, (1u64..50).prop_map(units)), 0..3);
    let objective =
        (kinds, 1u64..100, any::<bool>(), profile).prop_map(|(policy, latency, delay, profile)| {
            Policy::Objective(Objective {
                latency: units(latency),
                policy,
                miss_action: if delay {
                    TimeoutAction::Delay
                } else {
                    TimeoutAction::Reject
                },
                percentile: Percentile::default(),
                margin: Duration::ZERO,
                profile,
            })
        });
    prop_oneof![1 => Just(Policy::OneByOne), 3 => triton, 4 => objective]
}

fn options() -> impl Strategy<Value = SchedulerOptions> {
    (1usize..10)
        .prop_flat_map(|max| (Just(max), policy(max)))
        .prop_flat_map(|(max, policy)| {
            let levels = prop::collection::vec(queue_policy(), 1..4);
            (
                Just(max),
                Just(policy),
                levels,
                1usize..60,
                any::<bool>(),
                any::<prop::sample::Index>(),
            )
        })
        .prop_map(
            |(max_batch_size, policy, levels, max_waiting, slots, default)| SchedulerOptions {
                hold_until: 0,
                max_waiting,
                max_batch_size,
                policy,
                default_level: default.index(levels.len()),
                levels,
                slots,
            },
        )
}

fn units(count: u64) -> Duration {
    Duration::from_micros(100 * count)
}

/// What a request was when it was enqueued.
#[derive(Debug, Clone)]
struct Known {
    level: usize,
    size: usize,
    shape: bool,
    since: Time,
    own: Option<Duration>,
}

/// The scheduler and what is known about it from outside.
struct World {
    options: SchedulerOptions,
    /// The most inferences of a batch now.
    cap: usize,
    scheduler: Scheduler<Shape>,
    now: Time,
    next: u64,
    waiting: BTreeMap<u64, Known>,
    free: BTreeSet<u32>,
    busy: BTreeMap<u32, Time>,
    /// Whether a slot was asked for and not granted.
    asked: bool,
    draining: bool,
    /// The last dispatched request of each level.
    dispatched: BTreeMap<usize, u64>,
    trace: Vec<String>,
}

impl World {
    fn new(options: SchedulerOptions) -> Self {
        Self {
            scheduler: Scheduler::new(options.clone()),
            cap: options.max_batch_size,
            options,
            now: Time::ZERO,
            next: 0,
            waiting: BTreeMap::new(),
            free: BTreeSet::new(),
            busy: BTreeMap::new(),
            asked: false,
            draining: false,
            dispatched: BTreeMap::new(),
            trace: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let input = match *step {
            Step::Pass(count) => return self.pass(self.now + units(count)),
            Step::Enqueue {
                size,
                priority,
                timeout,
                shape,
            } => {
                let levels = self.options.levels.len();
                let named = usize::try_from(priority).expect("small");
                let level = if (1..=levels).contains(&named) {
                    named - 1
                } else {
                    self.options.default_level
                };
                let known = Known {
                    level,
                    size: size.min(self.options.max_batch_size),
                    shape,
                    since: self.now,
                    own: timeout.map(units),
                };
                let request = Request {
                    id: RequestId(self.next),
                    batch_size: known.size,
                    priority,
                    timeout: known.own,
                    payload: Shape(shape),
                };
                self.waiting.insert(self.next, known);
                self.next += 1;
                Input::Enqueue(request)
            }
            Step::Cancel(id) => Input::Cancel(RequestId(id)),
            Step::Join(i) if !self.busy.contains_key(&i) => {
                self.free.insert(i);
                Input::InstanceReady(InstanceId(i))
            }
            Step::Join(_) => return Ok(()),
            Step::Leave(i) => {
                self.free.remove(&i);
                self.busy.remove(&i);
                Input::InstanceGone(InstanceId(i))
            }
            Step::Finish => {
                let Some((i, since)) = self.busy.pop_first() else {
                    return Ok(());
                };
                self.free.insert(i);
                Input::Finished {
                    instance: InstanceId(i),
                    duration: self.now.since(since),
                }
            }
            Step::Grant if self.asked => {
                self.asked = false;
                Input::SlotGranted
            }
            Step::Grant => return Ok(()),
            Step::Cap(cap) => {
                // A policy with an objective chooses sizes itself.
                if !matches!(self.options.policy, Policy::Objective(_)) {
                    self.cap = cap.clamp(1, self.options.max_batch_size);
                }
                Input::BatchCap(cap)
            }
            Step::Drain => {
                self.draining = true;
                Input::Drain
            }
        };
        let cancelled = match step {
            Step::Cancel(id) => Some(*id),
            _ => None,
        };
        let mut outputs = Outputs::new();
        self.scheduler.handle(self.now, input, &mut outputs);
        self.check(outputs)?;
        if let Some(id) = cancelled {
            prop_assert!(
                !self.waiting.contains_key(&id),
                "what is cancelled does not wait"
            );
        }
        Ok(())
    }

    /// Lets time pass, stopping wherever the scheduler wants.
    fn pass(&mut self, to: Time) -> Result<(), TestCaseError> {
        while let Some(next) = self.scheduler.next_timeout().filter(|next| *next <= to) {
            self.now = self.now.max(next);
            let mut outputs = Outputs::new();
            self.scheduler.handle_timeout(self.now, &mut outputs);
            self.check(outputs)?;
            let again = self.scheduler.next_timeout();
            prop_assert!(
                again.is_none_or(|again| again > self.now),
                "time stands still"
            );
        }
        self.now = to;
        Ok(())
    }

    fn check(&mut self, outputs: Outputs<Shape>) -> Result<(), TestCaseError> {
        let (mut returned, mut wanted) = (false, false);
        for output in outputs {
            self.trace.push(format!("{:?} {output:?}", self.now));
            match output {
                Output::Dispatch { instance, batch } => {
                    prop_assert!(self.free.remove(&instance.0), "to a free instance");
                    self.busy.insert(instance.0, self.now);
                    prop_assert!(!batch.requests.is_empty());
                    prop_assert!(
                        batch.size() <= self.cap || batch.requests.len() == 1,
                        "no larger than allowed"
                    );
                    prop_assert!(batch.size() <= self.options.max_batch_size);
                    prop_assert!(
                        batch.requests.len() == 1 || self.options.policy != Policy::OneByOne,
                        "never merged"
                    );
                    let mut shapes = BTreeSet::new();
                    let mut levels = Vec::new();
                    for request in &batch.requests {
                        let known = self.waiting.remove(&request.id.0);
                        prop_assert!(known.is_some(), "{:?} waits, once", request.id);
                        let known = known.expect("just seen");
                        prop_assert_eq!(known.size, request.batch_size);
                        shapes.insert(known.shape);
                        levels.push(known.level);
                        if self.in_order(known.level) {
                            let last = self.dispatched.insert(known.level, request.id.0);
                            prop_assert!(last < Some(request.id.0), "in order within a level");
                        }
                    }
                    prop_assert_eq!(shapes.len(), 1, "of one shape");
                    prop_assert!(levels.is_sorted(), "higher levels first");
                }
                Output::Reject { request, reason } => {
                    let known = self.waiting.remove(&request.id.0);
                    prop_assert!(known.is_some(), "{:?} waits, once", request.id);
                    let known = known.expect("just seen");
                    if reason == RejectReason::TimedOut {
                        let bound = self.bound(&known);
                        prop_assert_eq!(bound, Some(self.now), "when it is due");
                    }
                }
                Output::WantSlot => {
                    prop_assert!(self.options.slots && !self.asked, "asked once");
                    self.asked = true;
                    wanted = true;
                }
                Output::ReturnSlot => {
                    prop_assert!(self.options.slots);
                    returned = true;
                }
            }
        }
        prop_assert!(!(returned && wanted));
        prop_assert_eq!(self.scheduler.waiting(), self.waiting.len());
        let inferences: usize = self.waiting.values().map(|known| known.size).sum();
        prop_assert_eq!(self.scheduler.waiting_inferences(), inferences);
        prop_assert!(self.waiting.len() <= self.options.max_waiting);
        for (level, policy) in self.options.levels.iter().enumerate() {
            let waiting = self
                .waiting
                .values()
                .filter(|known| known.level == level)
                .count();
            prop_assert!(policy.max_queue_size.is_none_or(|max| waiting <= max));
        }
        if self.draining && self.free.is_empty() && self.busy.is_empty() {
            prop_assert!(self.waiting.is_empty(), "what nobody can serve is answered");
        }
        self.nothing_waits_in_vain()
    }

    /// Whether requests of a level are served as they came: not where some overstay, or deadlines decide.
    fn in_order(&self, level: usize) -> bool {
        match &self.options.policy {
            Policy::OneByOne | Policy::Triton(_) => {
                self.options.levels[level].timeout_action == TimeoutAction::Reject
            }
            Policy::Objective(objective) => {
                matches!(
                    objective.policy,
                    ObjectivePolicy::Aimd | ObjectivePolicy::Quantile
                ) && objective.miss_action == TimeoutAction::Reject
            }
        }
    }

    /// When a request's wait ends by Triton's rules.
    fn bound(&self, known: &Known) -> Option<Time> {
        let policy = &self.options.levels[known.level];
        let wait = match (policy.timeout?, known.own) {
            (timeout, Some(own)) if policy.allow_timeout_override => timeout.min(own),
            (timeout, _) => timeout,
        };
        Some(known.since + wait)
    }

    /// Nothing waits past its bound, and beside a free instance only what the policy waits with, until a known moment.
    fn nothing_waits_in_vain(&self) -> Result<(), TestCaseError> {
        let next = self.scheduler.next_timeout();
        let rejects = |known: &Known| {
            matches!(self.options.policy, Policy::OneByOne | Policy::Triton(_))
                && self.options.levels[known.level].timeout_action == TimeoutAction::Reject
        };
        for known in self.waiting.values().filter(|known| rejects(known)) {
            if let Some(bound) = self.bound(known) {
                prop_assert!(bound > self.now && next.is_some_and(|next| next <= bound));
            }
        }
        if self.waiting.is_empty() || self.free.is_empty() || self.asked {
            return Ok(());
        }
        let longest = match &self.options.policy {
            Policy::OneByOne => Duration::ZERO,
            Policy::Triton(triton) => triton.max_queue_delay,
            Policy::Objective(objective) => match objective.policy {
                ObjectivePolicy::Deferred | ObjectivePolicy::Auto => objective.latency,
                _ => Duration::ZERO,
            },
        };
        let oldest = self.waiting.values().map(|known| known.since).min();
        let until = oldest.expect("some wait") + longest;
        prop_assert!(
            !longest.is_zero() && !self.draining && next.is_some_and(|next| next <= until),
            "waits beside a free instance until {:?}, and may until {:?}",
            next,
            until
        );
        Ok(())
    }
}

fn play(options: &SchedulerOptions, steps: &[Step]) -> Result<Vec<String>, TestCaseError> {
    let mut world = World::new(options.clone());
    for step in steps {
        world.step(step)?;
    }
    // Drained, everything is answered in the end.
    world.step(&Step::Drain)?;
    world.step(&Step::Join(0))?;
    while !world.waiting.is_empty() || !world.busy.is_empty() {
        let before = (world.waiting.len(), world.busy.len(), world.asked);
        world.step(&Step::Grant)?;
        world.pass(world.now + units(1))?;
        world.step(&Step::Finish)?;
        let after = (world.waiting.len(), world.busy.len(), world.asked);
        prop_assert!(before != after, "stuck: {before:?}");
    }
    Ok(world.trace)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn nothing_is_lost_and_every_rule_holds(options in options(), steps in steps()) {
        let first = play(&options, &steps)?;
        prop_assert_eq!(first, play(&options, &steps)?, "the same again");
    }
}
