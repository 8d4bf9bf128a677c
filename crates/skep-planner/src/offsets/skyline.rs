//! Placement from the bottom up: the lowest part of the skyline takes the buffer that fits into it best.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::{
    budget::{Budget, WorkMeter},
    plan::OffsetPlan,
    problem::Problem,
};

/// Buffers that are looked at for one part of the skyline: enough to find a good one, few enough to be quick.
const CANDIDATES: usize = 1 << 10;
/// What finding the next open buffer takes, in entries looked at.
const STEPS_A_CANDIDATE: usize = 4;

/// What an idle section beside a buffer costs, in sections for which it is live: different problems want different
/// ones.
pub(crate) const IDLE_COSTS: [u32; 5] = [2, 1, 4, 16, 8];

/// Fills the lowest part of the skyline, the leftmost of several, again and again. Of the first open buffers that fit
/// into it, it takes the one that is live longest; a section that it leaves idle on its narrower side costs
/// `idle_cost`. Where none fits, the part rises to its lower neighbour.
///
/// No buffer may be fixed. It takes `n log n` steps, and next to dense problems with tens of thousands of buffers
/// comes nearer to the load than any order of placement. `None` if the caller stopped it.
pub(crate) fn skyline(
    problem: &Problem,
    idle_cost: u32,
    budget: &Budget<'_>,
) -> Option<OffsetPlan> {
    let mut open = OpenBuffers::new(problem);
    let mut skyline = Skyline::new(problem.timeline().sections());
    let mut offsets = vec![0; problem.len()];
    let mut meter = WorkMeter::new(budget.should_stop);
    while open.left > 0 {
        let Some(part) = skyline.lowest() else {
            break;
        };
        let (found, looked_at) = open.best(part, idle_cost, problem);
        if meter.spend(STEPS_A_CANDIDATE * (looked_at + 1)) {
            return None;
        }
        let Some(found) = found else {
            skyline.rise(part);
            continue;
        };
        let buffer = open.take(found);
        let span = problem.span(buffer);
        let own = problem.buffers()[buffer];
        offsets[buffer] = part.height.next_multiple_of(own.alignment);
        let taken = Part {
            start: span.start,
            end: span.end,
            height: offsets[buffer] + own.size,
        };
        skyline.cover(part, taken);
    }
    Some(OffsetPlan::new(problem, offsets))
}

/// Sections with one height.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Part {
    start: u32,
    end: u32,
    height: u64,
}

/// The buffers without a place, by their start.
struct OpenBuffers {
    by_start: Vec<usize>,
    /// For each section, how many buffers start before it.
    started: Vec<usize>,
    /// For each position, itself if it is open; otherwise one further on, up to the next open one.
    next: Vec<usize>,
    left: usize,
}

impl OpenBuffers {
    fn new(problem: &Problem) -> Self {
        let mut by_start: Vec<usize> = problem.sized().collect();
        by_start.sort_by_key(|&buffer| {
            (
                problem.span(buffer).start,
                Reverse(problem.span(buffer).end),
            )
        });
        let mut started = vec![0; problem.timeline().sections() + 1];
        for &buffer in &by_start {
            started[problem.span(buffer).start as usize + 1] += 1;
        }
        for section in 1..started.len() {
            started[section] += started[section - 1];
        }
        Self {
            next: (0..=by_start.len()).collect(),
            left: by_start.len(),
            by_start,
            started,
        }
    }

    /// The first open position from `position` on.
    fn open_from(&mut self, position: usize) -> usize {
        let mut found = position;
        while self.next[found] != found {
            found = self.next[found];
        }
        let mut passed = position;
        while self.next[passed] != found {
            passed = std::mem::replace(&mut self.next[passed], found);
        }
        found
    }

    /// The position of the best buffer for a part, and how many were looked at.
    fn best(&mut self, part: Part, idle_cost: u32, problem: &Problem) -> (Option<usize>, usize) {
        let last = self.started[part.end as usize];
        let mut position = self.open_from(self.started[part.start as usize]);
        let mut best: Option<(i64, usize)> = None;
        let mut looked_at = 0;
        while position < last && looked_at < CANDIDATES {
            looked_at += 1;
            let span = problem.span(self.by_start[position]);
            if span.end <= part.end {
                let idle = (span.start - part.start).min(part.end - span.end);
                let score =
                    i64::from(span.end - span.start) - i64::from(idle_cost) * i64::from(idle);
                if best.is_none_or(|(highest, _)| score > highest) {
                    best = Some((score, position));
                }
            }
            position = self.open_from(position + 1);
        }
        (best.map(|(_, position)| position), looked_at)
    }

    fn take(&mut self, position: usize) -> usize {
        self.next[position] = position + 1;
        self.left -= 1;
        self.by_start[position]
    }
}

/// The parts from left to right; neighbours differ in height.
struct Skyline {
    /// Of the part that begins at a section: its end and height.
    parts: Vec<Option<(u32, u64)>>,
    /// Where the part begins that ends at a section.
    before: Vec<u32>,
    /// Lowest first, and those that no longer exist.
    by_height: BinaryHeap<Reverse<(u64, u32, u32)>>,
}

impl Skyline {
    fn new(sections: usize) -> Self {
        let end = u32::try_from(sections).expect("fewer than 2^32 sections");
        let mut skyline = Self {
            parts: vec![None; sections + 1],
            before: vec![0; sections + 1],
            by_height: BinaryHeap::new(),
        };
        skyline.insert(Part {
            start: 0,
            end,
            height: 0,
        });
        skyline
    }

    fn insert(&mut self, part: Part) {
        self.parts[part.start as usize] = Some((part.end, part.height));
        self.before[part.end as usize] = part.start;
        self.by_height
            .push(Reverse((part.height, part.start, part.end)));
    }

    /// The lowest part, which is no longer the next one.
    fn lowest(&mut self) -> Option<Part> {
        while let Some(Reverse((height, start, end))) = self.by_height.pop() {
            if self.parts[start as usize] == Some((end, height)) {
                return Some(Part { start, end, height });
            }
        }
        None
    }

    fn left_of(&self, part: Part) -> Option<Part> {
        let start = *self
            .before
            .get(part.start as usize)
            .filter(|_| part.start > 0)?;
        let (end, height) = self.parts[start as usize]?;
        Some(Part { start, end, height })
    }

    fn right_of(&self, part: Part) -> Option<Part> {
        let (end, height) = (*self.parts.get(part.end as usize)?)?;
        let start = part.end;
        Some(Part { start, end, height })
    }

    /// Raises a part to its lower neighbour.
    fn rise(&mut self, part: Part) {
        let heights = [self.left_of(part), self.right_of(part)];
        let lower = heights.into_iter().flatten().map(|part| part.height).min();
        if let Some(height) = lower {
            self.parts[part.start as usize] = None;
            self.join(Part { height, ..part });
        }
    }

    /// Puts `taken` on top of `part`, which contains it.
    fn cover(&mut self, part: Part, taken: Part) {
        self.parts[part.start as usize] = None;
        if part.start < taken.start {
            self.insert(Part {
                end: taken.start,
                ..part
            });
        }
        if taken.end < part.end {
            self.insert(Part {
                start: taken.end,
                ..part
            });
        }
        self.join(taken);
    }

    /// Inserts a part as one with neighbours of its height.
    fn join(&mut self, part: Part) {
        let mut whole = part;
        if let Some(left) = self.left_of(part).filter(|left| left.height == part.height) {
            whole.start = left.start;
            self.parts[left.start as usize] = None;
        }
        if let Some(right) = self
            .right_of(part)
            .filter(|right| right.height == part.height)
        {
            whole.end = right.end;
            self.parts[right.start as usize] = None;
        }
        self.insert(whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Buffer;

    #[test]
    fn valleys_are_filled_by_what_fits() {
        // Two towers, and what fits between them.
        let problem = Problem::new(vec![
            Buffer::new(6, 0, 4),
            Buffer::new(3, 4, 8),
            Buffer::new(6, 8, 12),
            Buffer::new(3, 4, 8).aligned(4),
            Buffer::new(1, 0, 12),
        ]);
        let problem = problem.expect("valid buffers");
        for cost in IDLE_COSTS {
            let plan = skyline(&problem, cost, &Budget::nodes(0)).expect("nothing ends it");
            assert_eq!(crate::validate::validate_offsets(&problem, &plan), Ok(()));
            assert_eq!(plan.size, 7, "{cost}");
        }
    }

    #[test]
    fn it_ends_when_told_to() {
        let buffers = (0..40_000).map(|step| Buffer::new(1 + step % 7, step, step + 1_000));
        let problem = Problem::new(buffers.collect()).expect("valid buffers");
        let budget = Budget {
            nodes: 0,
            should_stop: &|| true,
        };
        assert_eq!(skyline(&problem, 2, &budget), None);
    }
}
