//! The orders in which buffers are placed.

use std::cmp::Reverse;

use crate::{
    problem::Problem,
    timeline::{self, RangeMaximum},
};

/// Which buffer comes first; of equal ones, the lowest number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlacementOrder {
    /// The largest: TFLite's greedy by size.
    Size,
    /// The largest, then the longest-lived: XLA's spatial order.
    SizeWidth,
    /// The longest-lived, then the largest: XLA's temporal order.
    WidthSize,
    /// The largest product of size and live range: XLA's spatial-temporal order.
    Area,
    /// The most conflicts, then the largest: TVM's order.
    ConflictsSize,
    /// The earliest, then the largest: XLA's order for phases.
    StartSize,
    /// The one in the fullest section, then the longest-lived: MiniMalloc's first choice.
    LoadWidth,
}

impl PlacementOrder {
    /// Every order.
    pub const ALL: [Self; 7] = [
        Self::Size,
        Self::SizeWidth,
        Self::WidthSize,
        Self::Area,
        Self::ConflictsSize,
        Self::StartSize,
        Self::LoadWidth,
    ];

    /// All buffers of `problem` in this order.
    pub fn of(self, problem: &Problem) -> Vec<usize> {
        let buffers = problem.buffers();
        let size = |buffer: usize| Reverse(buffers[buffer].size);
        let width = |buffer: usize| Reverse(buffers[buffer].end - buffers[buffer].start);
        let mut order: Vec<usize> = (0..problem.len()).collect();
        match self {
            Self::Size => order.sort_by_key(|&buffer| size(buffer)),
            Self::SizeWidth => order.sort_by_key(|&buffer| (size(buffer), width(buffer))),
            Self::WidthSize => order.sort_by_key(|&buffer| (width(buffer), size(buffer))),
            Self::Area => order.sort_by_key(|&buffer| {
                Reverse(u128::from(size(buffer).0) * u128::from(width(buffer).0))
            }),
            Self::ConflictsSize => {
                let conflicts = conflicts(problem);
                order.sort_by_key(|&buffer| (Reverse(conflicts[buffer]), size(buffer)));
            }
            Self::StartSize => order.sort_by_key(|&buffer| (buffers[buffer].start, size(buffer))),
            Self::LoadWidth => {
                let load = highest_loads(problem);
                order.sort_by_key(|&buffer| (Reverse(load[buffer]), width(buffer), size(buffer)));
            }
        }
        order
    }
}

/// How many other buffers each one is live together with.
pub(crate) fn conflicts(problem: &Problem) -> Vec<usize> {
    let mut starts: Vec<u64> = problem
        .buffers()
        .iter()
        .map(|buffer| buffer.start)
        .collect();
    let mut ends: Vec<u64> = problem.buffers().iter().map(|buffer| buffer.end).collect();
    starts.sort_unstable();
    ends.sort_unstable();
    problem
        .buffers()
        .iter()
        .map(|buffer| {
            let over = ends.partition_point(|end| *end <= buffer.start);
            let begun = starts.partition_point(|start| *start < buffer.end);
            begun - over - 1
        })
        .collect()
}

/// The largest load of any section in which each buffer is live.
fn highest_loads(problem: &Problem) -> Vec<u64> {
    let spans = problem.timeline().spans();
    let sizes = problem.buffers().iter().map(|buffer| buffer.size);
    let sections = problem.timeline().sections();
    let loads = timeline::loads(sections, spans.iter().copied().zip(sizes));
    let highest = RangeMaximum::new(loads);
    spans.iter().map(|span| highest.over(*span)).collect()
}
