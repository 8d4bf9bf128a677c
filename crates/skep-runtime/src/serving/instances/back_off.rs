//! How long an instance stays away before it is made again, so that one that dies at every start takes no processor.

use std::time::Duration;

use skep_types::Time;

/// Before the second attempt in a row; the first is made at once, since most failures are alone. Twice as long each time.
const FIRST: Duration = Duration::from_millis(100);

/// The longest: who mends the reason does not want to wait for minutes.
const LONGEST: Duration = Duration::from_secs(10);

/// An instance that lived so long did not die of its start: the next failure is a first one again.
const HEALTHY: Duration = Duration::from_secs(60);

/// What an instance's failures so far mean for the next attempt.
#[derive(Debug)]
pub(crate) struct BackOff {
    next: Duration,
    /// Since when the instance is there.
    since: Time,
}

impl BackOff {
    /// For an instance that is there since `now`.
    pub(crate) const fn new(now: Time) -> Self {
        Self {
            next: Duration::ZERO,
            since: now,
        }
    }

    /// The instance is there again.
    pub(crate) const fn started(&mut self, now: Time) {
        self.since = now;
    }

    /// The instance was lost, or an attempt to make it again failed: how long until the next attempt.
    pub(crate) fn lost(&mut self, now: Time) -> Duration {
        if now.since(self.since) >= HEALTHY {
            self.next = Duration::ZERO;
        }
        // Attempts that fail are no time of health.
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
    fn failures_in_a_row_wait_longer_and_health_resets() {
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
        // Attempts that fail for longer than that are no health.
        for _ in 0..20 {
            now = now + LONGEST;
            back_off.lost(now);
        }
        assert_eq!(back_off.lost(now), LONGEST);
    }
}
