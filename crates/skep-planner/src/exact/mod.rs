//! Exact planning of one piece: the smallest plan, or the best one that the budget allowed, with a bound.

mod piece;
mod portfolio;
mod search;

use crate::{
    budget::{Budget, JobRunner},
    offsets::PlacementOrder,
    problem::Problem,
};
use piece::Piece;
use portfolio::{Portfolio, RoundResult};

/// Pieces with more entries in their lists of neighbours and sections than this are not searched: the lists alone would
/// take 4 bytes each, and a first descent seconds.
const MAX_ENTRIES: usize = 16 << 20;
/// Larger pieces are not searched either: each try looks through all that is left, and a plan takes as many tries.
const MAX_ITEMS: usize = 1 << 14;

/// A piece's best plan so far, and a bound that no plan beats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BoundedPiece {
    /// Each buffer and its offset.
    pub(crate) offsets: Vec<(usize, u64)>,
    /// Bytes of that plan.
    pub(crate) size: u64,
    /// Bytes that every plan needs.
    pub(crate) bound: u64,
    /// The order that the plan is from, if it is from one.
    pub(crate) order: Option<PlacementOrder>,
}

/// Improves a piece's plan and bound until its plan needs at most `goal` bytes, is the smallest, or the budget is
/// spent.
///
/// Returns the nodes that it took.
pub(crate) fn improve(
    problem: &Problem,
    known: &mut BoundedPiece,
    goal: u64,
    budget: &Budget<'_>,
    workers: &dyn JobRunner,
) -> u64 {
    let buffers: Vec<usize> = known.offsets.iter().map(|(buffer, _)| *buffer).collect();
    // Two fixed buffers may share a place; the search does not know that.
    let shares = |&buffer: &usize| {
        let all = problem.buffers();
        all[buffer].in_place.is_some_and(|input| {
            let both_live = problem.span(input).overlaps(problem.span(buffer));
            let same_place = all[buffer].fixed.is_some() && all[buffer].fixed == all[input].fixed;
            all[input].size > 0 && both_live && same_place
        })
    };
    let is_large = buffers.len() > MAX_ITEMS || Piece::entries(problem, &buffers) > MAX_ENTRIES;
    if is_large || buffers.iter().any(shares) {
        return 0;
    }
    let piece = Piece::new(problem, &buffers);
    let (bound, step) = piece.bound();
    known.bound = known.bound.max(bound.unsigned_abs());
    let widths = piece.items.iter().map(|item| {
        let buffer = &problem.buffers()[item.buffer];
        buffer.end - buffer.start
    });
    let mut portfolio = Portfolio::new(&piece, widths.collect());
    let step = step.unsigned_abs();
    let mut limit = 2 * piece.items.len() as u64;
    // How far above the bound the next try is: grows while tries prove themselves impossible.
    let mut reach = 0;
    // A second aim between bound and plan, for pieces whose bound is out of reach.
    let mut aim = 0;
    while known.size > goal.max(known.bound) {
        if portfolio.nodes >= budget.nodes || budget.is_over() {
            break;
        }
        let attempt = |capacity: u64, known: &mut BoundedPiece, portfolio: &mut Portfolio<'_>| {
            let units = i64::try_from(capacity).expect("a problem's sizes stay below 2^62");
            let round = portfolio.round(units, limit, budget, workers);
            match &round {
                RoundResult::Fits(offsets) => {
                    let offsets = offsets.iter().map(|offset| offset.unsigned_abs());
                    let items = piece.items.iter();
                    known.offsets = items.map(|item| item.buffer).zip(offsets).collect();
                    known.size = size(problem, &known.offsets);
                    known.order = None;
                }
                RoundResult::Impossible => known.bound = (capacity + 1).next_multiple_of(step),
                RoundResult::Stopped => {}
            }
            round
        };
        let capacity = (known.bound.max(goal) + reach).min(known.size - 1);
        match attempt(capacity, known, &mut portfolio) {
            RoundResult::Fits(_) => reach = 0,
            RoundResult::Impossible => reach = (2 * reach).max(step),
            RoundResult::Stopped if reach > 0 => reach = 0,
            RoundResult::Stopped => {
                // Halfway up at first, and nearer to the plan after every failure.
                let middle = known.bound + (known.size - known.bound) / 2;
                aim = aim.max(middle).min(known.size - 1);
                match attempt(aim, known, &mut portfolio) {
                    RoundResult::Fits(_) => aim = 0,
                    RoundResult::Impossible => {}
                    RoundResult::Stopped => aim += (known.size - aim) / 2,
                }
                limit = limit.saturating_mul(2);
            }
        }
    }
    portfolio.nodes
}

/// Where the highest of these buffers ends.
pub(crate) fn size(problem: &Problem, offsets: &[(usize, u64)]) -> u64 {
    offsets
        .iter()
        .map(|&(buffer, offset)| offset + problem.buffers()[buffer].size)
        .max()
        .unwrap_or(0)
}
