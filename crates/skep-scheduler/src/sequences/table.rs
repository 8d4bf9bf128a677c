//! The live sequences: their waiting requests, their names, and when their waits end.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use skep_types::{CorrelationId, Time};

use super::SequencePayload;
use crate::{InstanceId, Request, RequestId};

/// Identifies a live sequence. Those that started earlier have lower numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SequenceNumber(u64);

/// A request that waits for its turn in its sequence.
#[derive(Debug)]
pub(super) struct PendingStep<P> {
    pub(super) request: Request<P>,
    /// When it arrived.
    pub(super) since: Time,
}

/// Where a sequence's oldest request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Among the sequence's pending ones, if it has any.
    Pending,
    /// Among the requests of which batches are formed.
    Offered(RequestId),
    /// On an instance.
    Running(RequestId),
}

/// What a sequence holds while its requests may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seat {
    /// A slot of an instance.
    Slot { instance: InstanceId, index: usize },
    /// One of the candidates.
    Candidate,
}

/// A live sequence.
#[derive(Debug)]
pub(super) struct Sequence<P: SequencePayload> {
    pub(super) id: CorrelationId,
    /// Its requests behind the one that is offered or running, in order.
    pub(super) pending: VecDeque<PendingStep<P>>,
    pub(super) stage: Stage,
    pub(super) seat: Option<Seat>,
    /// What its requests share from its start on.
    memory: P::Memory,
    /// Whether no further request joins it: its last one is here, or it was given up.
    pub(super) is_over: bool,
    /// When it ends, because it is idle or has waited for a seat too long.
    timer: Option<Time>,
}

impl<P: SequencePayload> Sequence<P> {
    /// Whether its oldest request could join a batch.
    pub(super) fn is_ready(&self) -> bool {
        self.stage == Stage::Pending && !self.pending.is_empty()
    }

    /// Whether it has no request, waiting or running.
    pub(super) fn is_idle(&self) -> bool {
        self.stage == Stage::Pending && self.pending.is_empty()
    }
}

/// The live sequences.
#[derive(Debug)]
pub(super) struct SequenceTable<P: SequencePayload> {
    sequences: BTreeMap<SequenceNumber, Sequence<P>>,
    /// The sequences that further requests may join.
    named: HashMap<CorrelationId, SequenceNumber>,
    /// The sequence of each request that waits or runs.
    owners: HashMap<RequestId, SequenceNumber>,
    /// Sequences without a seat.
    unseated: BTreeSet<SequenceNumber>,
    timers: BTreeSet<(Time, SequenceNumber)>,
    next: u64,
    pending: usize,
}

impl<P: SequencePayload> Default for SequenceTable<P> {
    fn default() -> Self {
        Self {
            sequences: BTreeMap::new(),
            named: HashMap::new(),
            owners: HashMap::new(),
            unseated: BTreeSet::new(),
            timers: BTreeSet::new(),
            next: 0,
            pending: 0,
        }
    }
}

impl<P: SequencePayload> SequenceTable<P> {
    /// The sequence that a request with this id would join.
    pub(super) fn named(&self, id: &CorrelationId) -> Option<SequenceNumber> {
        self.named.get(id).copied()
    }

    /// The sequence of a request that waits or runs.
    pub(super) fn owner(&self, request: RequestId) -> Option<SequenceNumber> {
        self.owners.get(&request).copied()
    }

    pub(super) fn get(&self, number: SequenceNumber) -> &Sequence<P> {
        &self.sequences[&number]
    }

    /// All of them, in the order in which they started.
    pub(super) fn numbers(&self) -> Vec<SequenceNumber> {
        self.sequences.keys().copied().collect()
    }

    pub(super) fn get_mut(&mut self, number: SequenceNumber) -> &mut Sequence<P> {
        let sequence = self.sequences.get_mut(&number);
        sequence.expect("a number that is held is of a live sequence")
    }

    /// Requests that wait behind others of their sequence, or for a seat.
    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    /// Sequences that wait for a seat.
    pub(super) fn unseated(&self) -> usize {
        self.unseated.len()
    }

    /// Sequences that have a seat.
    pub(super) fn seated(&self) -> usize {
        self.sequences.len() - self.unseated.len()
    }

    /// The oldest sequence without a seat.
    pub(super) fn first_unseated(&self) -> Option<SequenceNumber> {
        self.unseated.first().copied()
    }

    /// A new sequence, without a seat.
    pub(super) fn open(&mut self, id: CorrelationId) -> SequenceNumber {
        let number = SequenceNumber(self.next);
        self.next += 1;
        self.named.insert(id.clone(), number);
        self.unseated.insert(number);
        self.sequences.insert(
            number,
            Sequence {
                id,
                pending: VecDeque::new(),
                stage: Stage::Pending,
                seat: None,
                memory: P::Memory::default(),
                is_over: false,
                timer: None,
            },
        );
        number
    }

    /// Adds a sequence's next request. One that starts the sequence again gets fresh memory; one that ends it is the
    /// last that joins.
    pub(super) fn push(&mut self, number: SequenceNumber, now: Time, mut request: Request<P>) {
        let (start, end) = {
            let step = request.payload.step();
            (step.start, step.end)
        };
        self.owners.insert(request.id, number);
        self.pending += 1;
        if end {
            self.unname(number);
        }
        let sequence = self.get_mut(number);
        if start {
            sequence.memory = P::Memory::default();
        }
        request.payload.remember(&sequence.memory);
        sequence.is_over |= end;
        let since = now;
        sequence.pending.push_back(PendingStep { request, since });
    }

    /// Takes a sequence's oldest request out of the pending ones.
    pub(super) fn pop(
        &mut self,
        number: SequenceNumber,
        stage: fn(RequestId) -> Stage,
    ) -> Request<P> {
        let sequence = self.get_mut(number);
        let step = sequence.pending.pop_front();
        let request = step.expect("the sequence is ready").request;
        sequence.stage = stage(request.id);
        self.pending -= 1;
        request
    }

    /// Takes a sequence's latest request back, if it is the given one and still pending.
    pub(super) fn take_back(
        &mut self,
        number: SequenceNumber,
        id: RequestId,
    ) -> Option<Request<P>> {
        let sequence = self.get_mut(number);
        let last = sequence.pending.back()?;
        if last.request.id != id {
            return None;
        }
        let request = sequence.pending.pop_back()?.request;
        self.pending -= 1;
        self.owners.remove(&id);
        Some(request)
    }

    /// Lets further requests join again: the sequence's last request was taken back.
    pub(super) fn reopen(&mut self, number: SequenceNumber) {
        let sequence = self.get_mut(number);
        sequence.is_over = false;
        let id = sequence.id.clone();
        self.named.entry(id).or_insert(number);
    }

    /// Notes that a request has run or was rejected.
    pub(super) fn forget(&mut self, request: RequestId) {
        self.owners.remove(&request);
    }

    /// Takes all pending requests of a sequence.
    pub(super) fn take_pending(&mut self, number: SequenceNumber) -> VecDeque<PendingStep<P>> {
        let taken = std::mem::take(&mut self.get_mut(number).pending);
        self.pending -= taken.len();
        for step in &taken {
            self.owners.remove(&step.request.id);
        }
        taken
    }

    /// Lets no further request join: the next one with its id starts another sequence.
    pub(super) fn finish(&mut self, number: SequenceNumber) {
        self.unname(number);
        self.get_mut(number).is_over = true;
    }

    fn unname(&mut self, number: SequenceNumber) {
        let id = &self.sequences[&number].id;
        if self.named.get(id) == Some(&number) {
            self.named.remove(id);
        }
    }

    /// Gives a sequence its seat.
    pub(super) fn seat(&mut self, number: SequenceNumber, seat: Seat) {
        self.unseated.remove(&number);
        let sequence = self.get_mut(number);
        sequence.seat = Some(seat);
        if !sequence.is_idle() {
            self.set_timer(number, None);
        }
    }

    /// Takes a sequence's seat away: it waits for another one, before those that started later.
    pub(super) fn unseat(&mut self, number: SequenceNumber, wait_until: Option<Time>) {
        self.unseated.insert(number);
        let sequence = self.get_mut(number);
        sequence.seat = None;
        if !sequence.is_idle() {
            self.set_timer(number, wait_until);
        }
    }

    /// Removes a sequence without requests. Returns the seat that it had.
    pub(super) fn remove(&mut self, number: SequenceNumber) -> Option<Seat> {
        self.set_timer(number, None);
        self.unname(number);
        self.unseated.remove(&number);
        let sequence = self.sequences.remove(&number)?;
        debug_assert!(sequence.is_idle(), "a sequence ends without requests");
        sequence.seat
    }

    /// When a sequence ends, if nothing happens before.
    pub(super) fn set_timer(&mut self, number: SequenceNumber, at: Option<Time>) {
        let sequence = self.get_mut(number);
        let before = std::mem::replace(&mut sequence.timer, at);
        if let Some(before) = before {
            self.timers.remove(&(before, number));
        }
        if let Some(at) = at {
            self.timers.insert((at, number));
        }
    }

    /// Ends a sequence's wait for a seat at this moment, or earlier if it has to end before.
    pub(super) fn shorten_wait(
        &mut self,
        number: SequenceNumber,
        now: Time,
        wait: Option<Duration>,
    ) {
        let Some(wait) = wait else { return };
        let at = now + wait;
        let at = self.get(number).timer.map_or(at, |timer| timer.min(at));
        self.set_timer(number, Some(at));
    }

    /// The next moment at which a sequence ends.
    pub(super) fn next_timer(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The sequence with a seat that has been idle longest.
    pub(super) fn longest_idle(&self) -> Option<SequenceNumber> {
        let mut timers = self.timers.iter().map(|(_, number)| *number);
        timers.find(|number| {
            let sequence = self.get(*number);
            sequence.is_idle() && sequence.seat.is_some()
        })
    }

    /// A sequence whose time is over.
    pub(super) fn expired(&self, now: Time) -> Option<SequenceNumber> {
        let (at, number) = self.timers.first()?;
        (*at <= now).then_some(*number)
    }
}
