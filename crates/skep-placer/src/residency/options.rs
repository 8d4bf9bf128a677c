//! Options of the state machine.

use std::time::Duration;

use crate::{keep_alive::KeepAlive, residency::EvictionPolicy};

/// Options of a [`Residency`](crate::residency::Residency).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResidencyOptions {
    /// Bytes for all models together.
    pub budget: u64,
    /// Which model leaves first.
    pub policy: EvictionPolicy,
    /// How many models load at once; at least 1.
    pub loads_at_once: usize,
    /// How long an idle model stays although nothing needs its room.
    pub keep_alive: KeepAlive,
}

/// A model stays at least this long after its load, however short that was: the requests that waited for it have to get
/// through.
pub(super) const MIN_STAY: Duration = Duration::from_millis(100);

/// The delay after a first failure. Each further one doubles it.
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
/// The longest delay: a cause that was removed is noticed within a minute.
const MAX_BACK_OFF: Duration = Duration::from_secs(60);

/// How long a model is not tried again after so many failures in a row.
pub(super) fn back_off(failures: u32) -> Duration {
    let doubled = 1_u32
        .checked_shl(failures.saturating_sub(1))
        .unwrap_or(u32::MAX);
    FIRST_BACK_OFF.saturating_mul(doubled).min(MAX_BACK_OFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_minute() {
        let seconds: Vec<u64> = (1..=8).map(|count| back_off(count).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(back_off(u32::MAX), MAX_BACK_OFF);
    }
}
