//! The waiting requests: first in, first out, with cancellation in constant time.

use std::collections::{HashMap, VecDeque};

use crate::{Request, RequestId};

/// A FIFO from which any request can be taken out by its id.
///
/// A cancelled request leaves a hole that is dropped when it reaches the head; holes never outnumber the requests by
/// more than the bound on the queue, because a queue that is mostly holes is compacted.
#[derive(Debug)]
pub(crate) struct Queue<P> {
    /// Requests in order of arrival; `None` where one was cancelled.
    slots: VecDeque<Option<Request<P>>>,
    /// Position of each waiting request, counted from the first request ever. Only looked up, never iterated.
    positions: HashMap<RequestId, u64>,
    /// The position of `slots[0]`.
    head: u64,
}

impl<P> Queue<P> {
    pub(crate) fn new() -> Self {
        Self {
            slots: VecDeque::new(),
            positions: HashMap::new(),
            head: 0,
        }
    }

    /// How many requests wait.
    pub(crate) fn len(&self) -> usize {
        self.positions.len()
    }

    pub(crate) fn push(&mut self, request: Request<P>) {
        let position = self.head + self.slots.len() as u64;
        let previous = self.positions.insert(request.id, position);
        debug_assert!(previous.is_none(), "request ids are unique");
        self.slots.push_back(Some(request));
    }

    /// Takes the oldest request.
    pub(crate) fn pop(&mut self) -> Option<Request<P>> {
        while let Some(slot) = self.slots.pop_front() {
            self.head += 1;
            if let Some(request) = slot {
                self.positions.remove(&request.id);
                return Some(request);
            }
        }
        None
    }

    /// Takes a waiting request out of the middle.
    pub(crate) fn remove(&mut self, id: RequestId) -> Option<Request<P>> {
        let position = self.positions.remove(&id)?;
        let index = usize::try_from(position - self.head).ok()?;
        let request = self.slots.get_mut(index).and_then(Option::take);
        if self.slots.len() > 64 && self.slots.len() > 2 * self.positions.len() {
            self.compact();
        }
        request
    }

    /// Drops the holes; costs a pass over the queue, and at least half of it were holes since the last time.
    fn compact(&mut self) {
        self.slots.retain(Option::is_some);
        for (index, request) in self.slots.iter().flatten().enumerate() {
            self.positions.insert(request.id, self.head + index as u64);
        }
    }
}
