//! Blocks of no plan: best fit over addresses, with memory behind the pages that blocks lie on.
//!
//! ```text
//! addresses  [ block | free            | block | free, no memory ...
//! pages      |###|###|###|   |   |###|###|      the inner pages of a gap are given back when memory is needed elsewhere
//! ```
//!
//! Addresses cost nothing, so a gap that nothing fits into costs its first and last page at most: where the heap would
//! have to take more than ever before, it first takes the memory of gaps. What is reserved is then what is in use, rounded
//! to pages, whatever the order of sizes.

use super::super::{
    BlockRequest, MemoryFigures, NotInUse, Source,
    pieces::{FreePieces, PieceId, Pieces},
};
use super::committed::CommittedPages;

const OWNER: u64 = 0;

/// A heap over a range of addresses.
#[derive(Debug)]
pub(super) struct PagedHeap {
    pieces: Pieces,
    free: FreePieces,
    pub(super) committed: CommittedPages,
    /// The addresses, and how many are in pieces.
    base: Option<u64>,
    length: u64,
    unit: u64,
    most: u64,
}

impl PagedHeap {
    /// A heap of `most` bytes of addresses, whose blocks are multiples of `unit`.
    pub(super) fn new(unit: u64, most: u64) -> Self {
        Self {
            pieces: Pieces::default(),
            free: FreePieces::default(),
            committed: CommittedPages::default(),
            base: None,
            length: 0,
            unit,
            most,
        }
    }

    /// In use and padding; what is reserved is what has memory.
    pub(super) const fn figures(&self) -> MemoryFigures {
        MemoryFigures {
            reserved: self.committed.bytes(),
            ..self.pieces.figures()
        }
    }

    pub(super) fn largest_free(&self) -> u64 {
        self.free.largest()
    }

    /// Chooses a place for a block of `size` bytes, a multiple of the unit; the pages behind it may have no memory.
    /// `None` where addresses are used up.
    pub(super) fn place(
        &mut self,
        size: u64,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Option<u64> {
        let mut found = self.find(size, request.alignment);
        if found.is_none() {
            let gap = if request.alignment > self.unit {
                request.alignment + self.unit
            } else {
                0
            };
            self.lengthen(size + gap, source)?;
            found = self.find(size, request.alignment);
        }
        let (id, gap) = found?;
        let id = self.free.take(&mut self.pieces, id, gap);
        if self.pieces.get(id).size > size {
            self.free.trim_to(&mut self.pieces, id, size);
        }
        Some(self.pieces.begin_use(id, request.bytes, OWNER))
    }

    /// The smallest piece that fits; the last one, behind which addresses have no end, only if no other does.
    fn find(&self, size: u64, alignment: u64) -> Option<(PieceId, u64)> {
        let last = self.pieces.last_of_first();
        let end = last.filter(|last| self.pieces.get(*last).is_free());
        self.free
            .find_before_end(&self.pieces, end, size, alignment, self.unit)
    }

    /// Addresses behind the last piece, so that the free end has `bytes`.
    fn lengthen(&mut self, bytes: u64, source: &mut dyn Source) -> Option<()> {
        let base = match self.base {
            Some(base) => base,
            None => *self.base.insert(source.reserve(self.most)?),
        };
        if self.length == 0 {
            if bytes > self.most {
                return None;
            }
            let id = self.pieces.add_chunk(base, bytes, OWNER);
            self.free.insert(&self.pieces, id);
            self.length = bytes;
            return Some(());
        }
        // There is one chunk, the first.
        let last = self.pieces.last_of_first()?;
        let is_free = self.pieces.get(last).is_free();
        let there = if is_free {
            self.pieces.get(last).size
        } else {
            0
        };
        let more = bytes.saturating_sub(there).max(self.unit);
        if more > self.most - self.length {
            return None;
        }
        let id = if is_free {
            self.free.remove(&self.pieces, last);
            self.pieces.grow(last, more);
            last
        } else {
            let chunk = self.pieces.get(last).chunk;
            self.pieces.append(chunk, more, OWNER)
        };
        self.free.insert(&self.pieces, id);
        self.length += more;
        Some(())
    }

    /// The block is not in use any more; returns what was asked for.
    pub(super) fn free(&mut self, address: u64) -> Result<u64, NotInUse> {
        let (id, requested) = self.pieces.end_use(address)?;
        self.free.release(&mut self.pieces, id);
        Ok(requested)
    }

    /// Takes memory of free pages back, of the largest gaps first, until so many bytes came back; returns how many did.
    pub(super) fn reclaim(&mut self, wanted: u64, source: &mut dyn Source) -> u64 {
        let page = source.page();
        let mut reclaimed = 0;
        let gaps: Vec<PieceId> = self.free.iter().rev().collect();
        for id in gaps {
            if reclaimed >= wanted {
                break;
            }
            let piece = self.pieces.get(id);
            let start = piece.address.next_multiple_of(page);
            let end = match piece.behind {
                Some(_) => piece.end() - piece.end() % page,
                // Nothing lies behind the last piece.
                None => piece.end().next_multiple_of(page),
            };
            if start >= end {
                continue;
            }
            let left = wanted.saturating_sub(reclaimed);
            reclaimed += self.committed.reclaim(start..end, left, source);
        }
        reclaimed
    }
}
