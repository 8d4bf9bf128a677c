//! A range of addresses whose pages get memory from its beginning on.

use super::Source;

/// Addresses with memory behind the first of them.
#[derive(Debug)]
pub(super) struct PagedRange {
    address: u64,
    /// Bytes of addresses.
    reserved: u64,
    /// Bytes with memory.
    committed: u64,
    /// What is committed at a time, a multiple of the source's page.
    step: u64,
}

impl PagedRange {
    /// At least `bytes` of addresses, committed in multiples of `step`.
    pub(super) fn reserve(bytes: u64, step: u64, source: &mut dyn Source) -> Option<Self> {
        let step = step.max(1).next_multiple_of(source.page());
        let reserved = bytes.next_multiple_of(step);
        Some(Self {
            address: source.reserve(reserved)?,
            reserved,
            committed: 0,
            step,
        })
    }

    pub(super) const fn address(&self) -> u64 {
        self.address
    }

    /// Where memory ends.
    pub(super) const fn end(&self) -> u64 {
        self.address + self.committed
    }

    pub(super) const fn step(&self) -> u64 {
        self.step
    }

    /// Puts memory behind at least `bytes` more, and returns the address where they begin, and how many they are.
    pub(super) fn commit(&mut self, bytes: u64, source: &mut dyn Source) -> Option<(u64, u64)> {
        let more = bytes.max(1).next_multiple_of(self.step);
        if more > self.reserved - self.committed {
            return None;
        }
        let start = self.address + self.committed;
        if !source.commit(start..start + more) {
            return None;
        }
        self.committed += more;
        Some((start, more))
    }

    /// Takes the memory of the last steps back, at most `bytes`; returns how many bytes they were.
    pub(super) fn decommit(&mut self, bytes: u64, source: &mut dyn Source) -> u64 {
        let less = bytes.min(self.committed) / self.step * self.step;
        if less > 0 {
            let end = self.address + self.committed;
            source.decommit(end - less..end);
            self.committed -= less;
        }
        less
    }
}
