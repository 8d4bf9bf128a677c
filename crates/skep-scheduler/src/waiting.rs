//! The requests that wait: found by id, ordered by lane and urgency, and known by when each expires.
//!
//! ```text
//! slots:   [ request ][ vacant ][ request ] ...          where a request stays while it waits
//! order:   (lane, urgency, id) -> slot                   which is next
//! expiry:  (moment, id) -> slot                          whose time is over first
//! by_id:   id -> slot                                    for cancellation
//! ```
//!
//! A *lane* is a priority level; a second lane of each level holds the requests that have overstayed and wait behind
//! the others (Triton's delayed queue). Every operation takes a few bisections, however many requests wait.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use skep_types::Time;

use crate::{Request, RequestId, sorted::Sorted};

/// A waiting request's position. Lower positions are served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QueuePosition {
    lane: QueueLane,
    /// Orders the requests of a lane; equal if they are served in the order of arrival.
    urgency: Time,
    id: RequestId,
    slot: u32,
}

/// The lane in which a request queues: its priority level, with overstayed requests behind the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QueueLane {
    /// Index of the level; 0 is served first.
    pub(crate) level: u32,
    pub(crate) overstayed: bool,
}

/// A waiting request, with what the scheduler knows of it.
#[derive(Debug)]
pub(crate) struct WaitingRequest<P> {
    pub(crate) request: Request<P>,
    /// When it was enqueued.
    pub(crate) since: Time,
    /// When its wait ends by its queue's policy or its objective, if it does.
    pub(crate) expires: Option<Time>,
    position: QueuePosition,
}

impl<P> WaitingRequest<P> {
    pub(crate) fn position(&self) -> QueuePosition {
        self.position
    }

    pub(crate) fn lane(&self) -> QueueLane {
        self.position.lane
    }
}

/// All waiting requests of a model.
#[derive(Debug)]
pub(crate) struct WaitQueue<P> {
    slots: Vec<Option<WaitingRequest<P>>>,
    vacant: Vec<u32>,
    order: Sorted<QueuePosition>,
    expiry: Sorted<(Time, RequestId, u32)>,
    by_id: HashMap<RequestId, u32, BuildHasherDefault<IdHasher>>,
    /// Requests a level.
    levels: Vec<usize>,
    /// Inferences of all.
    inferences: usize,
}

impl<P> WaitQueue<P> {
    pub(crate) fn new(levels: usize) -> Self {
        Self {
            slots: Vec::new(),
            vacant: Vec::new(),
            order: Sorted::new(),
            expiry: Sorted::new(),
            by_id: HashMap::default(),
            levels: vec![0; levels],
            inferences: 0,
        }
    }

    /// How many requests wait.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// How many wait in a level.
    pub(crate) fn in_level(&self, level: u32) -> usize {
        self.levels[level as usize]
    }

    /// The inferences of all that wait.
    pub(crate) fn inferences(&self) -> usize {
        self.inferences
    }

    /// Adds a request. Its id must be new; ids decide between equal urgencies.
    pub(crate) fn insert(
        &mut self,
        request: Request<P>,
        since: Time,
        lane: QueueLane,
        urgency: Time,
        expires: Option<Time>,
    ) -> QueuePosition {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("the queue's bound is below 2^32")
        });
        let id = request.id;
        let position = QueuePosition {
            lane,
            urgency,
            id,
            slot,
        };
        self.levels[lane.level as usize] += 1;
        self.inferences += request.batch_size;
        self.order.insert(position);
        if let Some(expires) = expires {
            self.expiry.insert((expires, id, slot));
        }
        let before = self.by_id.insert(id, slot);
        debug_assert!(before.is_none(), "ids are new");
        self.slots[slot as usize] = Some(WaitingRequest {
            request,
            since,
            expires,
            position,
        });
        position
    }

    /// The position that is served first.
    pub(crate) fn first(&self) -> Option<QueuePosition> {
        self.order.first()
    }

    /// The position that is served after this one.
    pub(crate) fn after(&self, position: QueuePosition) -> Option<QueuePosition> {
        self.order.after(position)
    }

    /// All waiting requests, in the order of service.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &WaitingRequest<P>> {
        self.order.iter().map(|position| self.get(position))
    }

    /// The request whose wait ends first.
    pub(crate) fn most_urgent(&self) -> Option<&WaitingRequest<P>> {
        let (_, _, slot) = self.expiry.first()?;
        self.slots[slot as usize].as_ref()
    }

    pub(crate) fn get(&self, position: QueuePosition) -> &WaitingRequest<P> {
        self.slots[position.slot as usize]
            .as_ref()
            .expect("a position is that of a waiting request")
    }

    pub(crate) fn position_of(&self, id: RequestId) -> Option<QueuePosition> {
        let slot = *self.by_id.get(&id)?;
        let waiter = self.slots[slot as usize].as_ref();
        waiter.map(|waiter| waiter.position)
    }

    /// Removes a request.
    pub(crate) fn take(&mut self, position: QueuePosition) -> WaitingRequest<P> {
        let waiter = self.slots[position.slot as usize]
            .take()
            .expect("a position is that of a waiting request");
        self.vacant.push(position.slot);
        self.order.remove(position);
        if let Some(expires) = waiter.expires {
            self.expiry.remove((expires, position.id, position.slot));
        }
        self.by_id.remove(&position.id);
        self.levels[position.lane.level as usize] -= 1;
        self.inferences -= waiter.request.batch_size;
        waiter
    }

    /// When the next wait is over.
    pub(crate) fn next_expiry(&self) -> Option<Time> {
        self.expiry.first().map(|(moment, ..)| moment)
    }

    /// The request whose wait has been over for longest, if there is one.
    pub(crate) fn expired(&self, now: Time) -> Option<QueuePosition> {
        let (moment, _, slot) = self.expiry.first()?;
        let waiter = self.slots[slot as usize].as_ref()?;
        (moment <= now).then_some(waiter.position)
    }
}

/// Keeps consecutive ids next to each other: requests that come and go together share cache lines.
#[derive(Debug, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        // The map finds a place by the low bits and tells neighbours apart by the top seven; these are spread by
        // Fibonacci hashing (2^64 divided by the golden ratio).
        let value = self.0 ^ value;
        let spread = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = (value & (u64::MAX >> 7)) | (spread & !(u64::MAX >> 7));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
