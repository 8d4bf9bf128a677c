//! Blocks that are never split or joined, kept in lists by their size.

use std::collections::BTreeMap;

use super::{MemoryFigures, NotInUse, pieces::AddressMap};

#[derive(Clone, Copy, Debug)]
struct WholeBlock {
    requested: u64,
    size: u64,
}

/// Blocks of fixed sizes: free ones are reused for the same size alone, the last freed first.
#[derive(Debug, Default)]
pub(super) struct SizeLists {
    free: BTreeMap<u64, Vec<u64>>,
    in_use: AddressMap<WholeBlock>,
    pub(super) figures: MemoryFigures,
}

impl SizeLists {
    /// A free block of exactly this size.
    pub(super) fn pop(&mut self, size: u64) -> Option<u64> {
        self.free.get_mut(&size)?.pop()
    }

    /// A block that the source has given is free.
    pub(super) fn push(&mut self, size: u64, address: u64) {
        self.free.entry(size).or_default().push(address);
    }

    pub(super) fn begin_use(&mut self, address: u64, requested: u64, size: u64) {
        self.in_use.insert(address, WholeBlock { requested, size });
        self.figures.in_use += requested;
        self.figures.padding += size - requested;
    }

    /// The block is not in use any more; returns what was asked for, and its size.
    pub(super) fn end_use(&mut self, address: u64) -> Result<(u64, u64), NotInUse> {
        let block = self.in_use.remove(&address).ok_or(NotInUse { address })?;
        self.figures.in_use -= block.requested;
        self.figures.padding -= block.size - block.requested;
        Ok((block.requested, block.size))
    }

    /// All free blocks leave their lists: size and address.
    pub(super) fn drain(&mut self) -> Vec<(u64, u64)> {
        let lists = std::mem::take(&mut self.free).into_iter();
        lists
            .flat_map(|(size, list)| list.into_iter().map(move |address| (size, address)))
            .collect()
    }

    pub(super) fn largest(&self) -> u64 {
        let mut sizes = self.free.iter().rev();
        let largest = sizes.find(|(_, list)| !list.is_empty());
        largest.map_or(0, |(size, _)| *size)
    }
}
