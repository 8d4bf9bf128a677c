//! Exact planning of one piece: the smallest plan, or the best one that the budget allowed, with a bound.

mod failed;
mod piece;
mod portfolio;
mod search;

use crate::{
    budget::{Budget, JobRunner, WorkMeter},
    offsets::PlacementOrder,
    problem::Problem,
};
use piece::Piece;
use portfolio::{Effort, Portfolio, RoundResult};

/// Pieces with more entries in their lists of neighbours and sections than this are not searched: the lists alone would
/// take 4 bytes each, and a first descent seconds.
const MAX_ENTRIES: usize = 16 << 20;
/// Larger pieces are not searched either: each try looks through all that is left, and a plan takes as many tries.
const MAX_ITEMS: usize = 1 << 14;
/// Entries that are prepared in the time that a node takes.
const ENTRIES_A_NODE: usize = 1 << 10;

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

/// Short turns get this many times the nodes of thorough ones.
const SHORT_SHARE: u64 = 3;
/// Thorough turns before the first short one.
const FIRST_TURNS: u32 = 3;

/// Exact searches for one piece, in turns of two kinds.
///
/// *Thorough* turns keep to their preferences and may take twice as many nodes each time: they prove what is impossible.
/// *Short* turns begin again and again with the preferences a little disarranged: one of many short searches often
/// finds a plan long before a long search whose first decisions were wrong.
pub(crate) struct ExactPlanner<'p> {
    problem: &'p Problem,
    portfolio: Portfolio,
    /// Sizes of plans differ by multiples of this.
    step: u64,
    /// Nodes of each search of the first turns.
    unit: u64,
    thorough: TurnKind,
    short: TurnKind,
    /// How far above the bound the next thorough try is: grows while tries prove themselves impossible.
    reach: u64,
    /// The second aim, for pieces whose bound is out of reach: nearer to the plan than the bound by this power of two.
    nearness: u32,
}

/// Turns of one kind so far, and their nodes.
#[derive(Default)]
struct TurnKind {
    turns: u32,
    nodes: u64,
}

impl<'p> ExactPlanner<'p> {
    /// Prepares searches for a piece, and raises its bound. `None` if the piece is too large for the budget or for any
    /// search, or the budget ends.
    pub(crate) fn new(
        problem: &'p Problem,
        known: &mut BoundedPiece,
        budget: &Budget<'_>,
    ) -> Option<Self> {
        let buffers: Vec<usize> = known.offsets.iter().map(|(buffer, _)| *buffer).collect();
        // Two fixed buffers may share a place; the search does not know that.
        let shares = |&buffer: &usize| {
            let all = problem.buffers();
            all[buffer].in_place.is_some_and(|input| {
                let both_live = problem.span(input).overlaps(problem.span(buffer));
                let same_place =
                    all[buffer].fixed.is_some() && all[buffer].fixed == all[input].fixed;
                all[input].size > 0 && both_live && same_place
            })
        };
        if buffers.len() > MAX_ITEMS || budget.is_over() || buffers.iter().any(shares) {
            return None;
        }
        let entries = Piece::entries(problem, &buffers);
        let cost = (entries / ENTRIES_A_NODE) as u64;
        if entries > MAX_ENTRIES || cost >= budget.nodes {
            return None;
        }
        let piece = Piece::new(problem, &buffers, &mut WorkMeter::new(budget.should_stop))?;
        let (bound, step) = piece.bound();
        known.bound = known.bound.max(bound.unsigned_abs());
        let unit = 2 * piece.items.len() as u64;
        let widths = piece.items.iter().map(|item| {
            let buffer = &problem.buffers()[item.buffer];
            buffer.end - buffer.start
        });
        let widths = widths.collect();
        Some(Self {
            problem,
            portfolio: Portfolio::new(piece, widths, cost),
            step: step.unsigned_abs(),
            unit,
            thorough: TurnKind::default(),
            short: TurnKind::default(),
            reach: 0,
            nearness: 1,
        })
    }

    /// Nodes so far, what the preparation took included.
    pub(crate) fn nodes(&self) -> u64 {
        self.portfolio.nodes
    }

    /// Searches once more for a plan of `goal` bytes or of the bound, and for one that is merely better than the one
    /// that is known. `budget` limits the nodes of all turns together.
    pub(crate) fn turn(
        &mut self,
        known: &mut BoundedPiece,
        goal: u64,
        budget: &Budget<'_>,
        workers: &dyn JobRunner,
    ) {
        let before = self.nodes();
        if self.thorough.turns < FIRST_TURNS
            || SHORT_SHARE * self.thorough.nodes <= self.short.nodes
        {
            self.thorough_turn(known, goal, budget, workers);
            self.thorough.nodes += self.nodes() - before;
        } else {
            let effort = Effort {
                nodes: self.unit.saturating_mul(luby(self.short.turns)),
                disarray: Some(self.short.turns),
            };
            self.short.turns += 1;
            if self.short.turns.is_multiple_of(2) {
                let bound = known.bound.max(goal);
                self.attempt(bound, effort, known, budget, workers);
            }
            if known.size > known.bound.max(goal) {
                self.aim_between(effort, known, goal, budget, workers);
            }
            self.short.nodes += self.nodes() - before;
        }
    }

    fn thorough_turn(
        &mut self,
        known: &mut BoundedPiece,
        goal: u64,
        budget: &Budget<'_>,
        workers: &dyn JobRunner,
    ) {
        let factor = 1_u64.checked_shl(self.thorough.turns).unwrap_or(u64::MAX);
        let effort = Effort {
            nodes: self.unit.saturating_mul(factor),
            disarray: None,
        };
        let capacity = (known.bound.max(goal) + self.reach).min(known.size - 1);
        match self.attempt(capacity, effort, known, budget, workers) {
            RoundResult::Fits(_) => self.reach = 0,
            RoundResult::Impossible => self.reach = (2 * self.reach).max(self.step),
            RoundResult::Stopped if self.reach > 0 => self.reach = 0,
            RoundResult::Stopped => {
                self.aim_between(effort, known, goal, budget, workers);
                self.thorough.turns += 1;
            }
        }
    }

    /// Searches for a plan between the bound and the known one: halfway up at first, nearer to the plan after every
    /// failure, and further away after every success.
    fn aim_between(
        &mut self,
        effort: Effort,
        known: &mut BoundedPiece,
        goal: u64,
        budget: &Budget<'_>,
        workers: &dyn JobRunner,
    ) {
        let gap = known.size - known.bound.max(goal);
        let nearer = (gap >> self.nearness.min(63)).max(1);
        match self.attempt(known.size - nearer, effort, known, budget, workers) {
            RoundResult::Fits(_) => self.nearness = (self.nearness - 1).max(1),
            RoundResult::Impossible => {}
            RoundResult::Stopped if nearer <= self.step => self.nearness = 1,
            RoundResult::Stopped => self.nearness += 1,
        }
    }

    /// One search of all preferences under `capacity`, and what follows from it.
    fn attempt(
        &mut self,
        capacity: u64,
        effort: Effort,
        known: &mut BoundedPiece,
        budget: &Budget<'_>,
        workers: &dyn JobRunner,
    ) -> RoundResult {
        let units = i64::try_from(capacity).expect("a problem's sizes stay below 2^62");
        let round = self.portfolio.round(units, effort, budget, workers);
        match &round {
            RoundResult::Fits(offsets) => {
                let offsets = offsets.iter().map(|offset| offset.unsigned_abs());
                let items = self.portfolio.items().iter();
                known.offsets = items.map(|item| item.buffer).zip(offsets).collect();
                known.size = size(self.problem, &known.offsets);
                known.order = None;
            }
            RoundResult::Impossible => known.bound = (capacity + 1).next_multiple_of(self.step),
            RoundResult::Stopped => {}
        }
        round
    }
}

/// The sequence of Luby, Sinclair and Zuckerman, from number 0 on: 1, 1, 2, 1, 1, 2, 4, 1, ... It takes about as many
/// nodes for searches of each length, which is near the best that can be done without knowing which length is right.
fn luby(number: u32) -> u64 {
    let mut number = u64::from(number) + 1;
    loop {
        let power = (number + 1).next_power_of_two();
        if power == number + 1 {
            return power / 2;
        }
        number -= power / 2 - 1;
    }
}

/// Improves a piece's plan and bound by exact searches until its plan needs at most `goal` bytes, is the smallest, or
/// the budget is spent.
///
/// Returns the nodes that it took.
pub(crate) fn improve(
    problem: &Problem,
    known: &mut BoundedPiece,
    goal: u64,
    budget: &Budget<'_>,
    workers: &dyn JobRunner,
) -> u64 {
    let Some(mut planner) = ExactPlanner::new(problem, known, budget) else {
        return 0;
    };
    while known.size > goal.max(known.bound) && planner.nodes() < budget.nodes && !budget.is_over()
    {
        planner.turn(known, goal, budget, workers);
    }
    planner.nodes()
}

/// Where the highest of these buffers ends.
pub(crate) fn size(problem: &Problem, offsets: &[(usize, u64)]) -> u64 {
    offsets
        .iter()
        .map(|&(buffer, offset)| offset + problem.buffers()[buffer].size)
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Buffer;

    #[test]
    fn a_preparation_costs_nodes_and_is_left_out_where_they_are_too_few() {
        // A million entries: each of a thousand buffers meets every other one.
        let buffers = (0..1_000).map(|number| Buffer::new(8, number, 1_000 + number));
        let problem = Problem::new(buffers.collect()).expect("valid buffers");
        let known = BoundedPiece {
            offsets: (0..).zip((0..8_000).step_by(8)).collect(),
            size: 8_000,
            bound: 8_000,
            order: None,
        };
        let prepared = |nodes| {
            let planner = ExactPlanner::new(&problem, &mut known.clone(), &Budget::nodes(nodes));
            planner.map(|planner| planner.nodes())
        };
        let cost = prepared(u64::MAX).expect("small enough");
        assert!(cost > 900, "{cost}");
        assert_eq!((prepared(cost), prepared(cost + 1)), (None, Some(cost)));
    }

    #[test]
    fn lengths_of_searches() {
        let lengths: Vec<u64> = (0..15).map(luby).collect();
        assert_eq!(lengths, [1, 1, 2, 1, 1, 2, 4, 1, 1, 2, 1, 1, 2, 4, 8]);
    }
}
