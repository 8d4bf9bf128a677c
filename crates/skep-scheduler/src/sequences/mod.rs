//! The scheduler of a model whose requests belong to sequences (Triton's sequence batcher).
//!
//! ```text
//! Enqueue --> table: the sequence's pending requests --> seat --> batch --> instance
//!                |                                        ^
//!                +--- a sequence without a seat waits ----+
//! ```
//!
//! A sequence is live from the request that starts it until the one that ends it has run, until it has been idle for
//! too long, or until it is given up. It has a *seat* while its requests may run: a slot of an instance (`direct.rs`)
//! or a place among the candidates (`oldest.rs`). Sequences get seats in the order in which they started.
//!
//! Of one sequence, at most one request is offered or running at any moment; the next one follows when it is answered.

mod direct;
mod oldest;
mod options;
mod table;

use std::fmt;

use skep_types::{SequenceStep, Time};

pub use self::options::{DirectPolicy, OldestPolicy, SequenceOptions, SequenceStrategy};
use self::{
    direct::SlotBoard,
    oldest::Candidates,
    table::{Seat, SequenceNumber, SequenceTable, Stage},
};
use crate::{
    Input, InstanceId, Output, Outputs, Payload, PolicySnapshot, RejectReason, Request, RequestId,
    snapshot::SequenceCounts,
};

/// What the scheduler must know of a payload that belongs to a sequence.
pub trait SequencePayload: Payload {
    /// What the requests of a sequence share, from the one that starts it on.
    type Memory: Clone + Default + fmt::Debug;

    /// Its place in its sequence.
    fn step(&self) -> &SequenceStep;

    /// Hands over what the sequence's requests share. It is fresh if the request starts the sequence.
    fn remember(&mut self, memory: &Self::Memory);

    /// It may run from now on. Under [`SequenceStrategy::Oldest`], requests get turns without gaps, from 0.
    fn enters(&mut self, turn: RequestId);
}

/// The scheduler of one model version whose requests belong to sequences. It takes the inputs of a
/// [`Scheduler`](crate::Scheduler), and gives its outputs.
#[derive(Debug)]
pub struct SequenceScheduler<P: SequencePayload> {
    options: SequenceOptions,
    table: SequenceTable<P>,
    engine: Engine<P>,
    draining: bool,
    hurried: bool,
    /// Whether it still waits for the first requests.
    held: bool,
    rejected: u64,
    last_batch: Option<(usize, crate::BatchEnd)>,
}

/// Where seats are, and how batches are formed.
#[derive(Debug)]
enum Engine<P: SequencePayload> {
    Direct(SlotBoard),
    Oldest(Box<Candidates<P>>),
}

impl<P: SequencePayload> SequenceScheduler<P> {
    /// A scheduler without instances: sequences wait until one joins.
    #[must_use]
    pub fn new(options: SequenceOptions) -> Self {
        let engine = match &options.strategy {
            SequenceStrategy::Direct(policy) => {
                let slots = options.max_batch_size;
                Engine::Direct(SlotBoard::new(*policy, slots, options.slots))
            }
            SequenceStrategy::Oldest(policy) => {
                Engine::Oldest(Box::new(Candidates::new(policy, &options)))
            }
        };
        Self {
            table: SequenceTable::default(),
            engine,
            draining: false,
            hurried: false,
            held: options.hold_until > 0,
            rejected: 0,
            last_batch: None,
            options,
        }
    }

    /// Applies one input and appends the outputs. `now` never decreases.
    pub fn handle(&mut self, now: Time, input: Input<P>, outputs: &mut Outputs<P>) {
        let before = outputs.len();
        self.apply(now, input, outputs);
        self.decide(now, outputs);
        self.note_batches(&outputs[before..]);
    }

    /// Appends the outputs that are due since time has passed: none before [`SequenceScheduler::next_timeout`].
    pub fn handle_timeout(&mut self, now: Time, outputs: &mut Outputs<P>) {
        let before = outputs.len();
        self.decide(now, outputs);
        self.note_batches(&outputs[before..]);
    }

    /// When [`SequenceScheduler::handle_timeout`] has something to do, if nothing else happens before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        let wake = match &self.engine {
            Engine::Direct(slots) => slots.wake,
            Engine::Oldest(candidates) => candidates.scheduler().next_timeout(),
        };
        wake.into_iter().chain(self.table.next_timer()).min()
    }

    /// Takes back the list of a batch, so that the next batch needs no allocation.
    pub fn recycle(&mut self, requests: Vec<Request<P>>) {
        if let Engine::Oldest(candidates) = &mut self.engine {
            candidates.scheduler_mut().recycle(requests);
        }
    }

    /// How many requests wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let offered = match &self.engine {
            Engine::Direct(_) => 0,
            Engine::Oldest(candidates) => candidates.scheduler().waiting(),
        };
        self.table.pending() + offered
    }

    /// Whether an instance executes a batch; `None` for an unknown or removed one.
    #[must_use]
    pub fn is_busy(&self, instance: InstanceId) -> Option<bool> {
        match &self.engine {
            Engine::Direct(slots) => slots.is_busy(instance),
            Engine::Oldest(candidates) => candidates.scheduler().is_busy(instance),
        }
    }

    /// The present state. Allocates; do not call it for each request.
    #[must_use]
    pub fn policy_snapshot(&self) -> PolicySnapshot {
        let (policy, free) = match &self.engine {
            Engine::Direct(slots) => ("sequence_direct", slots.free()),
            Engine::Oldest(c) => ("sequence_oldest", c.free()),
        };
        let cap = self.options.max_batch_size;
        let target = match &self.options.strategy {
            SequenceStrategy::Direct(policy) if policy.max_queue_delay.is_zero() => 1,
            SequenceStrategy::Direct(policy) => policy.least_ready.max(1),
            SequenceStrategy::Oldest(policy) => policy.batching.target(cap),
        };
        PolicySnapshot {
            policy,
            objective: None,
            percentile: None,
            cap,
            target,
            arrivals_per_s: None,
            latencies: Vec::new(),
            last_batch: self.last_batch,
            rejected: self.rejected,
            delayed: 0,
            sequences: Some(SequenceCounts {
                used: self.table.seated(),
                free,
                waiting: self.table.unseated(),
            }),
        }
    }

    fn apply(&mut self, now: Time, input: Input<P>, outputs: &mut Outputs<P>) {
        match input {
            Input::Enqueue(request) => self.enqueue(now, request, outputs),
            Input::Cancel(id) => {
                if let Some(number) = self.table.owner(id) {
                    self.abort(number, now, outputs, |request| {
                        if request == id {
                            RejectReason::Cancelled
                        } else {
                            RejectReason::SequenceCancelled
                        }
                    });
                }
            }
            Input::Withdraw(id) => self.withdraw(id, now, outputs),
            Input::InstanceReady(instance) => self.instance_ready(instance),
            Input::Finished { instance, duration } => {
                if let Engine::Oldest(candidates) = &mut self.engine {
                    candidates.tell(Input::Finished { instance, duration });
                }
                self.finished(instance, now);
            }
            Input::InstanceGone(instance) => self.instance_gone(instance, now),
            Input::InstanceRetired(instance) => self.instance_retired(instance, now),
            Input::RejectWaiting => {
                for number in self.table.numbers() {
                    if !self.table.get(number).is_idle() {
                        self.abort(number, now, outputs, |_| RejectReason::NoInstance);
                    }
                }
            }
            Input::SlotGranted => match &mut self.engine {
                Engine::Direct(slots) => slots.granted(),
                Engine::Oldest(candidates) => candidates.tell(Input::SlotGranted),
            },
            Input::SlotGrantedFor(instance) => match &mut self.engine {
                // Its requests can run on one instance only, so that nobody chooses another one for them.
                Engine::Direct(slots) => slots.granted(),
                Engine::Oldest(candidates) => candidates.tell(Input::SlotGrantedFor(instance)),
            },
            // Sizes are those of the slots or the candidates, and nothing is learned of durations.
            Input::Measured { .. } | Input::BatchCap(_) => {}
            Input::Hurry => self.hurry(),
            Input::Drain => {
                self.draining = true;
                self.hurry();
                for number in self.table.numbers() {
                    if self.table.get(number).is_idle() {
                        self.close(number);
                    }
                }
            }
        }
    }

    fn enqueue(&mut self, now: Time, request: Request<P>, outputs: &mut Outputs<P>) {
        let step = request.payload.step();
        let live = self.table.named(&step.id);
        let reason = if self.draining {
            Some(RejectReason::Draining)
        } else if live.is_none() && !step.start {
            Some(RejectReason::NoStart)
        } else if self.waiting() >= self.options.max_waiting
            || live.is_none() && self.takes_no_sequence()
        {
            Some(RejectReason::QueueFull)
        } else {
            None
        };
        if let Some(reason) = reason {
            outputs.push(Output::Reject { request, reason });
            return;
        }
        let number = match live {
            Some(number) => number,
            None => self.table.open(step.id.clone()),
        };
        let own_wait = request.timeout;
        if self.table.get(number).is_idle() {
            // It is not idle any more.
            self.table.set_timer(number, None);
        }
        self.table.push(number, now, request);
        self.seat_waiting();
        if self.table.get(number).seat.is_none() {
            let wait = own_wait.into_iter().chain(self.options.max_wait).min();
            self.table.shorten_wait(number, now, wait);
        }
        self.offer(number);
    }

    /// Whether a further sequence would wait, and as many wait as may.
    fn takes_no_sequence(&self) -> bool {
        let free = match &self.engine {
            Engine::Direct(slots) => slots.free(),
            Engine::Oldest(candidates) => candidates.free(),
        };
        let max = self.options.max_waiting_sequences;
        free == 0 && max.is_some_and(|max| self.table.unseated() >= max)
    }

    /// Gives free seats to the sequences that have waited longest.
    fn seat_waiting(&mut self) {
        while let Some(number) = self.table.first_unseated() {
            let seat = match &mut self.engine {
                Engine::Direct(slots) => slots.take(number),
                Engine::Oldest(candidates) => candidates.take().then_some(Seat::Candidate),
            };
            let Some(seat) = seat else { return };
            self.table.seat(number, seat);
            self.offer(number);
        }
    }

    /// Offers a candidate's oldest request to the batches, if it has one. Requests of slots are taken where they are.
    fn offer(&mut self, number: SequenceNumber) {
        let Engine::Oldest(candidates) = &mut self.engine else {
            return;
        };
        let sequence = self.table.get(number);
        if !self.held && sequence.seat.is_some() && sequence.is_ready() {
            candidates.offer(self.table.pop(number, Stage::Offered));
        }
    }

    fn instance_ready(&mut self, instance: InstanceId) {
        match &mut self.engine {
            Engine::Direct(slots) => slots.join(instance),
            Engine::Oldest(candidates) => {
                candidates.join(instance);
                candidates.tell(Input::InstanceReady(instance));
            }
        }
    }

    /// The batch of an instance is answered.
    fn finished(&mut self, instance: InstanceId, now: Time) {
        let numbers = match &mut self.engine {
            Engine::Direct(slots) => slots.finished(instance),
            Engine::Oldest(candidates) => candidates.finished(instance),
        };
        for number in numbers {
            let sequence = self.table.get_mut(number);
            if let Stage::Running(request) = sequence.stage {
                sequence.stage = Stage::Pending;
                self.table.forget(request);
            }
            self.settle(number, now);
        }
    }

    /// Decides what follows for a sequence whose request has ended.
    fn settle(&mut self, number: SequenceNumber, now: Time) {
        let sequence = self.table.get(number);
        if !sequence.is_idle() {
            self.offer(number);
        } else if sequence.is_over || self.draining {
            self.close(number);
        } else {
            let until = now + self.options.max_idle;
            self.table.set_timer(number, Some(until));
        }
    }

    fn instance_gone(&mut self, instance: InstanceId, now: Time) {
        self.finished(instance, now);
        match &mut self.engine {
            Engine::Direct(slots) => {
                let leaving = slots.remove(instance);
                self.unseat(leaving, now);
            }
            Engine::Oldest(candidates) => {
                candidates.retire(instance);
                candidates.tell(Input::InstanceGone(instance));
            }
        }
    }

    fn instance_retired(&mut self, instance: InstanceId, now: Time) {
        if self.is_busy(instance) == Some(false) {
            return self.instance_gone(instance, now);
        }
        match &mut self.engine {
            Engine::Direct(slots) => {
                let leaving = slots.retire(instance);
                self.unseat(leaving, now);
            }
            Engine::Oldest(candidates) => {
                candidates.retire(instance);
                candidates.tell(Input::InstanceRetired(instance));
            }
        }
    }

    /// Takes the seats of sequences whose instance leaves: they wait for others.
    fn unseat(&mut self, numbers: Vec<SequenceNumber>, now: Time) {
        let until = self.options.max_wait.map(|wait| now + wait);
        for number in numbers {
            self.table.unseat(number, until);
        }
    }

    fn hurry(&mut self) {
        self.hurried = true;
        if let Engine::Oldest(candidates) = &mut self.engine {
            candidates.tell(Input::Hurry);
        }
    }

    /// Ends a sequence without requests.
    fn close(&mut self, number: SequenceNumber) {
        match (self.table.remove(number), &mut self.engine) {
            (Some(Seat::Slot { instance, index }), Engine::Direct(slots)) => {
                slots.release(instance, index);
            }
            (Some(Seat::Candidate), Engine::Oldest(candidates)) => candidates.release(),
            _ => {}
        }
    }

    /// Rejects the waiting requests of a sequence and ends it: at once, or when its running request is answered.
    fn abort(
        &mut self,
        number: SequenceNumber,
        now: Time,
        outputs: &mut Outputs<P>,
        reason: impl Fn(RequestId) -> RejectReason,
    ) {
        self.recall(number, now, outputs, &reason);
        for step in self.table.take_pending(number) {
            let request = step.request;
            let reason = reason(request.id);
            outputs.push(Output::Reject { request, reason });
        }
        self.table.finish(number);
        self.table.set_timer(number, None);
        if self.table.get(number).is_idle() {
            self.close(number);
        }
    }

    /// Rejects the request that a sequence has offered, unless it runs already.
    fn recall(
        &mut self,
        number: SequenceNumber,
        now: Time,
        outputs: &mut Outputs<P>,
        reason: impl Fn(RequestId) -> RejectReason,
    ) {
        let (Engine::Oldest(candidates), Stage::Offered(id)) =
            (&mut self.engine, self.table.get(number).stage)
        else {
            return;
        };
        candidates.tell(Input::Cancel(id));
        let before = outputs.len();
        candidates.decide(now, &mut self.table, outputs);
        for output in &mut outputs[before..] {
            if let Output::Reject { request, reason: r } = output {
                *r = reason(request.id);
            }
        }
    }

    /// Takes back the request that was enqueued last. If it was to start the sequence (again), that does not begin, and
    /// the one before it has ended. Otherwise the sequence continues as if the request had not come.
    fn withdraw(&mut self, id: RequestId, now: Time, outputs: &mut Outputs<P>) {
        let Some(number) = self.table.owner(id) else {
            return;
        };
        let reason = RejectReason::Cancelled;
        let before = outputs.len();
        if self.table.get(number).stage == Stage::Offered(id) {
            self.recall(number, now, outputs, |_| reason);
        } else if let Some(request) = self.table.take_back(number, id) {
            outputs.push(Output::Reject { request, reason });
        }
        let steps = outputs[before..].iter().filter_map(|output| match output {
            Output::Reject { request, .. } => Some(request.payload.step()),
            _ => None,
        });
        match steps.last() {
            // It runs already.
            None => return,
            Some(step) if step.start => self.table.finish(number),
            Some(step) if step.end => self.table.reopen(number),
            Some(_) => {}
        }
        self.settle(number, now);
    }

    fn decide(&mut self, now: Time, outputs: &mut Outputs<P>) {
        while let Some(number) = self.table.expired(now) {
            if self.table.get(number).is_idle() {
                self.close(number);
            } else {
                self.rejected += self.table.get(number).pending.len() as u64;
                self.abort(number, now, outputs, |_| RejectReason::SequenceTimedOut);
            }
        }
        self.seat_waiting();
        if self.hurried {
            self.make_room();
        }
        self.release_held();
        match &mut self.engine {
            Engine::Direct(slots) if !self.held => {
                slots.dispatch(now, self.hurried, &mut self.table, outputs);
            }
            Engine::Direct(_) => {}
            Engine::Oldest(candidates) => candidates.decide(now, &mut self.table, outputs),
        }
        self.reject_unservable(now, outputs);
    }

    /// Ends idle sequences, the one that has been idle longest first, until no other waits for a slot or none is idle.
    fn make_room(&mut self) {
        while self.table.first_unseated().is_some()
            && let Some(number) = self.table.longest_idle()
        {
            self.close(number);
            self.seat_waiting();
        }
    }

    /// Ends the wait for the first requests once enough are there.
    fn release_held(&mut self) {
        if self.held && (self.hurried || self.waiting() >= self.options.hold_until) {
            self.held = false;
            for number in self.table.numbers() {
                self.offer(number);
            }
        }
    }

    /// Rejects all waiting requests when a draining scheduler has lost its last instance.
    fn reject_unservable(&mut self, now: Time, outputs: &mut Outputs<P>) {
        let has_instances = match &self.engine {
            Engine::Direct(slots) => slots.has_instances(),
            Engine::Oldest(candidates) => candidates.has_instances(),
        };
        if !self.draining || has_instances {
            return;
        }
        for number in self.table.numbers() {
            self.abort(number, now, outputs, |_| RejectReason::Draining);
        }
    }

    fn note_batches(&mut self, outputs: &[Output<P>]) {
        for output in outputs {
            if let Output::Dispatch { batch, .. } = output {
                self.last_batch = Some((batch.size(), batch.end));
            }
        }
    }
}
