//! The limit on requests that wait for instances, over all models of a node.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Four models with full queues of the default size. With more, answers would come too late to be useful.
pub const DEFAULT_MAX_WAITING: usize = 65_536;

/// Counts the requests that wait on a node, up to a limit. Requests that find a free instance are not counted, and so
/// touch no shared counter.
#[derive(Debug)]
pub struct WaitingLimit {
    max: usize,
    waiting: AtomicUsize,
}

impl WaitingLimit {
    /// `max` requests may wait.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self {
            max,
            waiting: AtomicUsize::new(0),
        }
    }

    /// The limit.
    #[must_use]
    pub const fn max(&self) -> usize {
        self.max
    }

    /// Counts a change from `before` to `after` waiting requests of one model. Returns whether the limit is exceeded.
    pub(crate) fn count(&self, before: usize, after: usize) -> bool {
        if after > before {
            let more = after - before;
            return self.waiting.fetch_add(more, Ordering::Relaxed) + more > self.max;
        }
        if after < before {
            self.waiting.fetch_sub(before - after, Ordering::Relaxed);
        }
        false
    }
}

impl Default for WaitingLimit {
    /// The default limit.
    fn default() -> Self {
        Self::new(DEFAULT_MAX_WAITING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceeding_the_limit_is_reported() {
        let limit = WaitingLimit::new(3);
        assert!(!limit.count(0, 2) && !limit.count(2, 3) && !limit.count(3, 3));
        assert!(limit.count(0, 1), "a fourth");
        assert!(!limit.count(1, 0) && !limit.count(3, 1));
        assert!(!limit.count(1, 3), "there is room again");
    }
}
