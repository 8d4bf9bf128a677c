//! jemalloc's size classes: small blocks in slabs of one class, large ones in extents of whole pages, purged by decay.
//!
//! Source: jemalloc's `sc.h` (four classes between two powers of two) and its options `dirty_decay_ms` and
//! `lg_extent_max_active_fit`.
//!
//! ```text
//! slab     pages that hold blocks of one class; empty slabs become dirty extents
//! dirty    free pages with memory, reused first; after the decay they are purged
//! retained free addresses without memory; committed when they are used
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    Allocator, BlockRequest, MemoryFigures, NotInUse, OutOfMemory, Source,
    options::options,
    pieces::{AddressMap, FreePieces, PieceId, Pieces},
    rounded,
};

options! {
    /// Options of the slabs.
    SlabOptions {
        /// the largest class that is served from slabs
        small: u64 = 14 << 10;
        /// a free extent is purged after so many milliseconds
        decay_ms: u32 = 10_000;
        /// a dirty extent serves blocks down to its size divided by two to this
        max_active_fit: u32 = 6;
        /// addresses are reserved in multiples of this
        reserve: u64 = 2 << 20;
    }
}

/// The smallest class.
const QUANTUM: u64 = 16;
/// Pages are those of the host, whatever the source's.
const PAGE: u64 = 4096;
/// Blocks of a slab at most.
const MAX_BLOCKS: u64 = 512;

/// Owners of free pieces: they join only with their like.
const DIRTY: u64 = 0;
const RETAINED: u64 = 1;

/// Pages that hold blocks of one class.
#[derive(Debug)]
struct Slab {
    class: u64,
    /// Free blocks, by number.
    free: BTreeSet<u32>,
    blocks: u32,
}

#[derive(Clone, Copy, Debug)]
struct SmallBlock {
    slab: u64,
    number: u32,
    requested: u64,
}

/// jemalloc's size classes over extents.
#[derive(Debug)]
pub(super) struct SlabAllocator {
    options: SlabOptions,
    pieces: Pieces,
    dirty: FreePieces,
    retained: FreePieces,
    /// When dirty pieces were freed, the longest ago first: time in nanoseconds, address.
    decay: VecDeque<(u64, u64)>,
    /// The dirty pieces by address.
    dirty_at: BTreeMap<u64, PieceId>,
    slabs: AddressMap<Slab>,
    /// Slabs of each class with a free block, by address.
    partial: BTreeMap<u64, BTreeSet<u64>>,
    small: AddressMap<SmallBlock>,
    /// What small blocks ask for, and what their classes add.
    small_figures: MemoryFigures,
    /// Bytes of slabs: they are blocks of the extents, and no user's.
    slab_bytes: u64,
    committed: u64,
}

/// The class of a size.
pub(super) fn class_of(bytes: u64) -> Option<u64> {
    if bytes <= 4 * QUANTUM {
        return Some(bytes.max(1).next_multiple_of(QUANTUM));
    }
    if bytes >= 1 << 61 {
        return None;
    }
    let step = (1 << (bytes - 1).ilog2()) / 4;
    Some(bytes.next_multiple_of(step))
}

/// Pages of a slab: the fewest that blocks of the class fill.
fn slab_size(class: u64) -> u64 {
    let whole = (1..=64)
        .map(|pages| pages * PAGE)
        .find(|size| size.is_multiple_of(class) && size / class <= MAX_BLOCKS.max(PAGE / class));
    whole.unwrap_or_else(|| class.next_multiple_of(PAGE))
}

impl SlabAllocator {
    pub(super) fn new(options: SlabOptions) -> Self {
        Self {
            options,
            pieces: Pieces::default(),
            dirty: FreePieces::default(),
            retained: FreePieces::default(),
            decay: VecDeque::new(),
            dirty_at: BTreeMap::new(),
            slabs: AddressMap::default(),
            partial: BTreeMap::new(),
            small: AddressMap::default(),
            small_figures: MemoryFigures::default(),
            slab_bytes: 0,
            committed: 0,
        }
    }

    fn unlist_dirty(&mut self, id: PieceId) {
        self.dirty.remove(&self.pieces, id);
        self.dirty_at.remove(&self.pieces.get(id).address);
    }

    fn list_dirty(&mut self, id: PieceId) {
        self.dirty.insert(&self.pieces, id);
        self.dirty_at.insert(self.pieces.get(id).address, id);
    }

    /// An extent of `size` bytes, a multiple of this allocator's page and of the source's.
    fn extent(
        &mut self,
        size: u64,
        alignment: u64,
        requested: u64,
        source: &mut dyn Source,
    ) -> Option<u64> {
        let unit = PAGE.max(source.page());
        let most = size << self.options.max_active_fit.min(40);
        let fit = self.dirty.find(&self.pieces, size, alignment, unit);
        let fit = fit.filter(|(id, _)| self.pieces.get(*id).size <= most);
        let id = if let Some((id, gap)) = fit {
            self.dirty_at.remove(&self.pieces.get(id).address);
            let front = id;
            let id = self.dirty.take(&mut self.pieces, id, gap);
            if gap > 0 {
                self.dirty_at.insert(self.pieces.get(front).address, front);
            }
            if self.pieces.get(id).size > size {
                self.dirty.trim_to(&mut self.pieces, id, size);
                let rest = self.pieces.get(id).behind.expect("the rest is behind it");
                self.dirty_at.insert(self.pieces.get(rest).address, rest);
            }
            id
        } else {
            let mut found = self.retained.find(&self.pieces, size, alignment, unit);
            if found.is_none() {
                let slack = if alignment > unit { alignment } else { 0 };
                let bytes = rounded(size + slack, self.options.reserve.max(unit))?;
                let address = source.reserve(bytes)?;
                let id = self.pieces.add_chunk(address, bytes, RETAINED);
                self.retained.insert(&self.pieces, id);
                found = self.retained.find(&self.pieces, size, alignment, unit);
            }
            let (id, gap) = found?;
            let start = self.pieces.get(id).address + gap;
            if !source.commit(start..start + size) {
                return None;
            }
            self.committed += size;
            let id = self.retained.take(&mut self.pieces, id, gap);
            if self.pieces.get(id).size > size {
                self.retained.trim_to(&mut self.pieces, id, size);
            }
            id
        };
        Some(self.pieces.begin_use(id, requested, DIRTY))
    }

    /// An extent is not in use any more.
    fn end_extent(&mut self, address: u64, now: u64) -> Result<u64, NotInUse> {
        let (mut id, requested) = self.pieces.end_use(address)?;
        let (before, behind) = self.pieces.free_neighbours(id);
        if let Some(behind) = behind {
            self.unlist_dirty(behind);
            self.pieces.join_behind(id);
        }
        if let Some(before) = before {
            self.unlist_dirty(before);
            self.pieces.join_behind(before);
            id = before;
        }
        self.list_dirty(id);
        self.decay.push_back((now, self.pieces.get(id).address));
        Ok(requested)
    }

    /// Purges dirty extents that have been free for longer than the decay, or all.
    fn purge(&mut self, all: bool, source: &mut dyn Source) {
        let decay = u64::from(self.options.decay_ms) * 1_000_000;
        let until = source.now();
        while let Some((since, address)) = self.decay.front().copied() {
            if !all && until.saturating_sub(since) < decay {
                return;
            }
            self.decay.pop_front();
            // It may have been used or joined since; what it became has an entry of its own.
            let later = self.decay.iter().any(|(_, other)| *other == address);
            let Some(id) = self.dirty_at.get(&address).copied().filter(|_| !later) else {
                continue;
            };
            self.retain(id, source);
        }
    }

    fn retain(&mut self, id: PieceId, source: &mut dyn Source) {
        let piece = *self.pieces.get(id);
        self.unlist_dirty(id);
        source.decommit(piece.address..piece.end());
        self.committed -= piece.size;
        self.pieces.set_owner(id, RETAINED);
        self.retained.release(&mut self.pieces, id);
    }

    fn small_block(&mut self, class: u64, requested: u64, source: &mut dyn Source) -> Option<u64> {
        let partial = self.partial.entry(class).or_default();
        let slab = if let Some(slab) = partial.first().copied() {
            slab
        } else {
            // On a device with large pages a slab is at least one of them.
            let size = slab_size(class).next_multiple_of(source.page());
            let address = self.extent(size, PAGE, size, source)?;
            self.slab_bytes += size;
            let blocks = u32::try_from(size / class).unwrap_or(u32::MAX);
            self.slabs.insert(
                address,
                Slab {
                    class,
                    free: (0..blocks).collect(),
                    blocks,
                },
            );
            self.partial.entry(class).or_default().insert(address);
            address
        };
        let blocks = self.slabs.get_mut(&slab).expect("a partial slab is there");
        let number = blocks.free.pop_first().expect("it has a free block");
        if blocks.free.is_empty()
            && let Some(partial) = self.partial.get_mut(&class)
        {
            partial.remove(&slab);
        }
        let address = slab + u64::from(number) * class;
        self.small.insert(
            address,
            SmallBlock {
                slab,
                number,
                requested,
            },
        );
        self.small_figures.in_use += requested;
        self.small_figures.padding += class - requested;
        Some(address)
    }

    fn end_small(&mut self, block: SmallBlock, now: u64) {
        let slab = self
            .slabs
            .get_mut(&block.slab)
            .expect("the block's slab is there");
        let class = slab.class;
        slab.free.insert(block.number);
        self.small_figures.in_use -= block.requested;
        self.small_figures.padding -= class - block.requested;
        let empty = slab.free.len() == slab.blocks as usize;
        let partial = self.partial.entry(class).or_default();
        partial.insert(block.slab);
        // The last slab of a class stays if it is the only one with room.
        if empty && partial.len() > 1 {
            partial.remove(&block.slab);
            self.slabs.remove(&block.slab);
            let ended = self.end_extent(block.slab, now);
            self.slab_bytes -= ended.unwrap_or(0);
        }
    }
}

impl Allocator for SlabAllocator {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        let out_of_memory = request.refused();
        self.purge(false, source);
        // A class that is a multiple of a power of two keeps its blocks aligned to it.
        let class = class_of(request.bytes).ok_or(out_of_memory)?;
        let is_small = class <= self.options.small.min(16 * PAGE)
            && class.is_multiple_of(request.alignment)
            && request.alignment <= PAGE;
        let address = if is_small {
            self.small_block(class, request.bytes, source)
        } else {
            let size = rounded(class, PAGE.max(source.page())).ok_or(out_of_memory)?;
            self.extent(size, request.alignment, request.bytes, source)
        };
        address.ok_or(out_of_memory)
    }

    fn free(&mut self, address: u64, source: &mut dyn Source) -> Result<u64, NotInUse> {
        let now = source.now();
        let requested = if let Some(block) = self.small.remove(&address) {
            self.end_small(block, now);
            block.requested
        } else if self.slabs.contains_key(&address) {
            // A slab's own first block is free: the extent is no user's.
            return Err(NotInUse { address });
        } else {
            self.end_extent(address, now)?
        };
        self.purge(false, source);
        Ok(requested)
    }

    /// Purges all free extents at once.
    fn trim(&mut self, source: &mut dyn Source) {
        let empty: Vec<u64> = self
            .slabs
            .iter()
            .filter(|(_, slab)| slab.free.len() == slab.blocks as usize)
            .map(|(address, _)| *address)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        for address in empty {
            if let Some(slab) = self.slabs.remove(&address) {
                if let Some(partial) = self.partial.get_mut(&slab.class) {
                    partial.remove(&address);
                }
                let ended = self.end_extent(address, source.now());
                self.slab_bytes -= ended.unwrap_or(0);
            }
        }
        self.purge(true, source);
    }

    fn figures(&self) -> MemoryFigures {
        let extents = self.pieces.figures();
        MemoryFigures {
            in_use: extents.in_use - self.slab_bytes + self.small_figures.in_use,
            padding: extents.padding + self.small_figures.padding,
            reserved: self.committed,
        }
    }

    fn largest_free(&self) -> u64 {
        self.dirty.largest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_four_classes_between_two_powers_of_two() {
        let classes = [
            1, 16, 17, 64, 65, 81, 128, 129, 160, 161, 1000, 1024, 1025, 14_337,
        ];
        let expected = [
            16, 16, 32, 64, 80, 96, 128, 160, 160, 192, 1024, 1024, 1280, 16_384,
        ];
        assert_eq!(classes.map(class_of), expected.map(Some));
        assert_eq!(class_of(u64::MAX), None);
    }

    #[test]
    fn a_slab_holds_whole_blocks() {
        assert_eq!(slab_size(16), 4096);
        assert_eq!(slab_size(48), 3 * 4096);
        assert_eq!(slab_size(80), 5 * 4096);
        assert_eq!(slab_size(4096), 4096);
        assert_eq!(slab_size(14 << 10), 7 * 4096);
    }
}
