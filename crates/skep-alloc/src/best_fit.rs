//! A dynamic layout: the smallest gap that is large enough, at its lowest offset. Pure, in offsets.
//!
//! It serves runs that nobody has planned yet, whose memory goes back to the system as a whole when they end.

use std::collections::{BTreeMap, BTreeSet};

use crate::ALIGNMENT;

/// Blocks in one region.
#[derive(Debug)]
pub(crate) struct BestFit {
    /// Gaps by offset, and by size; no two of them touch.
    gaps: BTreeMap<u64, u64>,
    by_size: BTreeSet<(u64, u64)>,
    /// Blocks in use: what was asked for, by offset.
    blocks: BTreeMap<u64, u64>,
}

impl BestFit {
    /// `length` bytes, a multiple of [`ALIGNMENT`], all free.
    pub(crate) fn new(length: u64) -> Self {
        let mut layout = Self {
            gaps: BTreeMap::new(),
            by_size: BTreeSet::new(),
            blocks: BTreeMap::new(),
        };
        layout.add_gap(0, length);
        layout
    }

    fn add_gap(&mut self, offset: u64, length: u64) {
        if length > 0 {
            self.gaps.insert(offset, length);
            self.by_size.insert((length, offset));
        }
    }

    fn remove_gap(&mut self, offset: u64, length: u64) {
        self.gaps.remove(&offset);
        self.by_size.remove(&(length, offset));
    }

    /// Room for `size` bytes, which are not 0; `None` if no gap is large enough.
    pub(crate) fn malloc(&mut self, size: u64) -> Option<u64> {
        let taken = size.checked_next_multiple_of(ALIGNMENT)?;
        let (length, offset) = *self.by_size.range((taken, 0)..).next()?;
        self.remove_gap(offset, length);
        self.add_gap(offset + taken, length - taken);
        self.blocks.insert(offset, size);
        Some(offset)
    }

    /// Frees the block at `offset` and says its size; `None` when none is in use there.
    pub(crate) fn free(&mut self, offset: u64) -> Option<u64> {
        let size = self.blocks.remove(&offset)?;
        let (mut start, mut end) = (offset, offset + size.next_multiple_of(ALIGNMENT));
        let below = self.gaps.range(..start).next_back();
        if let Some((at, length)) = below.map(|(at, length)| (*at, *length))
            && at + length == start
        {
            self.remove_gap(at, length);
            start = at;
        }
        if let Some(length) = self.gaps.get(&end).copied() {
            self.remove_gap(end, length);
            end += length;
        }
        self.add_gap(start, end - start);
        Some(size)
    }

    /// Offset and size of each block in use, in order of address.
    pub(crate) fn blocks(&self) -> Vec<(u64, u64)> {
        self.blocks.iter().map(|(at, size)| (*at, *size)).collect()
    }

    /// Whether a block is in use.
    pub(crate) fn in_use(&self) -> bool {
        !self.blocks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_smallest_gap_that_is_large_enough() {
        let mut layout = BestFit::new(1024);
        let at: Vec<_> = [64, 200, 64, 100, 64]
            .iter()
            .map(|size| layout.malloc(*size))
            .collect();
        assert_eq!(at, [Some(0), Some(64), Some(320), Some(384), Some(512)]);
        assert_eq!((layout.free(64), layout.free(384)), (Some(200), Some(100)));
        // Gaps of 256 at 64, of 128 at 384, of 448 at 576.
        assert_eq!(layout.malloc(65), Some(384));
        assert_eq!(layout.malloc(129), Some(64));
        assert_eq!(layout.malloc(449), None);
        assert_eq!(layout.malloc(448), Some(576));
        assert_eq!(layout.free(1), None);
    }

    proptest! {
        #[test]
        fn blocks_are_disjoint_and_everything_returns(
            steps in proptest::collection::vec((1_u64..5000, any::<prop::sample::Index>(), any::<bool>()), 0..200),
        ) {
            const LENGTH: u64 = 64 << 10;
            let mut layout = BestFit::new(LENGTH);
            let mut live: Vec<(u64, u64)> = Vec::new();
            for (size, which, free) in steps {
                if free && !live.is_empty() {
                    let (offset, size) = live.swap_remove(which.index(live.len()));
                    prop_assert_eq!(layout.free(offset), Some(size));
                } else if let Some(offset) = layout.malloc(size) {
                    prop_assert!(offset % ALIGNMENT == 0 && offset + size <= LENGTH);
                    prop_assert!(live.iter().all(|(o, s)| offset + size <= *o || o + s <= offset));
                    live.push((offset, size));
                }
            }
            prop_assert_eq!(layout.in_use(), !live.is_empty());
            for (offset, size) in live {
                prop_assert_eq!(layout.free(offset), Some(size));
            }
            prop_assert_eq!(layout.malloc(LENGTH), Some(0), "one gap again");
        }
    }
}
