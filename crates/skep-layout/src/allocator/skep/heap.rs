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

use std::{collections::BTreeMap, ops::Range};

use super::super::{
    BlockRequest, MemoryFigures, NotInUse, Source,
    pieces::{FreePieces, PieceId, Pieces},
};

const OWNER: u64 = 0;

/// Ranges of pages that have memory; no two touch.
#[derive(Debug, Default)]
struct CommittedPages {
    ranges: BTreeMap<u64, u64>,
    bytes: u64,
}

impl CommittedPages {
    /// The parts of `range` that have memory, or that have none.
    fn parts(&self, range: Range<u64>, with_memory: bool) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        let mut at = range.start;
        let first = self.ranges.range(..=range.start).next_back();
        let rest = self.ranges.range(range.start..range.end);
        let first = first.filter(|(start, _)| **start < range.start);
        for (start, end) in first.into_iter().chain(rest) {
            let (start, end) = ((*start).max(range.start), (*end).min(range.end));
            if start >= end {
                continue;
            }
            if !with_memory && at < start {
                parts.push(at..start);
            }
            if with_memory {
                parts.push(start..end);
            }
            at = end;
        }
        if !with_memory && at < range.end {
            parts.push(at..range.end);
        }
        parts
    }

    fn insert(&mut self, range: Range<u64>) {
        self.bytes += range.end - range.start;
        let (mut start, mut end) = (range.start, range.end);
        if let Some((before, until)) = self.ranges.range(..start).next_back()
            && *until == start
        {
            start = *before;
        }
        if let Some(until) = self.ranges.remove(&end) {
            end = until;
        }
        self.ranges.insert(start, end);
    }

    /// Removes a range that has memory.
    fn remove(&mut self, range: Range<u64>) {
        let found = self.ranges.range(..=range.start).next_back();
        let Some((start, end)) = found.map(|(start, end)| (*start, *end)) else {
            return;
        };
        self.bytes -= range.end - range.start;
        self.ranges.remove(&start);
        if start < range.start {
            self.ranges.insert(start, range.start);
        }
        if range.end < end {
            self.ranges.insert(range.end, end);
        }
    }
}

/// A heap over a range of addresses.
#[derive(Debug)]
pub(super) struct PagedHeap {
    pieces: Pieces,
    free: FreePieces,
    committed: CommittedPages,
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
            reserved: self.committed.bytes,
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
        let mut found = self
            .free
            .find(&self.pieces, size, request.alignment, self.unit);
        if found.is_none() {
            let gap = if request.alignment > self.unit {
                request.alignment + self.unit
            } else {
                0
            };
            self.lengthen(size + gap, source)?;
            found = self
                .free
                .find(&self.pieces, size, request.alignment, self.unit);
        }
        let (id, gap) = found?;
        let id = self.free.take(&mut self.pieces, id, gap);
        if self.pieces.get(id).size > size {
            self.free.trim_to(&mut self.pieces, id, size);
        }
        Some(self.pieces.begin_use(id, request.bytes, OWNER))
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

    /// The pages that a block lies on and that have no memory, and how many bytes they are.
    pub(super) fn missing(&self, address: u64, size: u64, page: u64) -> (Vec<Range<u64>>, u64) {
        let pages = address - address % page..(address + size).next_multiple_of(page);
        let missing = self.committed.parts(pages, false);
        let bytes = missing.iter().map(|part| part.end - part.start).sum();
        (missing, bytes)
    }

    /// Puts memory behind pages; false where the source refuses, and then none of them has any.
    pub(super) fn commit(&mut self, pages: &[Range<u64>], source: &mut dyn Source) -> bool {
        for (number, part) in pages.iter().enumerate() {
            if !source.commit(part.clone()) {
                for part in &pages[..number] {
                    source.decommit(part.clone());
                    self.committed.remove(part.clone());
                }
                return false;
            }
            self.committed.insert(part.clone());
        }
        true
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
            for part in self.committed.parts(start..end, true) {
                let left = wanted.saturating_sub(reclaimed);
                if left == 0 {
                    break;
                }
                let most = part.end - part.start;
                let length = left.min(most).next_multiple_of(page);
                // The end of a gap is used last.
                let part = part.end - length..part.end;
                source.decommit(part.clone());
                self.committed.remove(part);
                reclaimed += length;
            }
        }
        reclaimed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_pages_join_and_part() {
        let mut pages = CommittedPages::default();
        pages.insert(10..20);
        pages.insert(30..40);
        assert_eq!(pages.parts(5..45, false), [5..10, 20..30, 40..45]);
        assert_eq!(pages.parts(15..35, true), [15..20, 30..35]);
        pages.insert(20..30);
        assert_eq!((pages.ranges.len(), pages.bytes), (1, 30));
        pages.remove(12..14);
        assert_eq!(
            pages.parts(10..20, false),
            vec![Range { start: 12, end: 14 }]
        );
        assert_eq!(pages.parts(12..14, true), []);
        assert_eq!(pages.bytes, 28);
    }
}
