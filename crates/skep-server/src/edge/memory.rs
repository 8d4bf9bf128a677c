//! The bound on the bytes of requests in memory.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// How many bytes of requests there are and may be, over all connections.
#[derive(Debug)]
pub(crate) struct RequestMemory {
    limit: usize,
    used: AtomicUsize,
}

impl RequestMemory {
    pub(crate) const fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
        }
    }

    pub(crate) const fn limit(&self) -> usize {
        self.limit
    }

    /// Takes `bytes` more, if they fit.
    fn take(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = before
            .checked_add(bytes)
            .is_some_and(|after| after <= self.limit);
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What one request holds; given back when its body and its handler are done.
#[derive(Debug)]
pub(super) struct Charge {
    memory: Arc<RequestMemory>,
    bytes: AtomicUsize,
}

impl Charge {
    pub(super) const fn new(memory: Arc<RequestMemory>) -> Self {
        Self {
            memory,
            bytes: AtomicUsize::new(0),
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.memory.limit()
    }

    /// Adds `bytes`, if they fit.
    pub(super) fn add(&self, bytes: usize) -> bool {
        let fits = self.memory.take(bytes);
        if fits {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Gives back what has been added so far.
    pub(super) fn clear(&self) {
        self.memory.give_back(self.bytes.swap(0, Ordering::Relaxed));
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back() {
        let memory = Arc::new(RequestMemory::new(10));
        let first = Charge::new(Arc::clone(&memory));
        let second = Charge::new(Arc::clone(&memory));
        assert!(first.add(6));
        assert!(!second.add(5), "11 of 10");
        assert!(!second.add(usize::MAX), "no overflow");
        assert!(second.add(4));
        drop(first);
        assert!(second.add(6));
        second.clear();
        assert_eq!(memory.used.load(Ordering::Relaxed), 0);
    }
}
