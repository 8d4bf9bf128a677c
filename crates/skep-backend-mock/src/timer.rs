//! Waits until a point in time, more precisely than the system's sleep.

use std::{
    hint,
    num::NonZeroU64,
    thread,
    time::{Duration, Instant},
};

/// How long before the deadline sleeping ends and spinning begins: the time to wake a thread on a virtual machine whose
/// processor sleeps.
const SPIN: Duration = Duration::from_micros(80);

thread_local! {
    /// Whether this thread's sleeps are precise. By default Linux adds 50 us to each, the timer slack.
    static EXACT: bool = rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).is_ok();
}

/// Returns at `deadline`, never before. It is late by about a microsecond if a processor is free, by a time slice if
/// all are busy. Costs at most [`SPIN`] of CPU time.
pub(crate) fn wait_until(deadline: Instant) {
    // If the slack cannot be set, waits are that much longer.
    let _is_exact = EXACT.with(|exact| *exact);
    let now = Instant::now();
    if let Some(sleep) = deadline.saturating_duration_since(now).checked_sub(SPIN) {
        thread::sleep(sleep);
    }
    while Instant::now() < deadline {
        hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_early() {
        for micros in [0, 1, 30, 200, 1500] {
            let deadline = Instant::now() + Duration::from_micros(micros);
            wait_until(deadline);
            assert!(Instant::now() >= deadline);
        }
        // A deadline in the past returns at once.
        wait_until(
            Instant::now()
                .checked_sub(Duration::from_millis(1))
                .unwrap_or_else(Instant::now),
        );
    }
}
