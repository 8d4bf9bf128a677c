//! The recurring part of a sequence of allocations.
//!
//! A training step or a run of a model allocates the same sizes in the same order each time. The finder compares each size
//! with the one a candidate period before it. When a whole period has been seen twice, it is known.

use std::collections::HashMap;

use crate::RecordedBlock;

/// Sizes in a row that must be equal before a distance is a candidate.
const ANCHOR: usize = 8;

/// The last steps, and the period they have.
#[derive(Debug)]
pub(super) struct PeriodFinder {
    /// A malloc is `None`, a free the number of its block, counted from the first malloc of all.
    steps: Vec<Option<u64>>,
    /// The step of each malloc in `steps`, and its size.
    mallocs: Vec<(usize, u64)>,
    /// The number of the first of `mallocs`.
    first: u64,
    /// By the hash of the last sizes: the number of the last of them.
    anchors: HashMap<u64, u64>,
    candidate: Option<u64>,
    /// Sizes in a row that were equal.
    equal: u64,
    /// The longest period that is found, in mallocs.
    most: usize,
    /// The length of the last period that was not kept to: it needs more repetitions.
    broken: Option<u64>,
}

/// A period that was seen twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundPeriod {
    /// Mallocs of a period.
    pub(super) length: u64,
    /// The number of the malloc with which the next period begins.
    pub(super) next: u64,
    /// By malloc of the period, in steps from its beginning; without an end where the block outlives the period.
    pub(super) blocks: Vec<RecordedBlock>,
}

impl PeriodFinder {
    pub(super) fn new(most: usize) -> Self {
        Self {
            steps: Vec::new(),
            mallocs: Vec::new(),
            first: 0,
            anchors: HashMap::new(),
            candidate: None,
            equal: 0,
            most: most.max(ANCHOR),
            broken: None,
        }
    }

    /// The number of the next malloc.
    pub(super) fn next_number(&self) -> u64 {
        self.first + self.mallocs.len() as u64
    }

    pub(super) fn freed(&mut self, number: u64) {
        self.steps.push(Some(number));
    }

    /// Sizes do not follow the period any more.
    pub(super) fn deviated(&mut self, length: u64) {
        self.broken = Some(length);
        self.candidate = None;
        self.equal = 0;
        // Nothing was told while the period was followed: what comes does not continue what was.
        self.anchors.clear();
        self.steps.clear();
        self.first += self.mallocs.len() as u64;
        self.mallocs.clear();
    }

    /// Another malloc. Returns the length of a period when it has just been seen twice.
    pub(super) fn allocated(&mut self, size: u64) -> Option<u64> {
        self.forget();
        self.mallocs.push((self.steps.len(), size));
        self.steps.push(None);
        let index = self.mallocs.len() - 1;
        if let Some(length) = self.candidate {
            let before = index.checked_sub(length as usize);
            if before.is_some_and(|before| self.mallocs[before].1 == size) {
                self.equal += 1;
                let again = if self.broken == Some(length) { 4 } else { 1 };
                return (self.equal == again * length).then_some(length);
            }
            self.candidate = None;
            self.equal = 0;
        }
        self.look_back(index);
        None
    }

    /// A candidate: the distance to the last place with the same sizes.
    fn look_back(&mut self, index: usize) {
        if index + 1 < ANCHOR {
            return;
        }
        let last = &self.mallocs[index + 1 - ANCHOR..=index];
        let hash = last.iter().fold(0_u64, |hash, (_, size)| {
            (hash.rotate_left(7) ^ size).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        });
        let number = self.first + index as u64;
        let Some(before) = self.anchors.insert(hash, number) else {
            return;
        };
        let Some(other) = before.checked_sub(self.first).map(|other| other as usize) else {
            return;
        };
        let is_whole = other + 1 >= ANCHOR && index - other <= self.most;
        let sizes = |end: usize| {
            self.mallocs[end + 1 - ANCHOR..=end]
                .iter()
                .map(|(_, size)| size)
        };
        if is_whole && sizes(other).eq(sizes(index)) {
            self.candidate = Some(number - before);
            self.equal = ANCHOR as u64;
        }
    }

    /// Keeps the history within its bounds.
    fn forget(&mut self) {
        if self.mallocs.len() < 4 * self.most {
            return;
        }
        let gone = self.mallocs.len() / 2;
        let steps = self.mallocs[gone].0;
        self.steps.drain(..steps);
        self.mallocs.drain(..gone);
        for (step, _) in &mut self.mallocs {
            *step -= steps;
        }
        self.first += gone as u64;
        let first = self.first;
        self.anchors.retain(|_, number| *number >= first);
    }

    /// The last whole period of this length, begun where the fewest bytes live across its beginning.
    pub(super) fn period(&self, length: u64) -> Option<FoundPeriod> {
        let length_here = usize::try_from(length).ok()?;
        let from = self.mallocs.len().checked_sub(2 * length_here)?;
        let begin = |index: usize| self.mallocs[index].0;
        let mut ends = self.ends(from);
        // Steps of a period. The second one has just made its last malloc: what it will free is what the first one did.
        let steps = begin(from + length_here) - begin(from);
        for offset in 0..length_here {
            if let (Some(end), None) = (ends[offset], ends[offset + length_here]) {
                ends[offset + length_here] = Some(end + steps);
            }
        }
        // Bytes across the beginning of each malloc: those of blocks that began before it and end behind it.
        let mut across = vec![0_i128; 2 * length_here + 1];
        for (offset, end) in ends.iter().enumerate() {
            let index = from + offset;
            let (_, size) = self.mallocs[index];
            let Some(end) = end else { continue };
            let until = self.mallocs.partition_point(|(step, _)| step <= end) - from;
            across[offset + 1] += i128::from(size);
            across[until.min(2 * length_here)] -= i128::from(size);
        }
        let mut live = 0;
        let mut best = (i128::MAX, 0);
        for (offset, change) in across.iter().take(length_here + 1).enumerate() {
            live += change;
            // The first period has not all blocks of the one before it.
            if offset > 0 && live < best.0 {
                best = (live, offset);
            }
        }
        let start = from + best.1;
        let next_begin = begin(start) + steps;
        let blocks = (start..start + length_here)
            .map(|index| {
                let (step, size) = self.mallocs[index];
                let end = ends[index - from].filter(|end| *end < next_begin);
                let relative = |step: usize| (step - begin(start)) as u64;
                RecordedBlock {
                    size,
                    start: relative(step),
                    end: end.map(relative),
                }
            })
            .collect();
        let start = self.first + start as u64;
        let behind = self.next_number().saturating_sub(start);
        Some(FoundPeriod {
            length,
            next: start + behind.div_ceil(length) * length,
            blocks,
        })
    }

    /// By malloc from `from` on: the step that frees its block.
    fn ends(&self, from: usize) -> Vec<Option<usize>> {
        let mut ends = vec![None; self.mallocs.len() - from];
        let first = self.first + from as u64;
        for (step, what) in self.steps.iter().enumerate().skip(self.mallocs[from].0) {
            if let Some(number) = what
                && let Some(offset) = number.checked_sub(first)
                && let Some(end) = ends.get_mut(offset as usize)
            {
                *end = Some(step);
            }
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the steps: sizes are mallocs, and a negative number frees the block that many mallocs ago.
    fn run(finder: &mut PeriodFinder, steps: &[i64]) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        for step in steps {
            match u64::try_from(*step) {
                Ok(size) => {
                    let number = finder.next_number();
                    found.extend(finder.allocated(size).map(|length| (number, length)));
                }
                Err(_) => finder.freed(finder.next_number() - step.unsigned_abs()),
            }
        }
        found
    }

    #[test]
    fn a_period_is_known_when_it_was_seen_twice() {
        let mut finder = PeriodFinder::new(100);
        assert_eq!(run(&mut finder, &[7, 8, 9]), []);
        let period: Vec<i64> = (10..22).collect();
        assert_eq!(run(&mut finder, &period), []);
        // The last of the second one has number 3 + 2 * 12 - 1.
        assert_eq!(run(&mut finder, &period), [(26, 12)]);
        assert_eq!(run(&mut finder, &period), []);
    }

    #[test]
    fn a_period_begins_where_least_is_live() {
        let mut finder = PeriodFinder::new(100);
        // The first block lives to the end, and the second one nearly.
        let period = [
            50, 1000, 60, -1, 61, -1, 62, -1, 63, -1, 64, -1, 65, -1, 66, -1, -8, 67, -1, -10,
        ];
        run(&mut finder, &period);
        let found = run(&mut finder, &period);
        assert_eq!(found, [(19, 10)]);
        let period = finder.period(10).expect("a period");
        assert_eq!((period.length, period.next), (10, 20));
        let sizes: Vec<u64> = period.blocks.iter().map(|block| block.size).collect();
        assert_eq!(sizes[..3], [50, 1000, 60]);
        assert!(
            period.blocks.iter().all(|block| block.end.is_some()),
            "{period:?}"
        );
    }

    #[test]
    fn what_a_period_frees_after_its_last_malloc_is_known_from_the_one_before() {
        let mut finder = PeriodFinder::new(100);
        // The last two blocks are freed when the next period has not begun.
        let first = [
            10, 11, -1, 12, 13, -1, 14, 15, -1, 16, 17, -1, 18, 19, -1, -2, -4, -6, -8, -10,
        ];
        run(&mut finder, &first);
        let mallocs_of_second = first.len() - 6;
        let found = run(&mut finder, &first[..mallocs_of_second]);
        assert_eq!(found, [(19, 10)]);
        let period = finder.period(10).expect("a period");
        assert_eq!(period.next, 20);
        assert!(
            period.blocks.iter().all(|block| block.end.is_some()),
            "{period:?}"
        );
    }

    #[test]
    fn the_history_is_bounded() {
        let mut finder = PeriodFinder::new(8);
        for size in 0..10_000 {
            finder.allocated(size);
            finder.freed(size);
        }
        assert!(finder.mallocs.len() <= 32 && finder.anchors.len() <= 32);
        assert_eq!(finder.next_number(), 10_000);
    }
}
