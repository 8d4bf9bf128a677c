//! Which management call runs next: a queue without threads or a clock.
//!
//! ```text
//! submit -> waiting, in the line of its model -> start_next: runs -> finish: every caller gets the outcome
//!              |  joins the last call of the line if that waits and is the same
//!              +-> refused if too many wait, or after `close`
//! ```
//!
//! The calls of a model form a line and run one after the other, in order of arrival. A call joins another one only
//! while that one *waits*: a running load may have read files that changed since, so a load that is requested meanwhile
//! runs after it. Lines run side by side, oldest call first, as many at once as their lanes have places.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::models::management::call::{CallLane, CallLine, LANES, ManagementCall};

/// How many calls may wait and run at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueLimits {
    /// Loads that run at once; at least 1. Unloads and indexes have one place each besides.
    pub(super) loads: usize,
    /// Calls of clients that may wait; joined calls do not count.
    pub(super) waiting: usize,
    /// Clients that may wait for an outcome.
    pub(super) callers: usize,
}

/// Why a call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallRefusal {
    /// This many calls wait already.
    Full(usize),
    /// This many clients wait for outcomes already.
    Callers(usize),
    /// The queue is closed.
    Closed,
}

/// A call's number, in the order of arrival.
pub(super) type CallTicket = u64;

/// A caller that waits for a call's outcome: the call, and the caller's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CallPosition {
    ticket: CallTicket,
    caller: u64,
}

#[derive(Debug)]
struct QueuedCall<R> {
    line: CallLine,
    lane: CallLane,
    /// Taken when the call begins to run.
    call: Option<ManagementCall>,
    /// Whether the call counts towards the bounds. The node's own calls do not: its repository bounds them.
    from_client: bool,
    replies: Vec<(u64, R)>,
}

/// Calls that wait and calls that run. `R` is where an outcome goes.
#[derive(Debug)]
pub(super) struct CallQueue<R> {
    limits: QueueLimits,
    next_ticket: CallTicket,
    next_caller: u64,
    calls: BTreeMap<CallTicket, QueuedCall<R>>,
    /// The front of each line runs, or is ready to.
    lines: HashMap<CallLine, VecDeque<CallTicket>>,
    ready: [BTreeSet<CallTicket>; LANES],
    running: [usize; LANES],
    waiting: usize,
    callers: usize,
    is_closed: bool,
}

impl<R> CallQueue<R> {
    pub(super) fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            next_ticket: 0,
            next_caller: 0,
            calls: BTreeMap::new(),
            lines: HashMap::new(),
            ready: Default::default(),
            running: [0; LANES],
            waiting: 0,
            callers: 0,
            is_closed: false,
        }
    }

    /// Takes a call and its caller.
    ///
    /// # Errors
    /// Why the call is refused; the reply comes back.
    pub(super) fn submit(
        &mut self,
        call: ManagementCall,
        from_client: bool,
        reply: R,
    ) -> Result<CallPosition, (CallRefusal, R)> {
        if self.is_closed {
            return Err((CallRefusal::Closed, reply));
        }
        if from_client && self.callers >= self.limits.callers {
            return Err((CallRefusal::Callers(self.callers), reply));
        }
        let line = call.line();
        let last = self.lines.get(&line).and_then(VecDeque::back).copied();
        let same = last.filter(|ticket| {
            let waits = self.calls.get(ticket).and_then(|entry| entry.call.as_ref());
            waits.is_some_and(|waits| waits.is_same(&call))
        });
        if same.is_none() && from_client && self.waiting >= self.limits.waiting {
            return Err((CallRefusal::Full(self.waiting), reply));
        }
        let ticket = same.unwrap_or_else(|| self.add(line, call, from_client));
        let caller = self.next_caller;
        self.next_caller += 1;
        self.callers += 1;
        if let Some(entry) = self.calls.get_mut(&ticket) {
            entry.replies.push((caller, reply));
        }
        Ok(CallPosition { ticket, caller })
    }

    fn add(&mut self, line: CallLine, call: ManagementCall, from_client: bool) -> CallTicket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let lane = call.lane();
        let tickets = self.lines.entry(line.clone()).or_default();
        if tickets.is_empty() {
            self.ready[lane as usize].insert(ticket);
        }
        tickets.push_back(ticket);
        self.waiting += usize::from(from_client);
        let entry = QueuedCall {
            line,
            lane,
            call: Some(call),
            from_client,
            replies: Vec::new(),
        };
        self.calls.insert(ticket, entry);
        ticket
    }

    /// The next call that may run now; it counts as running until [`Self::finish`].
    pub(super) fn start_next(&mut self) -> Option<(CallTicket, ManagementCall)> {
        let limits = [self.limits.loads.max(1), 1, 1];
        let lanes = 0..LANES;
        let free = lanes.filter(|&lane| self.running[lane] < limits[lane]);
        let ticket = free.filter_map(|lane| self.ready[lane].first()).min();
        let ticket = *ticket?;
        let entry = self.calls.get_mut(&ticket)?;
        let call = entry.call.take()?;
        self.ready[entry.lane as usize].remove(&ticket);
        self.running[entry.lane as usize] += 1;
        self.waiting -= usize::from(entry.from_client);
        Some((ticket, call))
    }

    /// Notes that a call has run. Returns where its outcome goes.
    pub(super) fn finish(&mut self, ticket: CallTicket) -> Vec<R> {
        let Some(entry) = self.calls.get(&ticket) else {
            return Vec::new();
        };
        self.running[entry.lane as usize] -= 1;
        self.remove(ticket)
    }

    /// Forgets a caller. A client's call that has not begun is removed with its last caller and returned, to be dropped
    /// without a lock.
    pub(super) fn leave(&mut self, position: CallPosition) -> Option<ManagementCall> {
        let entry = self.calls.get_mut(&position.ticket)?;
        let before = entry.replies.len();
        entry
            .replies
            .retain(|(caller, _)| *caller != position.caller);
        self.callers -= before - entry.replies.len();
        if !entry.from_client || !entry.replies.is_empty() {
            return None;
        }
        let call = entry.call.take()?;
        self.waiting -= 1;
        self.ready[entry.lane as usize].remove(&position.ticket);
        self.remove(position.ticket);
        Some(call)
    }

    /// Takes no further calls, and drops those that wait. Returns where all outcomes go, even those of running calls:
    /// nobody has to wait for a long load.
    pub(super) fn close(&mut self) -> Vec<R> {
        self.is_closed = true;
        self.callers = 0;
        self.waiting = 0;
        self.ready.iter_mut().for_each(BTreeSet::clear);
        let entries = self.calls.values_mut();
        let replies = entries.flat_map(|entry| entry.replies.drain(..));
        let replies = replies.map(|(_, reply)| reply).collect();
        self.calls.retain(|_, entry| entry.call.is_none());
        let entries = &self.calls;
        self.lines.retain(|_, tickets| {
            tickets.retain(|ticket| entries.contains_key(ticket));
            !tickets.is_empty()
        });
        replies
    }

    /// How many calls run now.
    pub(super) fn running(&self) -> usize {
        self.running.iter().sum()
    }

    /// Removes a call from its line, whose next call is then ready.
    fn remove(&mut self, ticket: CallTicket) -> Vec<R> {
        let Some(entry) = self.calls.remove(&ticket) else {
            return Vec::new();
        };
        if let Some(tickets) = self.lines.get_mut(&entry.line) {
            tickets.retain(|other| *other != ticket);
            match tickets.front() {
                None => drop(self.lines.remove(&entry.line)),
                Some(next) => {
                    // The front may be running.
                    let next = (*next, self.calls.get(next));
                    if let (ticket, Some(next)) = next
                        && next.call.is_some()
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
mod tests;
