//! The bound on the bytes of requests in memory.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::BodyError;

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

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What one request holds; given back when its body and its handler are done. A request whose body is compressed has it
/// among its extensions, for what the body becomes.
#[derive(Debug)]
pub(crate) struct Charge {
    memory: Arc<RequestMemory>,
    bytes: AtomicUsize,
}

impl Charge {
    pub(crate) const fn new(memory: Arc<RequestMemory>) -> Self {
        Self {
            memory,
            bytes: AtomicUsize::new(0),
        }
    }

    /// Adds `bytes`.
    ///
    /// # Errors
    /// [`BodyError::NoMemory`] when they do not fit.
    pub(crate) fn add(&self, bytes: usize) -> Result<(), BodyError> {
        if !self.memory.take(bytes) {
            return Err(BodyError::NoMemory(self.memory.limit));
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
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
        assert!(first.add(6).is_ok());
        assert!(second.add(5).is_err(), "11 of 10");
        assert!(second.add(usize::MAX).is_err(), "no overflow");
        assert!(second.add(4).is_ok());
        drop(first);
        assert!(second.add(6).is_ok());
        second.clear();
        assert_eq!(memory.used(), 0);
    }
}
