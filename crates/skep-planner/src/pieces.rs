//! The pieces of a problem and what improves them, in turns.

use crate::{
    auto::LARGE,
    budget::{Budget, JobRunner},
    evict::Eviction,
    exact::{BoundedPiece, ExactPlanner},
    local::LocalPlanner,
    neighbours::Neighbours,
    problem::Problem,
};

/// Improves the largest plan of all pieces until no piece needs more than the largest bound, or the budget is spent.
///
/// Returns the nodes that it took.
pub(crate) fn improve(
    problem: &Problem,
    pieces: &mut [BoundedPiece],
    budget: &Budget<'_>,
    workers: &dyn JobRunner,
) -> u64 {
    let goal = |pieces: &[BoundedPiece]| pieces.iter().map(|piece| piece.bound).max().unwrap_or(0);
    let largest =
        |pieces: &[BoundedPiece]| pieces.iter().map(|piece| piece.size).max().unwrap_or(0);
    if largest(pieces) <= goal(pieces) || budget.nodes == 0 || budget.is_over() {
        return 0;
    }
    let neighbours = Neighbours::new(problem);
    let mut searches: Vec<PieceSearches<'_>> = pieces.iter().map(|_| Default::default()).collect();
    let mut nodes = 0;
    loop {
        let goal = goal(pieces);
        let left = Budget {
            nodes: budget.nodes.saturating_sub(nodes),
            ..*budget
        };
        if largest(pieces) <= goal || left.nodes == 0 || budget.is_over() {
            return nodes;
        }
        let next = (0..pieces.len())
            .filter(|&number| !searches[number].is_exhausted)
            .max_by_key(|&number| {
                let fewest = std::cmp::Reverse((searches[number].nodes, number));
                (pieces[number].size, fewest)
            });
        // What remains would have to be larger than what is exhausted to matter.
        let Some(next) = next.filter(|&next| pieces[next].size > goal) else {
            return nodes;
        };
        nodes += searches[next].turn(
            problem,
            &neighbours,
            &mut pieces[next],
            goal,
            &left,
            workers,
        );
    }
}

/// Exact searches get this many times the nodes of eviction.
const EVICTION_SHARE: u64 = 16;

/// What improves one piece.
#[derive(Default)]
struct PieceSearches<'p> {
    is_prepared: bool,
    exact: Option<ExactPlanner<'p>>,
    local: Option<LocalPlanner>,
    eviction: Option<Eviction<'p>>,
    nodes: u64,
    local_nodes: u64,
    is_exhausted: bool,
}

/// The search whose turn it is.
#[derive(Clone, Copy)]
enum Turn {
    Exact,
    Local,
    Eviction,
}

impl<'p> PieceSearches<'p> {
    /// Gives the search that has had least a turn. Returns the nodes that it took.
    fn turn(
        &mut self,
        problem: &'p Problem,
        neighbours: &'p Neighbours,
        piece: &mut BoundedPiece,
        goal: u64,
        left: &Budget<'_>,
        workers: &dyn JobRunner,
    ) -> u64 {
        if !self.is_prepared {
            self.is_prepared = true;
            self.exact = ExactPlanner::new(problem, piece, left);
            if self.exact.is_none() || problem.len() > LARGE {
                self.local = LocalPlanner::new(problem, piece);
            }
            self.eviction = Some(Eviction::new(problem, neighbours, piece));
            self.nodes = self.exact.as_ref().map_or(0, ExactPlanner::nodes);
            return self.nodes;
        }
        let before = self.nodes;
        let members = piece.offsets.len() as u64;
        match (
            self.next(members <= left.nodes),
            &mut self.exact,
            &mut self.local,
            &mut self.eviction,
        ) {
            (Turn::Exact, Some(exact), ..) => {
                let spent = exact.nodes();
                let all = Budget {
                    nodes: spent.saturating_add(left.nodes),
                    ..*left
                };
                exact.turn(piece, goal, &all, workers);
                self.nodes += exact.nodes() - spent;
            }
            (Turn::Local, _, Some(local), _) => {
                let spent = local.turn(piece, goal, left, workers);
                self.local_nodes += spent;
                self.nodes += spent;
            }
            (Turn::Eviction, .., Some(eviction)) => {
                let spent = eviction.nodes();
                eviction.turn(piece, goal, members.min(left.nodes), left);
                self.nodes += eviction.nodes() - spent;
            }
            _ => {}
        }
        self.is_exhausted = self.nodes == before;
        self.nodes - before
    }

    /// The search with the fewest nodes, for its share; a local one only if there are nodes left for one of its steps.
    fn next(&self, can_be_local: bool) -> Turn {
        let exact = self.exact.as_ref().map(ExactPlanner::nodes);
        let local = self.local.as_ref().filter(|_| can_be_local);
        let share = if exact.is_some() { EVICTION_SHARE } else { 1 };
        let eviction = self.eviction.as_ref().map(Eviction::nodes);
        let turns = [
            (exact, Turn::Exact),
            (local.map(|_| self.local_nodes), Turn::Local),
            (
                eviction.map(|nodes| nodes.saturating_mul(share)),
                Turn::Eviction,
            ),
        ];
        let turns = turns
            .into_iter()
            .filter_map(|(nodes, turn)| Some((nodes?, turn)));
        turns
            .min_by_key(|(nodes, _)| *nodes)
            .map_or(Turn::Eviction, |(_, turn)| turn)
    }
}
