//! Which management call runs next: the queue without threads and without a clock.
//!
//! ```text
//! submit -> waiting, in the line of its model -> next: runs -> finish: every caller gets the outcome
//!              |  joins the last of the line if that waits and asks for the same
//!              +-> refused where too many wait, or after `close`
//! ```
//!
//! The calls of a model form a line and run one after the other, in the order in which they came. A call joins another one
//! only while that one *waits*: a load that runs may have read files that changed since, so whoever asks during it gets the
//! load after it. Lines run side by side, oldest call first, as many at once as their lanes have places.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use skep_types::ModelName;

use crate::{LoadOverrides, repository::ModelId};

/// What a management call does.
#[derive(Debug, Clone)]
pub(crate) enum ManagementCall {
    Load {
        target: CallTarget,
        overrides: LoadOverrides,
    },
    Unload(CallTarget),
    Index {
        ready_only: bool,
    },
}

/// Which models a call is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CallTarget {
    /// All of a name, in every namespace.
    Named(ModelName),
    /// This one.
    One(ModelId),
}

impl CallTarget {
    fn name(&self) -> &ModelName {
        match self {
            Self::Named(name) => name,
            Self::One(id) => &id.name,
        }
    }
}

/// Calls that may not take each other's places: an index is answered while every load is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Loads,
    Unloads,
    Indexes,
}

const LANES: usize = 3;

/// What runs one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Line {
    Model(ModelName),
    Index { ready_only: bool },
}

impl ManagementCall {
    const fn lane(&self) -> Lane {
        match self {
            Self::Load { .. } => Lane::Loads,
            Self::Unload(_) => Lane::Unloads,
            Self::Index { .. } => Lane::Indexes,
        }
    }

    fn line(&self) -> Line {
        match self {
            Self::Load { target, .. } | Self::Unload(target) => Line::Model(target.name().clone()),
            Self::Index { ready_only } => Line::Index {
                ready_only: *ready_only,
            },
        }
    }

    /// Whether one outcome answers both.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Load { target, overrides },
                Self::Load {
                    target: others,
                    overrides: with,
                },
            ) => target == others && overrides.is_same(with),
            (Self::Unload(target), Self::Unload(others)) => target == others,
            (Self::Index { ready_only }, Self::Index { ready_only: other }) => ready_only == other,
            _ => false,
        }
    }
}

/// How much may wait and run at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueLimits {
    /// Loads that run at once; at least 1. Unloads and indexes have one place each beside them.
    pub(crate) loads: usize,
    /// Calls of clients that wait; those that joined another one do not count here.
    pub(crate) waiting: usize,
    /// Clients that wait for an outcome.
    pub(crate) callers: usize,
}

/// Why a call is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallRefusal {
    /// So many wait already.
    Full(usize),
    /// So many clients wait for outcomes already.
    Callers(usize),
    /// Nothing more is taken.
    Closed,
}

/// A call's number, in the order of arrival.
pub(crate) type CallTicket = u64;

/// One who waits for a call's outcome: the call, and a number among those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallPosition {
    ticket: CallTicket,
    caller: u64,
}

#[derive(Debug)]
struct QueuedCall<R> {
    line: Line,
    lane: Lane,
    /// Taken when it begins to run.
    work: Option<ManagementCall>,
    /// Whether it counts towards the bounds: the node's own calls are bounded by its repository.
    is_clients: bool,
    replies: Vec<(u64, R)>,
}

/// Calls that wait and calls that run. `R` is how an outcome gets to whoever waits for it.
#[derive(Debug)]
pub(crate) struct CallQueue<R> {
    limits: QueueLimits,
    next_ticket: CallTicket,
    next_caller: u64,
    entries: BTreeMap<CallTicket, QueuedCall<R>>,
    /// The front of a line runs, or is ready to.
    lines: HashMap<Line, VecDeque<CallTicket>>,
    ready: [BTreeSet<CallTicket>; LANES],
    running: [usize; LANES],
    waiting: usize,
    callers: usize,
    is_closed: bool,
}

impl<R> CallQueue<R> {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            next_ticket: 0,
            next_caller: 0,
            entries: BTreeMap::new(),
            lines: HashMap::new(),
            ready: Default::default(),
            running: [0; LANES],
            waiting: 0,
            callers: 0,
            is_closed: false,
        }
    }

    /// Takes a call in, and whoever waits for it.
    pub(crate) fn submit(
        &mut self,
        work: ManagementCall,
        is_clients: bool,
        reply: R,
    ) -> Result<CallPosition, (CallRefusal, R)> {
        if self.is_closed {
            return Err((CallRefusal::Closed, reply));
        }
        if is_clients && self.callers >= self.limits.callers {
            return Err((CallRefusal::Callers(self.callers), reply));
        }
        let line = work.line();
        let last = self.lines.get(&line).and_then(VecDeque::back).copied();
        let same = last.filter(|ticket| {
            let waits = self
                .entries
                .get(ticket)
                .and_then(|entry| entry.work.as_ref());
            waits.is_some_and(|waits| waits.is_same(&work))
        });
        if same.is_none() && is_clients && self.waiting >= self.limits.waiting {
            return Err((CallRefusal::Full(self.waiting), reply));
        }
        let ticket = same.unwrap_or_else(|| self.add(line, work, is_clients));
        let caller = self.next_caller;
        self.next_caller += 1;
        self.callers += 1;
        if let Some(entry) = self.entries.get_mut(&ticket) {
            entry.replies.push((caller, reply));
        }
        Ok(CallPosition { ticket, caller })
    }

    fn add(&mut self, line: Line, work: ManagementCall, is_clients: bool) -> CallTicket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let lane = work.lane();
        let tickets = self.lines.entry(line.clone()).or_default();
        if tickets.is_empty() {
            self.ready[lane as usize].insert(ticket);
        }
        tickets.push_back(ticket);
        self.waiting += usize::from(is_clients);
        let entry = QueuedCall {
            line,
            lane,
            work: Some(work),
            is_clients,
            replies: Vec::new(),
        };
        self.entries.insert(ticket, entry);
        ticket
    }

    /// The next call that may run now; it counts as running until [`Self::finish`].
    pub(crate) fn start_next(&mut self) -> Option<(CallTicket, ManagementCall)> {
        let limits = [self.limits.loads.max(1), 1, 1];
        let lanes = 0..LANES;
        let free = lanes.filter(|&lane| self.running[lane] < limits[lane]);
        let ticket = free.filter_map(|lane| self.ready[lane].first()).min();
        let ticket = *ticket?;
        let entry = self.entries.get_mut(&ticket)?;
        let work = entry.work.take()?;
        self.ready[entry.lane as usize].remove(&ticket);
        self.running[entry.lane as usize] += 1;
        self.waiting -= usize::from(entry.is_clients);
        Some((ticket, work))
    }

    /// Notes that a call ran; those who wait for its outcome.
    pub(crate) fn finish(&mut self, ticket: CallTicket) -> Vec<R> {
        let Some(entry) = self.entries.get(&ticket) else {
            return Vec::new();
        };
        self.running[entry.lane as usize] -= 1;
        self.remove(ticket)
    }

    /// Forgets one who waits. A client's call that has not begun goes when its last one goes: its work comes back, to be
    /// dropped without a lock.
    pub(crate) fn leave(&mut self, place: CallPosition) -> Option<ManagementCall> {
        let entry = self.entries.get_mut(&place.ticket)?;
        let before = entry.replies.len();
        entry.replies.retain(|(caller, _)| *caller != place.caller);
        self.callers -= before - entry.replies.len();
        if !entry.is_clients || !entry.replies.is_empty() {
            return None;
        }
        let work = entry.work.take()?;
        self.waiting -= 1;
        self.ready[entry.lane as usize].remove(&place.ticket);
        self.remove(place.ticket);
        Some(work)
    }

    /// Takes nothing more and gives up what waits. Everybody who waits for an outcome comes back, of what runs as well: a
    /// load that takes long keeps nobody.
    pub(crate) fn close(&mut self) -> Vec<R> {
        self.is_closed = true;
        self.callers = 0;
        self.waiting = 0;
        self.ready.iter_mut().for_each(BTreeSet::clear);
        let entries = self.entries.values_mut();
        let replies = entries.flat_map(|entry| entry.replies.drain(..));
        let replies = replies.map(|(_, reply)| reply).collect();
        self.entries.retain(|_, entry| entry.work.is_none());
        let entries = &self.entries;
        self.lines.retain(|_, tickets| {
            tickets.retain(|ticket| entries.contains_key(ticket));
            !tickets.is_empty()
        });
        replies
    }

    /// What runs now, for the log of a stop that it holds up.
    pub(crate) fn running(&self) -> usize {
        self.running.iter().sum()
    }

    /// Takes a call out of its line, whose next one is ready then.
    fn remove(&mut self, ticket: CallTicket) -> Vec<R> {
        let Some(entry) = self.entries.remove(&ticket) else {
            return Vec::new();
        };
        if let Some(tickets) = self.lines.get_mut(&entry.line) {
            tickets.retain(|other| *other != ticket);
            match tickets.front() {
                None => drop(self.lines.remove(&entry.line)),
                Some(next) => {
                    // The front may be one that runs.
                    let next = (*next, self.entries.get(next));
                    if let (ticket, Some(next)) = next
                        && next.work.is_some()
                    {
                        self.ready[next.lane as usize].insert(ticket);
                    }
                }
            }
        }
        self.callers -= entry.replies.len();
        entry.replies.into_iter().map(|(_, reply)| reply).collect()
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
