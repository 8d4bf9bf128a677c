//! The bound on requests that wait for instances, over all models of a node.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Four models with full queues of the default size: more is a sign that answers will come too late for anybody.
pub const DEFAULT_MAX_WAITING: usize = 65_536;

/// Counts the requests that wait on a node, up to a limit. Those that find an instance free are never counted: nothing
/// shared is touched for them.
#[derive(Debug)]
pub struct WaitingLimit {
    max: usize,
    waiting: AtomicUsize,
}

impl WaitingLimit {
    /// As many requests may wait as `max` says.
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

    /// Counts from `before` to `after` waiting requests of one model; whether there are more than may be.
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
    /// The limit of a node that says nothing of it.
    fn default() -> Self {
        Self::new(DEFAULT_MAX_WAITING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_the_limit_is_told() {
        let limit = WaitingLimit::new(3);
        assert!(!limit.count(0, 2) && !limit.count(2, 3) && !limit.count(3, 3));
        assert!(limit.count(0, 1), "a fourth");
        assert!(!limit.count(1, 0) && !limit.count(3, 1));
        assert!(!limit.count(1, 3), "there is room again");
    }
}
