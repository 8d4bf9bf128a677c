//! Bytes: what models hold, each shared tensor once, and what is promised or about to be free.
//!
//! ```text
//!  budget |---------------------------------------------------------------|
//!  used   |  held  |  transient  |  leaving  |  kept  |  beyond  |  free
//!            |         |             |          |         +- the node's own, beyond what it counts
//!            |         |             |          +- weights that no model uses; given up first
//!            |         |             +- of models that have left, until their memory is free
//!            |         +- of loads that run, beside what their models will hold
//!            +- of resident and loading models
//! ```

use std::collections::{BTreeSet, HashMap};

use crate::residency::{ModelSize, TensorKey};

/// A model's size, whose tensors are numbers of a [`Room`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NumberedSize {
    private_bytes: u64,
    /// Each once, ascending.
    tensors: Box<[u32]>,
}

/// A tensor that some known model has.
#[derive(Debug, Clone, Copy)]
struct SharedTensor {
    key: TensorKey,
    bytes: u64,
    /// Models that list it, resident or not.
    listed: u32,
    /// Models that hold it.
    holders: u32,
}

/// The bytes of a budget.
#[derive(Debug, Default)]
pub(super) struct Room {
    held: u64,
    pub(super) transient: u64,
    pub(super) leaving: u64,
    pub(super) kept: u64,
    pub(super) beyond: u64,
    /// The part of it that was there for some time.
    pub(super) beyond_for_long: u64,
    tensors: Vec<SharedTensor>,
    /// Of keys, the places in `tensors`. Only looked up.
    numbers: HashMap<TensorKey, u32>,
    /// Places in `tensors` that no model lists.
    vacant: Vec<u32>,
    /// What all models would hold without sharing.
    unshared: u64,
    /// The tensors in `held`.
    shared: u64,
}

impl NumberedSize {
    pub(super) const fn private_bytes(&self) -> u64 {
        self.private_bytes
    }

    /// The same tensors, with other private bytes.
    pub(super) fn with_private(&self, private_bytes: u64) -> Self {
        Self {
            private_bytes,
            tensors: self.tensors.clone(),
        }
    }

    pub(super) const fn has_tensors(&self) -> bool {
        !self.tensors.is_empty()
    }
}

impl Room {
    /// Numbers the tensors of a size. [`Self::forget`] has to follow in the end.
    pub(super) fn number(&mut self, size: &ModelSize) -> NumberedSize {
        let mut numbers: Vec<u32> = Vec::with_capacity(size.tensors.len());
        for (key, bytes) in &size.tensors {
            let number = match self.numbers.get(key) {
                Some(number) => *number,
                None => self.add(*key, *bytes),
            };
            numbers.push(number);
        }
        numbers.sort_unstable();
        numbers.dedup();
        for &number in &numbers {
            self.tensors[number as usize].listed += 1;
        }
        NumberedSize {
            private_bytes: size.private_bytes,
            tensors: numbers.into(),
        }
    }

    fn add(&mut self, key: TensorKey, bytes: u64) -> u32 {
        let tensor = SharedTensor {
            key,
            bytes,
            listed: 0,
            holders: 0,
        };
        let number = match self.vacant.pop() {
            Some(number) => {
                self.tensors[number as usize] = tensor;
                number
            }
            None => {
                self.tensors.push(tensor);
                u32::try_from(self.tensors.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.numbers.insert(key, number);
        number
    }

    /// A size that nobody has any more, and nobody holds.
    pub(super) fn forget(&mut self, size: &NumberedSize) {
        for &number in &size.tensors {
            let tensor = &mut self.tensors[number as usize];
            tensor.listed -= 1;
            if tensor.listed == 0 {
                self.numbers.remove(&tensor.key);
                self.vacant.push(number);
            }
        }
    }

    /// Counts a size as held.
    pub(super) fn hold(&mut self, size: &NumberedSize) {
        let needed = self.needed_by(size);
        self.held = self.held.saturating_add(needed);
        self.shared = self.shared.saturating_add(needed - size.private_bytes);
        self.unshared = self.unshared.saturating_add(self.total(size));
        for &number in &size.tensors {
            self.tensors[number as usize].holders += 1;
        }
    }

    /// Counts a size as held no more, and returns the bytes that become free.
    pub(super) fn release(&mut self, size: &NumberedSize) -> u64 {
        let freed = self.freed_by(size);
        self.held = self.held.saturating_sub(freed);
        self.shared = self.shared.saturating_sub(freed - size.private_bytes);
        self.unshared = self.unshared.saturating_sub(self.total(size));
        for &number in &size.tensors {
            self.tensors[number as usize].holders -= 1;
        }
        freed
    }

    /// What holding a size adds.
    pub(super) fn needed_by(&self, size: &NumberedSize) -> u64 {
        self.sum(size, |tensor| tensor.holders == 0)
    }

    /// What releasing a held size frees.
    pub(super) fn freed_by(&self, size: &NumberedSize) -> u64 {
        self.sum(size, |tensor| tensor.holders == 1)
    }

    /// All bytes of a size, shared or not.
    pub(super) fn total(&self, size: &NumberedSize) -> u64 {
        self.sum(size, |_| true)
    }

    /// What these sizes hold together, each shared tensor once.
    pub(super) fn union<'a>(&self, sizes: impl Iterator<Item = &'a NumberedSize>) -> u64 {
        let mut seen = BTreeSet::new();
        let mut sum = 0_u64;
        for size in sizes {
            sum = sum.saturating_add(size.private_bytes);
            for &number in &size.tensors {
                if seen.insert(number) {
                    sum = sum.saturating_add(self.tensors[number as usize].bytes);
                }
            }
        }
        sum
    }

    fn sum(&self, size: &NumberedSize, counts: impl Fn(&SharedTensor) -> bool) -> u64 {
        let tensors = size.tensors.iter();
        tensors
            .map(|&number| &self.tensors[number as usize])
            .filter(|tensor| counts(tensor))
            .fold(size.private_bytes, |sum, tensor| {
                sum.saturating_add(tensor.bytes)
            })
    }

    /// What is in use until departures and loads are over.
    pub(super) fn used(&self) -> u64 {
        self.counted(self.beyond).saturating_add(self.leaving)
    }

    /// What is in use once those that have left are gone, and what the heap keeps for a moment.
    pub(super) fn planned(&self) -> u64 {
        self.counted(self.beyond_for_long)
    }

    fn counted(&self, beyond: u64) -> u64 {
        [self.transient, self.kept, beyond]
            .into_iter()
            .fold(self.held, u64::saturating_add)
    }

    /// What resident and loading models hold, each shared tensor once.
    pub(super) const fn held(&self) -> u64 {
        self.held
    }

    /// The part of it that is tensors, which others may share.
    pub(super) const fn shared(&self) -> u64 {
        self.shared
    }

    /// What those models would hold if none shared anything.
    pub(super) const fn unshared(&self) -> u64 {
        self.unshared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(private_bytes: u64, tensors: &[(u8, u64)]) -> ModelSize {
        let tensors = tensors.iter();
        ModelSize {
            private_bytes,
            tensors: tensors
                .map(|(key, bytes)| (TensorKey([*key; 32]), *bytes))
                .collect(),
        }
    }

    #[test]
    fn a_shared_tensor_counts_once() {
        let mut room = Room::default();
        let first = room.number(&size(10, &[(1, 100), (2, 200), (1, 100)]));
        let second = room.number(&size(20, &[(2, 200), (3, 300)]));
        assert_eq!((room.needed_by(&first), room.total(&second)), (310, 520));
        room.hold(&first);
        assert_eq!((room.held(), room.needed_by(&second)), (310, 320));
        room.hold(&second);
        assert_eq!((room.held(), room.unshared()), (630, 830));
        assert_eq!(room.shared(), 600);
        assert_eq!(room.union([&first, &second].into_iter()), 630);
        assert_eq!((room.freed_by(&first), room.freed_by(&second)), (110, 320));
        assert_eq!(room.release(&first), 110);
        assert_eq!((room.held(), room.freed_by(&second)), (520, 520));
        assert_eq!(room.release(&second), 520);
        assert_eq!((room.held(), room.unshared(), room.shared()), (0, 0, 0));
    }

    #[test]
    fn numbers_of_forgotten_tensors_are_used_again() {
        let mut room = Room::default();
        let first = room.number(&size(0, &[(1, 1), (2, 2)]));
        let second = room.number(&size(0, &[(2, 2)]));
        room.forget(&first);
        assert_eq!(room.numbers.len(), 1);
        let third = room.number(&size(0, &[(3, 30)]));
        assert_eq!((room.tensors.len(), room.total(&third)), (2, 30));
        assert_eq!(room.total(&second), 2);
        room.forget(&second);
        room.forget(&third);
        assert_eq!((room.numbers.len(), room.vacant.len()), (0, 2));
    }

    #[test]
    fn everything_counts_as_used_and_departures_do_not_as_planned() {
        let room = Room {
            held: 1,
            transient: 10,
            leaving: 100,
            kept: 1_000,
            beyond: 10_000,
            beyond_for_long: 10_000,
            ..Room::default()
        };
        assert_eq!((room.used(), room.planned()), (11_111, 11_011));
    }
}
