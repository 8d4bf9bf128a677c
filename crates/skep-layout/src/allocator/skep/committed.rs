//! Pages that have memory.

use std::{collections::BTreeMap, ops::Range};

use super::super::Source;

/// Ranges of pages that have memory; no two touch.
#[derive(Debug, Default)]
pub(super) struct CommittedPages {
    ranges: BTreeMap<u64, u64>,
    bytes: u64,
}

impl CommittedPages {
    /// Bytes with memory.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The pages that a block lies on and that have no memory, and how many bytes they are.
    pub(super) fn missing(&self, address: u64, size: u64, page: u64) -> (Vec<Range<u64>>, u64) {
        let pages = address - address % page..(address + size).next_multiple_of(page);
        let missing = self.parts(pages, false);
        let bytes = missing.iter().map(|part| part.end - part.start).sum();
        (missing, bytes)
    }

    /// Puts memory behind pages; false where the source refuses, and then none of them has any.
    pub(super) fn commit(&mut self, pages: &[Range<u64>], source: &mut dyn Source) -> bool {
        for (number, part) in pages.iter().enumerate() {
            if !source.commit(part.clone()) {
                for part in &pages[..number] {
                    source.decommit(part.clone());
                    self.remove(part.clone());
                }
                return false;
            }
            self.insert(part.clone());
        }
        true
    }

    /// Takes memory back within these pages, the last ones first, until so many bytes came back; returns how many did.
    pub(super) fn reclaim(
        &mut self,
        pages: Range<u64>,
        wanted: u64,
        source: &mut dyn Source,
    ) -> u64 {
        let page = source.page();
        let mut reclaimed = 0;
        for part in self.parts(pages, true).into_iter().rev() {
            let left = wanted.saturating_sub(reclaimed);
            if left == 0 {
                break;
            }
            let length = left.min(part.end - part.start).next_multiple_of(page);
            // The end of a gap is used last.
            let part = part.end - length..part.end;
            source.decommit(part.clone());
            self.remove(part);
            reclaimed += length;
        }
        reclaimed
    }

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
