//! The planner that Skep uses: cheap plans first, a proof where there is one, search where it is needed.
//!
//! 1. Best fit in several orders and skylines filled from the bottom up, until one meets the largest load: nothing is
//!    better than that. Large problems have time for few skylines; for them also objects of equal size.
//! 2. The problem falls apart where no buffer is live on both sides. Each piece keeps the best of its plans.
//! 3. The piece with the largest plan is improved, in turns ([`crate::pieces`]), until it meets the largest bound of
//!    all: it is searched exactly ([`crate::exact`]), or where it is too large for that, where it is fullest
//!    ([`crate::local`]); and what lies too high is moved down by eviction ([`crate::evict`]).
//! 4. With few buffers, pieces still above their bound take over any better plan of another strategy.
//!
//! Problems with in-place pairs become problems without them first ([`crate::in_place`]).

use std::sync::{
    OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use crate::{
    bounds,
    budget::{Budget, InTurn, JobRunner},
    exact::{self, BoundedPiece},
    in_place, objects,
    offsets::{self, IDLE_COSTS, Placement, PlacementOrder},
    pieces,
    plan::{OffsetPlan, Plan},
    problem::Problem,
    strategy::Strategy,
    timeline,
};

/// With more buffers than this, orders of placement come after other searches have begun: an order may take a tenth of
/// a second, and seconds with tens of thousands of buffers.
pub(crate) const LARGE: usize = 1 << 12;

/// Skylines that large problems are planned with at once.
pub(crate) const LARGE_SKYLINES: usize = 2;

/// With at most this many buffers every strategy takes milliseconds.
const FEW: usize = 256;

/// A plan, and proven bounds on how good it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundedPlan {
    /// Valid, whatever the budget was.
    pub plan: OffsetPlan,
    /// Bytes that every plan needs.
    pub lower_bound: u64,
    /// How the bound is known.
    pub proof: Proof,
    /// Search nodes that were spent.
    pub nodes: u64,
}

/// Why no plan is smaller than the lower bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// This many bytes are live at one moment, or a fixed buffer ends there.
    Load,
    /// Searches have tried everything smaller.
    Search,
}

impl BoundedPlan {
    /// Whether no plan is smaller.
    pub fn is_optimal(&self) -> bool {
        self.plan.size == self.lower_bound
    }

    /// Bytes by which the plan exceeds what is known to be needed.
    pub fn gap(&self) -> u64 {
        self.plan.size - self.lower_bound
    }
}

/// Plans in the calling thread.
pub fn auto(problem: &Problem, budget: &Budget<'_>) -> BoundedPlan {
    auto_with(problem, budget, &InTurn)
}

/// Plans with the threads of `workers`. The same budget of nodes gives the same plan on any number of threads.
///
/// In-place pairs are planned as one buffer each where they have one size, and as two, and with few pairs a search
/// decides which of them share a place. (Pairs of which both are fixed, at one offset, are planned around but not
/// searched.)
pub fn auto_with(problem: &Problem, budget: &Budget<'_>, workers: &dyn JobRunner) -> BoundedPlan {
    let buffers = problem.buffers();
    if buffers.iter().any(|buffer| buffer.in_place.is_some()) {
        in_place::plan(problem, budget, workers)
    } else {
        plan(problem, budget, workers)
    }
}

/// Plans a problem whose in-place pairs do not count.
pub(crate) fn plan(problem: &Problem, budget: &Budget<'_>, workers: &dyn JobRunner) -> BoundedPlan {
    let load = bounds::max_load(problem);
    let mut pieces = heuristics(problem, load, budget, workers);
    let nodes = pieces::improve(problem, &mut pieces, budget, workers);
    let goal = pieces.iter().map(|piece| piece.bound).max().unwrap_or(0);
    if pieces.iter().any(|piece| piece.size > goal) && problem.len() <= FEW {
        others(problem, &mut pieces, budget);
    }
    let lower_bound = pieces.iter().map(|piece| piece.bound).max().unwrap_or(0);
    let mut offsets: Vec<u64> = problem
        .buffers()
        .iter()
        .map(|buffer| buffer.fixed.unwrap_or(0))
        .collect();
    for &(buffer, offset) in pieces.iter().flat_map(|piece| &piece.offsets) {
        offsets[buffer] = offset;
    }
    BoundedPlan {
        plan: OffsetPlan::new(problem, offsets),
        lower_bound,
        proof: if lower_bound > load {
            Proof::Search
        } else {
            Proof::Load
        },
        nodes,
    }
}

/// Tries the remaining strategies: they seldom find more than searches that ended without a proof.
fn others(problem: &Problem, pieces: &mut [BoundedPiece], budget: &Budget<'_>) {
    for strategy in Strategy::ALL.iter().filter(|s| s.is_new_to_auto()) {
        if budget.is_over() {
            return;
        }
        if let Ok(Plan::Offsets(plan)) = strategy.plan(problem, budget) {
            adopt(problem, pieces, &plan, None);
        }
    }
}

/// The best of several orders for each piece.
fn heuristics(
    problem: &Problem,
    goal: u64,
    budget: &Budget<'_>,
    workers: &dyn JobRunner,
) -> Vec<BoundedPiece> {
    let spans = problem.timeline().spans();
    let sizes = problem
        .sized()
        .map(|buffer| (problem.span(buffer), problem.buffers()[buffer].size));
    let loads = timeline::loads(problem.timeline().sections(), sizes);
    // Fast for any problem, so that there is a plan however soon the budget ends.
    let first = offsets::in_time(problem);
    let mut pieces: Vec<BoundedPiece> = timeline::pieces(spans, problem.sized())
        .into_iter()
        .map(|piece| {
            let sections = piece.iter().flat_map(|&buffer| {
                [spans[buffer].start, spans[buffer].end - 1].map(|section| section as usize)
            });
            let (start, end) = sections.fold((usize::MAX, 0), |(start, end), section| {
                (start.min(section), end.max(section))
            });
            let offsets: Vec<(usize, u64)> = piece
                .into_iter()
                .map(|buffer| (buffer, first.offsets[buffer]))
                .collect();
            BoundedPiece {
                size: exact::size(problem, &offsets),
                bound: loads[start..=end].iter().copied().max().unwrap_or(0),
                offsets,
                order: None,
            }
        })
        .collect();
    if first.size <= goal {
        return pieces;
    }
    let has_fixed = problem
        .buffers()
        .iter()
        .any(|buffer| buffer.fixed.is_some());
    if problem.len() > LARGE && !has_fixed && !budget.is_over() {
        // As fast, and next to the bound where most buffers have one of a few sizes.
        if let Some(by_size) = objects::equality_within(problem, budget) {
            adopt(problem, &mut pieces, &by_size.to_offsets(problem), None);
        }
    }
    let methods = first_methods(problem.len() > LARGE, has_fixed);
    let plans: Vec<OnceLock<OffsetPlan>> = methods.iter().map(|_| OnceLock::new()).collect();
    let done = AtomicUsize::new(usize::MAX);
    workers.run(methods.len(), &|number| {
        let is_over = || done.load(Ordering::Relaxed) < number || budget.is_over();
        let inner = Budget {
            nodes: 0,
            should_stop: &is_over,
        };
        if is_over() {
            return;
        }
        if let Some(plan) = methods[number].plan(problem, &inner) {
            if plan.size <= goal {
                done.fetch_min(number, Ordering::Relaxed);
            }
            plans[number].set(plan).expect("each job runs once");
        }
    });
    let last = done.into_inner();
    for (number, (plan, method)) in plans.into_iter().zip(methods).enumerate() {
        if let Some(plan) = plan.into_inner().filter(|_| number <= last) {
            adopt(problem, &mut pieces, &plan, method.order());
        }
    }
    pieces
}

/// What every piece is planned with.
fn first_methods(is_large: bool, has_fixed: bool) -> Vec<Placement> {
    let skylines = IDLE_COSTS.into_iter().map(Placement::Skyline);
    let skylines = skylines.filter(|_| !has_fixed);
    if is_large {
        return skylines.take(LARGE_SKYLINES).collect();
    }
    let orders = PlacementOrder::ALL.into_iter().map(Placement::Order);
    orders.chain(skylines).collect()
}

/// Takes over the parts of `plan` that are better than a piece's plan so far.
fn adopt(
    problem: &Problem,
    pieces: &mut [BoundedPiece],
    plan: &OffsetPlan,
    order: Option<PlacementOrder>,
) {
    for piece in pieces {
        let offsets: Vec<(usize, u64)> = piece
            .offsets
            .iter()
            .map(|&(buffer, _)| (buffer, plan.offsets[buffer]))
            .collect();
        let size = exact::size(problem, &offsets);
        if size < piece.size {
            piece.size = size;
            piece.offsets = offsets;
            piece.order = order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_what_lies_above_the_bound() {
        let bounded = |size, lower_bound| BoundedPlan {
            plan: OffsetPlan {
                offsets: Vec::new(),
                size,
            },
            lower_bound,
            proof: Proof::Load,
            nodes: 0,
        };
        assert!(bounded(8, 8).is_optimal() && !bounded(9, 6).is_optimal());
        assert_eq!((bounded(8, 8).gap(), bounded(9, 6).gap()), (0, 3));
    }
}
