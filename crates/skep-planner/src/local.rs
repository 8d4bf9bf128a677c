//! Pieces that are too large for an exact search. Searches their fullest moments exactly and places the rest around
//! them; then tries again, placing the buffers that lie too high earlier.

use crate::{
    auto::{LARGE, LARGE_SKYLINES},
    budget::{Budget, JobRunner},
    exact::{self, BoundedPiece},
    offsets::{self, IDLE_COSTS, Placement, PlacementOrder},
    plan::OffsetPlan,
    problem::{Buffer, Problem},
    splitmix::SplitMix,
    timeline,
};

/// The orders that large pieces are planned with, the best one of most problems first.
const LARGE_ORDERS: [PlacementOrder; 4] = [
    PlacementOrder::LoadWidth,
    PlacementOrder::Size,
    PlacementOrder::ConflictsSize,
    PlacementOrder::Area,
];
/// The load, in hundredths of the goal, above which live buffers belong to the core that is searched first.
const CORES: [u64; 5] = [97, 94, 90, 85, 80];
/// Nodes that the search for a core may take for each of its buffers.
const CORE_NODES: u64 = 64;

/// The search for one piece, in turns.
pub(crate) struct LocalPlanner {
    /// The piece's buffers, by their numbers in the whole problem.
    numbers: Vec<usize>,
    piece: Problem,
    /// What has not been tried, the next one last.
    steps: Vec<LocalStep>,
    tries: Option<Tries>,
    random: SplitMix,
}

/// What is tried once.
#[derive(Clone, Copy)]
enum LocalStep {
    Place(Placement),
    /// The load, in hundredths of the goal, above which live buffers belong to the core that is searched first.
    Core(u64),
}

/// Where the tries have got to: each starts from here.
struct Tries {
    order: Vec<usize>,
    offsets: Vec<u64>,
    size: u64,
}

impl LocalPlanner {
    /// `None` for a piece that is a contradiction without its pairs: two fixed buffers in one place.
    pub(crate) fn new(problem: &Problem, known: &BoundedPiece) -> Option<Self> {
        let numbers: Vec<usize> = known.offsets.iter().map(|(buffer, _)| *buffer).collect();
        let buffers = numbers.iter().map(|&buffer| Buffer {
            in_place: None,
            ..problem.buffers()[buffer]
        });
        let mut steps: Vec<LocalStep> = CORES.into_iter().map(LocalStep::Core).collect();
        if problem.len() > LARGE {
            let has_fixed = numbers
                .iter()
                .any(|&buffer| problem.buffers()[buffer].fixed.is_some());
            let skylines = IDLE_COSTS.into_iter().skip(LARGE_SKYLINES);
            let skylines = skylines.filter(|_| !has_fixed).map(Placement::Skyline);
            let orders = LARGE_ORDERS.map(Placement::Order);
            let placements = skylines.chain(orders.into_iter().skip(1));
            // The best order and the best core first.
            steps.insert(0, LocalStep::Place(orders[0]));
            steps.splice(2..2, placements.map(LocalStep::Place));
        }
        steps.reverse();
        Some(Self {
            piece: Problem::new(buffers.collect()).ok()?,
            numbers,
            steps,
            tries: None,
            random: SplitMix(0x9E37_79B9_7F4A_7C15),
        })
    }

    /// Takes one step, which costs as many nodes as the piece has buffers, and those of a core's search. Returns the
    /// nodes.
    pub(crate) fn turn(
        &mut self,
        known: &mut BoundedPiece,
        goal: u64,
        budget: &Budget<'_>,
        workers: &dyn JobRunner,
    ) -> u64 {
        let cost = self.numbers.len() as u64;
        match self.steps.pop() {
            Some(LocalStep::Core(percent)) => {
                let left = Budget {
                    nodes: budget.nodes.saturating_sub(cost),
                    ..*budget
                };
                let (plan, searched) = around_core(&self.piece, percent, goal, &left, workers);
                self.adopt(known, plan, None);
                return cost + searched;
            }
            Some(LocalStep::Place(placement)) => {
                let plan = placement.plan(&self.piece, budget);
                self.adopt(known, plan, placement.order());
            }
            None => self.try_near(known, goal, budget),
        }
        cost
    }

    fn adopt(
        &self,
        known: &mut BoundedPiece,
        plan: Option<OffsetPlan>,
        order: Option<PlacementOrder>,
    ) {
        if let Some(plan) = plan.filter(|plan| plan.size < known.size) {
            known.size = plan.size;
            known.offsets = self.numbers.iter().copied().zip(plan.offsets).collect();
            known.order = order;
        }
    }

    /// Moves every buffer that ends above `goal`, or above all but the top thousandth of the plan, to an earlier turn.
    /// The next try starts from the result if that is no worse.
    fn try_near(&mut self, known: &mut BoundedPiece, goal: u64, budget: &Budget<'_>) {
        let from = self.tries.take().unwrap_or_else(|| Tries {
            order: known.order.unwrap_or(PlacementOrder::Size).of(&self.piece),
            offsets: known.offsets.iter().map(|(_, offset)| *offset).collect(),
            size: known.size,
        });
        let line = goal.max(from.size - from.size / 1000);
        let mut turns: Vec<(u64, usize)> = (0..).zip(from.order.iter().copied()).collect();
        for (turn, buffer) in &mut turns {
            let end = from.offsets[*buffer] + self.piece.buffers()[*buffer].size;
            if end > line {
                *turn = *turn * self.random.below(1024) / 1024;
            }
        }
        turns.sort_by_key(|(turn, _)| *turn);
        let order: Vec<usize> = turns.into_iter().map(|(_, buffer)| buffer).collect();
        let plan = offsets::best_fit(&self.piece, order.iter().copied(), budget);
        let Some(plan) = plan.filter(|plan| plan.size <= from.size) else {
            self.tries = Some(from);
            return;
        };
        self.tries = Some(Tries {
            order,
            offsets: plan.offsets.clone(),
            size: plan.size,
        });
        self.adopt(known, Some(plan), None);
    }
}

/// Plans the buffers of the fullest sections exactly, as far as possible, and all others around them. Also returns the
/// nodes of the search.
fn around_core(
    piece: &Problem,
    percent: u64,
    goal: u64,
    budget: &Budget<'_>,
    workers: &dyn JobRunner,
) -> (Option<OffsetPlan>, u64) {
    let buffers = piece.buffers();
    let sizes = piece
        .sized()
        .map(|buffer| (piece.span(buffer), buffers[buffer].size));
    let loads = timeline::loads(piece.timeline().sections(), sizes);
    // Full sections before each one: a buffer is live in one if their number grows over its span.
    let mut full = vec![0_usize];
    for load in loads {
        full.push(full[full.len() - 1] + usize::from(load / percent > goal / 100));
    }
    let core: Vec<usize> = piece
        .sized()
        .filter(|&buffer| {
            let span = piece.span(buffer);
            full[span.end as usize] > full[span.start as usize]
        })
        .collect();
    // A core that is most of the piece saves nothing.
    if 2 * core.len() > piece.len() {
        return (None, 0);
    }
    let list = core.iter().map(|&buffer| buffers[buffer]).collect();
    let problem = Problem::new(list).expect("part of a valid problem without pairs");
    let Some(plan) = offsets::best_fit(&problem, PlacementOrder::Size.of(&problem), budget) else {
        return (None, 0);
    };
    let mut known = BoundedPiece {
        size: plan.size,
        bound: goal,
        offsets: plan.offsets.into_iter().enumerate().collect(),
        order: None,
    };
    let limited = Budget {
        nodes: budget.nodes.min(CORE_NODES * core.len() as u64),
        ..*budget
    };
    let nodes = exact::improve(&problem, &mut known, goal, &limited, workers);
    let mut fixed = buffers.to_vec();
    for (member, offset) in known.offsets {
        fixed[core[member]].fixed = Some(offset);
    }
    // Offsets of fixed buffers count, so that they may add up to too much.
    let plan = Problem::new(fixed)
        .ok()
        .and_then(|fixed| offsets::best_fit(&fixed, PlacementOrder::Size.of(&fixed), budget));
    (plan, nodes)
}
