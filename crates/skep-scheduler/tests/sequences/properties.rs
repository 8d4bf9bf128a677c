//! What holds whatever happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;
use skep_scheduler::{
    DirectPolicy, Input, InstanceId, OldestPolicy, Output, Outputs, Request, RequestId,
    SequenceOptions, SequencePayload as _, SequenceScheduler, SequenceStrategy, TritonPolicy,
};
use skep_types::Time;

use crate::{Step, options};

#[derive(Debug, Clone)]
enum Event {
    /// Time passes, in milliseconds.
    Pass(u64),
    Enqueue {
        sequence: u64,
        start: bool,
        end: bool,
        shape: bool,
        timeout: Option<u64>,
    },
    Cancel(u64),
    Withdraw,
    Join(u32),
    /// An instance dies; its batch is answered.
    Die(u32),
    Retire(u32),
    /// The busy instance that has been busy longest finishes.
    Finish,
    Grant,
    Hurry,
    Drain,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let enqueue = (
        1u64..6,
        prop::bool::weighted(0.4),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
        prop::option::weighted(0.1, 1u64..40),
    );
    let enqueue = enqueue.prop_map(|(sequence, start, end, shape, timeout)| Event::Enqueue {
        sequence,
        start,
        end,
        shape,
        timeout,
    });
    let event = prop_oneof![
        3 => (1u64..60).prop_map(Event::Pass),
        10 => enqueue,
        1 => (0u64..40).prop_map(Event::Cancel),
        1 => Just(Event::Withdraw),
        2 => (0u32..3).prop_map(Event::Join),
        1 => (0u32..3).prop_map(Event::Die),
        1 => (0u32..3).prop_map(Event::Retire),
        8 => Just(Event::Finish),
        4 => Just(Event::Grant),
        1 => Just(Event::Hurry),
    ];
    let with_drain = prop::collection::vec(event, 1..80).prop_flat_map(|events| {
        let len = events.len();
        (Just(events), prop::option::weighted(0.3, 0..len))
    });
    with_drain.prop_map(|(mut events, drain)| {
        if let Some(at) = drain {
            events.insert(at, Event::Drain);
        }
        events
    })
}

fn any_options() -> impl Strategy<Value = SequenceOptions> {
    let direct = (0u64..8, 0usize..4).prop_map(|(delay, least_ready)| {
        SequenceStrategy::Direct(DirectPolicy {
            max_queue_delay: Duration::from_millis(delay),
            least_ready,
        })
    });
    let oldest = (1usize..4, 0u64..8).prop_map(|(max_candidates, delay)| {
        SequenceStrategy::Oldest(OldestPolicy {
            max_candidates,
            batching: TritonPolicy {
                preferred_batch_sizes: vec![2],
                max_queue_delay: Duration::from_millis(delay),
            },
        })
    });
    (
        prop_oneof![direct, oldest],
        1usize..4,
        prop::option::of(0usize..3),
        prop::option::of(1u64..50),
        5usize..30,
        any::<bool>(),
    )
        .prop_map(
            |(strategy, batch, sequences, wait, waiting, slots)| SequenceOptions {
                max_batch_size: batch.max(2),
                max_waiting_sequences: sequences,
                max_wait: wait.map(Duration::from_millis),
                max_waiting: waiting,
                slots,
                ..options(strategy)
            },
        )
}

/// Identifies the requests from one start to the next.
type Token = usize;

/// A scheduler, and what its caller knows.
struct World {
    scheduler: SequenceScheduler<Step>,
    options: SequenceOptions,
    now: Time,
    next: u64,
    /// Requests without an answer that no batch has.
    waiting: BTreeSet<u64>,
    /// Batches in the order in which they were dispatched.
    running: Vec<(InstanceId, Vec<(u64, Token)>)>,
    free: BTreeSet<u32>,
    retired: BTreeSet<u32>,
    /// Kept, so that no address is used twice.
    tokens: Vec<Arc<u8>>,
    /// The last request of a token that ran.
    last_run: BTreeMap<Token, u64>,
    /// The tokens that each row has had, in order. An instance that joins again has new rows.
    rows: BTreeMap<(InstanceId, u64, u32), Vec<Token>>,
    joins: BTreeMap<InstanceId, u64>,
    turns: BTreeSet<u64>,
    asked: bool,
    granted: bool,
    draining: bool,
}

impl World {
    fn new(options: SequenceOptions) -> Self {
        Self {
            scheduler: SequenceScheduler::new(options.clone()),
            options,
            now: Time::ZERO,
            next: 0,
            waiting: BTreeSet::new(),
            running: Vec::new(),
            free: BTreeSet::new(),
            retired: BTreeSet::new(),
            tokens: Vec::new(),
            last_run: BTreeMap::new(),
            rows: BTreeMap::new(),
            joins: BTreeMap::new(),
            turns: BTreeSet::new(),
            asked: false,
            granted: false,
            draining: false,
        }
    }

    fn is_direct(&self) -> bool {
        matches!(self.options.strategy, SequenceStrategy::Direct(_))
    }

    fn input(&mut self, event: Event) -> Option<Input<Step>> {
        let knows = |world: &Self, i: u32| {
            world.free.contains(&i) || world.running.iter().any(|(id, _)| id.0 == i)
        };
        Some(match event {
            Event::Pass(_) => return None,
            Event::Enqueue {
                sequence,
                start,
                end,
                shape,
                timeout,
            } => {
                let id = self.next;
                self.next += 1;
                self.waiting.insert(id);
                let payload = Step {
                    shape,
                    ..Step::new(sequence, start, end)
                };
                Input::Enqueue(Request {
                    id: RequestId(id),
                    batch_size: 1,
                    priority: 0,
                    timeout: timeout.map(Duration::from_millis),
                    payload,
                })
            }
            Event::Cancel(id) => Input::Cancel(RequestId(id)),
            Event::Withdraw => Input::Withdraw(RequestId(self.next.checked_sub(1)?)),
            Event::Join(i) if knows(self, i) => return None,
            Event::Join(i) => {
                self.free.insert(i);
                *self.joins.entry(InstanceId(i)).or_default() += 1;
                Input::InstanceReady(InstanceId(i))
            }
            Event::Die(i) => {
                self.free.remove(&i);
                self.retired.remove(&i);
                self.running.retain(|(id, _)| id.0 != i);
                Input::InstanceGone(InstanceId(i))
            }
            Event::Retire(i) => {
                if !self.free.remove(&i) && knows(self, i) {
                    self.retired.insert(i);
                }
                Input::InstanceRetired(InstanceId(i))
            }
            Event::Finish => {
                if self.running.is_empty() {
                    return None;
                }
                let (instance, _) = self.running.remove(0);
                if self.retired.remove(&instance.0) {
                    return Some(Input::InstanceGone(instance));
                }
                self.free.insert(instance.0);
                Input::Finished {
                    instance,
                    duration: Duration::ZERO,
                }
            }
            Event::Grant if self.asked => {
                (self.asked, self.granted) = (false, true);
                Input::SlotGranted
            }
            Event::Grant => return None,
            Event::Hurry => Input::Hurry,
            Event::Drain => {
                self.draining = true;
                Input::Drain
            }
        })
    }

    fn step(&mut self, event: Event) -> Result<(), TestCaseError> {
        if let Event::Pass(ms) = event {
            return self.pass(self.now + Duration::from_millis(ms));
        }
        let is_withdraw = matches!(event, Event::Withdraw);
        if let Some(input) = self.input(event) {
            let mut outputs = Outputs::new();
            self.scheduler.handle(self.now, input, &mut outputs);
            self.note(outputs, is_withdraw)?;
        }
        prop_assert_eq!(self.scheduler.waiting(), self.waiting.len());
        let counts = self.scheduler.policy_snapshot().sequences.expect("counts");
        let each = match &self.options.strategy {
            SequenceStrategy::Direct(_) => self.options.max_batch_size,
            SequenceStrategy::Oldest(policy) => policy.max_candidates,
        };
        let active = self
            .running
            .iter()
            .filter(|(id, _)| !self.retired.contains(&id.0));
        let total = (active.count() + self.free.len()) * each;
        let leaving = self.retired.len() * each;
        let all = counts.used + counts.free;
        // Sequences of a batch on a retired instance keep their slots, and candidates stay candidates.
        prop_assert!(all >= total, "{} of {}", all, total);
        prop_assert!(
            !self.is_direct() || all <= total + leaving,
            "{} of {}",
            all,
            total
        );
        // No sequence waits beside a free slot.
        prop_assert!(counts.free == 0 || counts.waiting == 0);
        Ok(())
    }

    fn pass(&mut self, until: Time) -> Result<(), TestCaseError> {
        while let Some(at) = self.scheduler.next_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            let mut outputs = Outputs::new();
            self.scheduler.handle_timeout(self.now, &mut outputs);
            self.note(outputs, false)?;
            let next = self.scheduler.next_timeout();
            prop_assert!(
                next.is_none_or(|next| next > self.now),
                "it calls again at once"
            );
        }
        self.now = until;
        Ok(())
    }

    fn token(&mut self, memory: &Arc<u8>) -> Token {
        let known = self
            .tokens
            .iter()
            .position(|token| Arc::ptr_eq(token, memory));
        known.unwrap_or_else(|| {
            self.tokens.push(Arc::clone(memory));
            self.tokens.len() - 1
        })
    }

    fn note(&mut self, outputs: Outputs<Step>, is_withdraw: bool) -> Result<(), TestCaseError> {
        for output in outputs {
            match output {
                Output::WantSlot => {
                    prop_assert!(!self.asked && !self.granted);
                    self.asked = true;
                }
                Output::ReturnSlot => {
                    prop_assert!(self.granted);
                    self.granted = false;
                }
                Output::Reject { request, .. } => {
                    prop_assert!(self.waiting.remove(&request.id.0), "answered twice");
                    if is_withdraw {
                        prop_assert_eq!(request.id.0 + 1, self.next);
                    }
                }
                Output::Dispatch { instance, batch } => {
                    if self.options.slots {
                        prop_assert!(self.granted);
                        self.granted = false;
                    }
                    prop_assert!(self.free.remove(&instance.0), "a busy instance");
                    prop_assert!(!batch.requests.is_empty());
                    prop_assert!(batch.size() <= self.options.max_batch_size);
                    prop_assert!(self.is_direct() || batch.rows.is_none());
                    let first = batch.requests[0].payload.shape;
                    let mut tokens = Vec::new();
                    for (position, request) in batch.requests.iter().enumerate() {
                        let id = request.id.0;
                        prop_assert!(self.waiting.remove(&id), "answered twice");
                        prop_assert_eq!(request.payload.shape, first);
                        let memory = request.payload.memory.clone().expect("handed over");
                        let token = self.token(&memory);
                        let is_first = self.last_run.insert(token, id);
                        prop_assert!(is_first.is_none_or(|before| before < id), "out of order");
                        let starts = request.payload.step().start;
                        prop_assert_eq!(is_first.is_none(), starts, "memory is fresh at a start");
                        tokens.push((id, token));
                        if self.is_direct() {
                            let rows = batch.rows.as_deref();
                            let row =
                                rows.map_or(position as u32, |rows| rows.of_requests[position]);
                            let join = self.joins[&instance];
                            let had = self.rows.entry((instance, join, row)).or_default();
                            if had.last() != Some(&token) {
                                prop_assert!(!had.contains(&token), "two sequences in one slot");
                                had.push(token);
                            }
                        } else {
                            let turn = request.payload.turn.expect("it has a turn");
                            prop_assert!(self.turns.insert(turn.0), "a turn twice");
                        }
                    }
                    let busy = self.running.iter().flat_map(|(_, batch)| batch);
                    let busy: BTreeSet<Token> = busy.chain(&tokens).map(|(_, t)| *t).collect();
                    let all: usize = self.running.iter().map(|(_, batch)| batch.len()).sum();
                    prop_assert_eq!(busy.len(), all + tokens.len(), "two of one sequence run");
                    self.running.push((instance, tokens));
                }
            }
        }
        Ok(())
    }

    /// Lets everything that waits run, and time pass until nothing is live.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        self.step(Event::Join(0))?;
        for _ in 0..10_000 {
            self.step(Event::Grant)?;
            self.step(Event::Finish)?;
            self.step(Event::Join(0))?;
            if self.running.is_empty() && !self.asked {
                self.step(Event::Pass(20))?;
                let counts = self.scheduler.policy_snapshot().sequences.expect("counts");
                if self.waiting.is_empty() && counts.used == 0 && counts.waiting == 0 {
                    return Ok(());
                }
            }
        }
        prop_assert!(false, "something waits for ever");
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn requests_are_answered_once_in_order_and_one_at_a_time(
        options in any_options(),
        events in events(),
    ) {
        let mut world = World::new(options);
        for event in events {
            world.step(event)?;
        }
        world.settle()?;
        prop_assert_eq!(world.scheduler.next_timeout(), None);
    }

    /// Sequences get slots in the order in which they started.
    #[test]
    fn the_backlog_is_fair(is_direct in any::<bool>(), lengths in prop::collection::vec(1usize..4, 2..8)) {
        let strategy = if is_direct { crate::direct() } else { crate::oldest(1) };
        let mut world = World::new(SequenceOptions { max_batch_size: 1, ..options(strategy) });
        let steps = lengths.iter().max().copied().unwrap_or_default();
        for step in 0..steps {
            for (sequence, length) in (1..).zip(&lengths) {
                if step < *length {
                    world.step(Event::Enqueue { sequence, start: step == 0, end: step + 1 == *length, shape: false, timeout: None })?;
                }
            }
        }
        world.step(Event::Join(0))?;
        let mut order = Vec::new();
        while let Some((_, batch)) = world.running.first() {
            order.push(batch[0].1);
            world.step(Event::Finish)?;
        }
        let expected: Vec<Token> = lengths.iter().enumerate().flat_map(|(token, length)| vec![token; *length]).collect();
        prop_assert_eq!(order, expected);
    }
}
