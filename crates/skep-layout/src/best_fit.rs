//! A dynamic layout: the smallest gap that is large enough, at its lowest offset, in the first chunk that has one.
//!
//! It serves runs without a plan, whose memory goes back to the system as a whole when they end.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ALIGNMENT, BlockLayout, BlockPlace, FreedBlock, Placement};

/// The smallest chunk that is asked for: address space comes in such pieces; only pages that are written take memory.
const CHUNK_BYTES: u64 = 64 << 20;

/// Blocks of this size and more give their pages back when they are freed: a run then takes hardly more than its blocks
/// in use, at the price of new pages for the next blocks. Gaps that no later block fits into would keep their pages
/// otherwise.
const RELEASED_BYTES: u64 = 1 << 18;

/// Best fit in chunks that are added as they are needed.
#[derive(Debug, Default)]
pub struct BestFit {
    chunks: Vec<Chunk>,
}

impl BestFit {
    /// A layout without chunks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl BlockLayout for BestFit {
    fn malloc(&mut self, size: u64) -> Placement {
        let Some(taken) = size.checked_next_multiple_of(ALIGNMENT) else {
            return Placement::Elsewhere;
        };
        let mut chunks = self.chunks.iter_mut().enumerate();
        let place = chunks.find_map(|(chunk, gaps)| {
            let offset = gaps.malloc(size, taken)?;
            Some(BlockPlace { chunk, offset })
        });
        place.map_or(Placement::Grow(taken.max(CHUNK_BYTES)), Placement::At)
    }

    fn add_chunk(&mut self, length: u64) -> usize {
        // Blocks end at multiples of the alignment.
        self.chunks.push(Chunk::new(length - length % ALIGNMENT));
        self.chunks.len() - 1
    }

    fn free(&mut self, place: BlockPlace) -> Option<FreedBlock> {
        let size = self.chunks.get_mut(place.chunk)?.free(place.offset)?;
        let end = if size >= RELEASED_BYTES { size } else { 0 };
        Some(FreedBlock {
            size,
            released: place.offset..place.offset + end,
        })
    }

    fn blocks(&self, chunk: usize) -> Vec<(u64, u64)> {
        let blocks = self.chunks.get(chunk).map(|chunk| &chunk.blocks);
        let blocks = blocks.into_iter().flatten();
        blocks.map(|(at, size)| (*at, *size)).collect()
    }

    fn in_use(&self, chunk: usize) -> bool {
        let chunk = self.chunks.get(chunk);
        chunk.is_some_and(|chunk| !chunk.blocks.is_empty())
    }
}

/// The gaps and blocks of one chunk.
#[derive(Debug)]
struct Chunk {
    /// Gaps by offset, and by size; no two touch.
    gaps: BTreeMap<u64, u64>,
    by_size: BTreeSet<(u64, u64)>,
    /// The sizes of blocks in use, as users asked for them, by offset.
    blocks: BTreeMap<u64, u64>,
}

impl Chunk {
    /// `length` bytes, a multiple of [`ALIGNMENT`], all free.
    fn new(length: u64) -> Self {
        let mut chunk = Self {
            gaps: BTreeMap::new(),
            by_size: BTreeSet::new(),
            blocks: BTreeMap::new(),
        };
        chunk.add_gap(0, length);
        chunk
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

    /// Room for `size` bytes, which take up `taken`; `None` if no gap is large enough.
    fn malloc(&mut self, size: u64, taken: u64) -> Option<u64> {
        let (length, offset) = *self.by_size.range((taken, 0)..).next()?;
        self.remove_gap(offset, length);
        self.add_gap(offset + taken, length - taken);
        self.blocks.insert(offset, size);
        Some(offset)
    }

    /// Frees the block at `offset` and returns its size; `None` when none is in use there.
    fn free(&mut self, offset: u64) -> Option<u64> {
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
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conformance::follow;

    fn at(chunk: usize, offset: u64) -> Placement {
        Placement::At(BlockPlace { chunk, offset })
    }

    /// The size of the block at `offset` of the only chunk.
    fn free(layout: &mut BestFit, offset: u64) -> Option<u64> {
        let freed = layout.free(BlockPlace { chunk: 0, offset })?;
        Some(freed.size)
    }

    #[test]
    fn the_smallest_gap_that_is_large_enough() {
        let mut layout = BestFit::new();
        layout.add_chunk(1024);
        let places = [64, 200, 64, 100, 64].map(|size| layout.malloc(size));
        assert_eq!(places, [0, 64, 320, 384, 512].map(|offset| at(0, offset)));
        assert_eq!(
            (free(&mut layout, 64), free(&mut layout, 384)),
            (Some(200), Some(100))
        );
        // Gaps of 256 at 64, of 128 at 384, of 448 at 576.
        assert_eq!(layout.malloc(65), at(0, 384));
        assert_eq!(layout.malloc(129), at(0, 64));
        assert_eq!(layout.malloc(449), Placement::Grow(CHUNK_BYTES));
        assert_eq!(layout.malloc(448), at(0, 576));
        assert_eq!(free(&mut layout, 1), None);
    }

    #[test]
    fn it_grows_by_chunks() {
        let mut layout = BestFit::new();
        assert_eq!(layout.malloc(100), Placement::Grow(CHUNK_BYTES));
        assert_eq!(layout.add_chunk(CHUNK_BYTES), 0);
        assert_eq!(layout.malloc(100), at(0, 0));
        let large = CHUNK_BYTES + 1;
        assert_eq!(layout.malloc(large), Placement::Grow(CHUNK_BYTES + 64));
        assert_eq!(
            layout.refused(large, CHUNK_BYTES + 64),
            Placement::Elsewhere
        );
        // A source may give more than it was asked for, and no multiple of the alignment.
        assert_eq!(layout.add_chunk(CHUNK_BYTES + 200), 1);
        assert_eq!(layout.malloc(large), at(1, 0));
        assert_eq!(layout.malloc(200), at(0, 128), "the first chunk with room");
        assert_eq!(layout.malloc(u64::MAX), Placement::Elsewhere);
        assert_eq!(layout.blocks(0), [(0, 100), (128, 200)]);
        assert!(layout.in_use(1) && !layout.in_use(2));
    }

    #[test]
    fn large_blocks_release_their_bytes() {
        let mut layout = BestFit::new();
        layout.add_chunk(CHUNK_BYTES);
        for (size, released) in [
            (RELEASED_BYTES, 0..RELEASED_BYTES),
            (RELEASED_BYTES - 1, 0..0),
        ] {
            assert_eq!(layout.malloc(size), at(0, 0));
            let freed = layout.free(BlockPlace {
                chunk: 0,
                offset: 0,
            });
            assert_eq!(freed, Some(FreedBlock { size, released }));
        }
    }

    proptest! {
        #[test]
        fn blocks_are_disjoint_and_everything_returns(
            steps in proptest::collection::vec((1_u64..5000, any::<prop::sample::Index>(), any::<bool>()), 0..200),
        ) {
            const LENGTH: u64 = 64 << 10;
            let mut layout = BestFit::new();
            layout.add_chunk(LENGTH);
            follow(&mut layout, &[LENGTH], &steps)?;
            prop_assert_eq!(layout.malloc(LENGTH), at(0, 0), "one gap again");
        }
    }

    #[test]
    fn a_chunk_is_used_in_whole_units_of_the_alignment() {
        let mut layout = BestFit::new();
        assert_eq!(layout.add_chunk(ALIGNMENT + 36), 0);
        let place = BlockPlace {
            chunk: 0,
            offset: 0,
        };
        assert_eq!(layout.malloc(ALIGNMENT), Placement::At(place));
        assert_eq!(layout.malloc(1), Placement::Grow(CHUNK_BYTES));
    }

    #[test]
    fn a_full_chunk_has_no_gap() {
        let mut chunk = Chunk::new(ALIGNMENT);
        assert_eq!(chunk.malloc(1, ALIGNMENT), Some(0));
        assert!(chunk.gaps.is_empty() && chunk.by_size.is_empty());
    }
}
