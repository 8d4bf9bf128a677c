//! The waiting requests: first in, first out, from which any can be taken out by its id.

use std::collections::VecDeque;

use crate::{Request, RequestId};

/// A FIFO whose requests are ordered by their ids as well, so that one is found by bisection and no index beside the
/// queue has to be kept.
///
/// A cancelled request leaves a hole that is dropped when it reaches the head; a queue that is mostly holes is
/// compacted, so holes never outnumber the requests by more than a constant.
#[derive(Debug)]
pub(crate) struct Queue<P> {
    /// In order of arrival, which is the order of their ids.
    slots: VecDeque<Slot<P>>,
    /// Slots that hold a request.
    waiting: usize,
}

#[derive(Debug)]
struct Slot<P> {
    id: RequestId,
    /// `None` where the request was cancelled.
    request: Option<Request<P>>,
}

/// Holes up to this number are left alone: below it a compaction costs more than it saves.
const HOLES_LEFT_ALONE: usize = 64;

impl<P> Queue<P> {
    pub(crate) fn new() -> Self {
        Self {
            slots: VecDeque::new(),
            waiting: 0,
        }
    }

    /// How many requests wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting
    }

    /// Takes in a request, whose id is above that of all before it.
    pub(crate) fn push(&mut self, request: Request<P>) {
        debug_assert!(
            self.slots.back().is_none_or(|last| last.id < request.id),
            "ids ascend"
        );
        self.slots.push_back(Slot {
            id: request.id,
            request: Some(request),
        });
        self.waiting += 1;
    }

    /// Takes the oldest request.
    pub(crate) fn pop(&mut self) -> Option<Request<P>> {
        while let Some(slot) = self.slots.pop_front() {
            if slot.request.is_some() {
                self.waiting -= 1;
                return slot.request;
            }
        }
        None
    }

    /// Takes a waiting request out of the middle.
    pub(crate) fn remove(&mut self, id: RequestId) -> Option<Request<P>> {
        let index = self.slots.binary_search_by_key(&id, |slot| slot.id).ok()?;
        let request = self.slots[index].request.take()?;
        self.waiting -= 1;
        // A pass over the queue, of which at least half were holes since the last one.
        if self.slots.len() > HOLES_LEFT_ALONE && self.slots.len() > 2 * self.waiting {
            self.slots.retain(|slot| slot.request.is_some());
        }
        Some(request)
    }
}
