//! How long to wait before an instance is recreated, so that one that dies at every start does not waste the processor.

use std::time::Duration;

use skep_types::Time;

/// The wait before the second attempt in a row. The first is made at once, since most failures are isolated. Each
/// further wait is twice as long.
const FIRST: Duration = Duration::from_millis(100);

/// The longest wait: after the cause is fixed, nobody wants to wait for minutes.
const LONGEST: Duration = Duration::from_secs(10);

/// An instance that lived this long did not die of its start: its next failure counts as the first.
const HEALTHY: Duration = Duration::from_secs(60);

/// An instance's failures so far.
#[derive(Debug)]
pub(crate) struct BackOff {
    next: Duration,
    /// When the instance was last created, or an attempt failed.
    since: Time,
}

impl BackOff {
    /// For an instance created at `now`.
    pub(crate) const fn new(now: Time) -> Self {
        Self {
            next: Duration::ZERO,
            since: now,
        }
    }

    /// The instance was recreated.
    pub(crate) const fn started(&mut self, now: Time) {
        self.since = now;
    }

    /// The instance was lost, or an attempt to recreate it failed. Returns how long to wait before the next attempt.
    pub(crate) fn lost(&mut self, now: Time) -> Duration {
        if now.since(self.since) >= HEALTHY {
            self.next = Duration::ZERO;
        }
        // The time of failed attempts does not count as health.
        self.since = now;
        let wait = self.next;
        self.next = (wait * 2).clamp(FIRST, LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_with_failures_in_a_row_and_health_resets_them() {
        let mut now = Time::ZERO;
        let mut back_off = BackOff::new(now);
        let mut waits = Vec::new();
        for _ in 0..10 {
            now = now + Duration::from_secs(1);
            waits.push(back_off.lost(now).as_millis());
            back_off.started(now);
        }
        assert_eq!(
            waits,
            [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        now = now + HEALTHY;
        assert_eq!(back_off.lost(now), Duration::ZERO);
        // Failed attempts over a longer time do not count as health.
        for _ in 0..20 {
            now = now + LONGEST;
            back_off.lost(now);
        }
        assert_eq!(back_off.lost(now), LONGEST);
    }
}
