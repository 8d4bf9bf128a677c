//! Offsets: buffers are placed one after another, in some order, into the best gap.

mod in_time;
mod order;
mod placed;

pub use in_time::in_time;
pub use order::PlacementOrder;
pub(crate) use order::conflicts;

use crate::{
    budget::Budget,
    plan::OffsetPlan,
    problem::{Buffer, Problem},
};
use placed::PlacedBuffers;

/// Places buffers in the given order, each into the smallest gap that holds it (the lowest of several, and on top where
/// none does), fixed ones first. `None` if the caller stopped it.
///
/// With the sizes' descending order this is TFLite's greedy by size and, with other tie breaks, XLA's heap simulator.
pub fn best_fit(
    problem: &Problem,
    order: impl IntoIterator<Item = usize>,
    budget: &Budget<'_>,
) -> Option<OffsetPlan> {
    let mut placed = PlacedBuffers::new(problem);
    let mut offsets = vec![0; problem.len()];
    for buffer in problem.sized() {
        if let Some(offset) = problem.buffers()[buffer].fixed {
            offsets[buffer] = offset;
            placed.insert(buffer, offset);
        }
    }
    for (count, buffer) in order.into_iter().enumerate() {
        if count % 64 == 0 && budget.is_over() {
            return None;
        }
        let Buffer { size, fixed, .. } = problem.buffers()[buffer];
        if size > 0 && fixed.is_none() {
            let offset = placed.best_gap(buffer);
            offsets[buffer] = offset;
            placed.insert(buffer, offset);
        }
    }
    Some(OffsetPlan::new(problem, offsets))
}
