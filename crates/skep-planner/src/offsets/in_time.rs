//! Placement in the order of time, as an allocator sees it: without knowledge of later buffers.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    plan::OffsetPlan,
    problem::{Buffer, Problem},
};

/// Plays the run: each buffer takes the smallest gap between those that are live (the lowest of several, and the room
/// behind the last where none holds it), and leaves a gap when it ends. Everything lies above what is fixed.
///
/// Without fixed buffers this is what ONNX Runtime's memory pattern does with a recorded run. It takes `n log n` steps,
/// so that even a million buffers have a plan in a moment.
pub fn in_time(problem: &Problem) -> OffsetPlan {
    let buffers = problem.buffers();
    let mut offsets: Vec<u64> = buffers
        .iter()
        .map(|buffer| buffer.fixed.unwrap_or(0))
        .collect();
    let base = problem
        .sized()
        .filter_map(|buffer| Some(buffers[buffer].fixed? + buffers[buffer].size))
        .max()
        .unwrap_or(0);
    // Ends before starts at one step, both in the order of numbers.
    let mut events: Vec<(u64, bool, usize)> = problem
        .sized()
        .filter(|&buffer| buffers[buffer].fixed.is_none())
        .flat_map(|buffer| {
            let Buffer { start, end, .. } = buffers[buffer];
            [(start, true, buffer), (end, false, buffer)]
        })
        .collect();
    events.sort_unstable();
    let mut gaps = Gaps::from(base);
    for (_, starts, buffer) in events {
        let Buffer {
            size, alignment, ..
        } = buffers[buffer];
        if starts {
            offsets[buffer] = gaps.take(size, alignment);
        } else {
            gaps.give_back(offsets[buffer], size);
        }
    }
    OffsetPlan::new(problem, offsets)
}

/// Gaps by where they begin and by how long they are; the last one has no end.
struct Gaps {
    by_offset: BTreeMap<u64, u64>,
    by_length: BTreeSet<(u64, u64)>,
}

impl Gaps {
    fn from(base: u64) -> Self {
        let mut gaps = Self {
            by_offset: BTreeMap::new(),
            by_length: BTreeSet::new(),
        };
        gaps.add(base, u64::MAX);
        gaps
    }

    fn add(&mut self, offset: u64, end: u64) {
        if offset < end {
            self.by_offset.insert(offset, end);
            self.by_length.insert((end - offset, offset));
        }
    }

    fn remove(&mut self, offset: u64, end: u64) {
        self.by_offset.remove(&offset);
        self.by_length.remove(&(end - offset, offset));
    }

    fn take(&mut self, size: u64, alignment: u64) -> u64 {
        let (length, gap) = *self
            .by_length
            .range((size, 0)..)
            .find(|(length, gap)| gap.next_multiple_of(alignment) - gap <= length - size)
            .expect("the last gap has no end");
        let end = gap + length;
        let offset = gap.next_multiple_of(alignment);
        self.remove(gap, end);
        self.add(gap, offset);
        self.add(offset + size, end);
        offset
    }

    fn give_back(&mut self, offset: u64, size: u64) {
        let (mut start, mut end) = (offset, offset + size);
        if let Some((&before, &before_end)) = self.by_offset.range(..start).next_back()
            && before_end == start
        {
            self.remove(before, before_end);
            start = before;
        }
        if let Some(&after_end) = self.by_offset.get(&end) {
            self.remove(end, after_end);
            end = after_end;
        }
        self.add(start, end);
    }
}
