//! Requests that wait outside of a full queue until it has room: steps of ensembles, which have come too far to be
//! refused while there is time left.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, futures::Notified};

/// Tells those that wait outside of a queue, in their order, how many places it has got.
#[derive(Debug, Default)]
pub(crate) struct QueueRoom {
    freed: Notify,
    /// How many wait; without any, a place costs one look at this.
    waiting: AtomicUsize,
}

/// A request that waits outside. It is in the order from here on.
pub(crate) struct RoomWaiter<'a> {
    room: &'a QueueRoom,
}

impl QueueRoom {
    /// Notes that the queue has so many places more.
    pub(super) fn freed(&self, places: usize) {
        let waiting = self.waiting.load(Ordering::Relaxed);
        for _ in 0..places.min(waiting) {
            self.freed.notify_one();
        }
    }

    /// Announces a request that will wait.
    pub(crate) fn waiter(&self) -> RoomWaiter<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        RoomWaiter { room: self }
    }
}

impl<'a> RoomWaiter<'a> {
    /// Completes when the queue has got a place after this call. Another request may take that place first.
    pub(crate) fn place(&self) -> Notified<'a> {
        self.room.freed.notified()
    }
}

impl Drop for RoomWaiter<'_> {
    fn drop(&mut self) {
        self.room.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
