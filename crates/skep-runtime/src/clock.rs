//! The one clock of the process.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use skep_types::Time;

/// Now, for scheduling and statistics: monotonic, since the machine's start.
///
/// Read directly, so that a difference of two points is one subtraction: `Instant` keeps seconds and nanoseconds apart,
/// and a request is measured in eight places.
pub(crate) fn now() -> Time {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither is negative on this clock, and nanoseconds in 64 bits last for 584 years.
    Time::from_nanos(now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned())
}

/// A duration in nanoseconds; saturates.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_in_nanoseconds() {
        let (before, instant) = (now(), std::time::Instant::now());
        while instant.elapsed().as_micros() < 100 {}
        let (elapsed, passed) = (instant.elapsed(), now().since(before));
        // The outer readings enclose the inner ones.
        assert!(passed >= Duration::from_micros(100));
        assert!(elapsed <= now().since(before));
    }
}
