//! Offsets: buffers are placed one after another, in some order, into the best gap.

mod in_time;
mod order;
mod placed;
mod skyline;

pub use in_time::in_time;
pub use order::PlacementOrder;
pub(crate) use order::conflicts;
pub(crate) use skyline::{IDLE_COSTS, skyline};

use crate::{
    budget::{Budget, WorkMeter},
    plan::OffsetPlan,
    problem::Problem,
};
use placed::PlacedBuffers;

/// A way to place all buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Placement {
    /// [`best_fit`].
    Order(PlacementOrder),
    /// [`skyline`] with this cost of idle sections.
    Skyline(u32),
}

impl Placement {
    /// `None` if the caller stopped it.
    pub(crate) fn plan(self, problem: &Problem, budget: &Budget<'_>) -> Option<OffsetPlan> {
        match self {
            Self::Order(order) => best_fit(problem, order.of(problem), budget),
            Self::Skyline(idle_cost) => skyline(problem, idle_cost, budget),
        }
    }

    /// The order, if it is one.
    pub(crate) fn order(self) -> Option<PlacementOrder> {
        match self {
            Self::Order(order) => Some(order),
            Self::Skyline(_) => None,
        }
    }
}

/// What putting a buffer into the lists of windows takes, in entries looked at.
const INSERTION: usize = 256;

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
    let mut meter = WorkMeter::new(budget.should_stop);
    for buffer in order {
        if problem.buffers()[buffer].fixed.is_some() {
            continue;
        }
        let (offset, looked_at) = placed.best_gap(buffer);
        offsets[buffer] = offset;
        placed.insert(buffer, offset);
        if meter.spend(looked_at + INSERTION) {
            return None;
        }
    }
    Some(OffsetPlan::new(problem, offsets))
}
