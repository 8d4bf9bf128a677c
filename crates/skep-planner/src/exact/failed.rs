//! What a search has found to lead nowhere, so that it does not look there again.
//!
//! Two ways of stacking the same buffers often leave the same state: the same buffers without a place, with the same
//! lowest addresses. Where one of them has failed, the other one will.

use crate::splitmix::mixed;

/// Hashes of failed states, each at the slot that its lowest bits name; a later one takes an earlier one's slot.
#[derive(Clone, Default)]
pub(crate) struct FailedStates {
    slots: Vec<u64>,
}

/// Slots of a full table: 2 MiB.
const SLOTS: usize = 1 << 18;
/// Slots at first: most searches end soon.
const FIRST_SLOTS: usize = 1 << 10;

impl FailedStates {
    /// Whether this state has failed before.
    pub(crate) fn contains(&self, state: u64) -> bool {
        !self.slots.is_empty() && self.slots[self.slot(state)] == state
    }

    pub(crate) fn insert(&mut self, state: u64) {
        if self.slots.is_empty() {
            self.slots = vec![0; FIRST_SLOTS];
        }
        let slot = self.slot(state);
        if self.slots[slot] != 0 && self.slots[slot] != state && self.slots.len() < SLOTS {
            self.grow();
            return self.insert(state);
        }
        self.slots[slot] = state;
    }

    fn slot(&self, state: u64) -> usize {
        // The table's length is a power of two, and fits into a usize.
        (state as usize) & (self.slots.len() - 1)
    }

    fn grow(&mut self) {
        let larger = Self {
            slots: vec![0; 4 * self.slots.len()],
        };
        let smaller = std::mem::replace(self, larger);
        for state in smaller.slots.into_iter().filter(|state| *state != 0) {
            let slot = self.slot(state);
            self.slots[slot] = state;
        }
    }
}

/// Hashes a part's state: the sum over its buffers without a place, in any order.
#[derive(Default)]
pub(crate) struct StateHash(u64);

impl StateHash {
    /// Adds a buffer, the lowest address that it can have, and whether it is blocked.
    pub(crate) fn add(&mut self, item: u32, low: i64, is_blocked: bool) {
        let name =
            (u64::from(item) << 1 | u64::from(is_blocked)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = self.0.wrapping_add(mixed(name ^ mixed(low.unsigned_abs())));
    }

    /// Never zero.
    pub(crate) fn finish(self) -> u64 {
        mixed(self.0).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_failed_is_known_while_there_is_room() {
        let mut failed = FailedStates::default();
        let states: Vec<u64> = (1..=50_000).map(mixed).collect();
        assert!(!failed.contains(states[0]));
        for &state in &states {
            failed.insert(state);
            assert!(failed.contains(state));
        }
        assert_eq!(failed.slots.len(), SLOTS);
        let known = states.iter().filter(|state| failed.contains(**state));
        assert!(known.count() > 40_000);
        assert!(!failed.contains(mixed(50_001)));
    }

    #[test]
    fn a_state_is_its_buffers_in_any_order() {
        let hash = |buffers: &[(u32, i64, bool)]| {
            let mut hash = StateHash::default();
            for &(item, low, is_blocked) in buffers {
                hash.add(item, low, is_blocked);
            }
            hash.finish()
        };
        let one = hash(&[(1, 0, false), (2, 5, true)]);
        assert_eq!(one, hash(&[(2, 5, true), (1, 0, false)]));
        for other in [
            vec![(1, 0, false), (2, 5, false)],
            vec![(1, 5, false), (2, 0, true)],
            vec![(1, 0, false), (3, 5, true)],
            vec![(1, 0, false)],
        ] {
            assert_ne!(one, hash(&other));
        }
    }
}
