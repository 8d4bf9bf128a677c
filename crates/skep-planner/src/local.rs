//! Pieces that are too large for an exact search. Searches their fullest moments exactly and places the rest around
//! them; then tries again, placing the buffers that lie too high earlier.

use crate::{
    auto::LARGE,
    budget::{Budget, JobRunner},
    exact::{self, BoundedPiece},
    offsets::{self, PlacementOrder},
    plan::OffsetPlan,
    problem::{Buffer, Problem},
    timeline,
};

/// The load, in hundredths of the goal, above which live buffers belong to the core that is searched first.
const CORES: [u64; 5] = [97, 94, 90, 85, 80];
/// Nodes that the search for a core may take for each of its buffers.
const CORE_NODES: u64 = 64;

/// Tries orders near the best one until the plan needs at most `goal` bytes or the budget is spent.
///
/// A try moves every buffer that ends above `goal`, or above all but the top thousandth of the plan, to an earlier
/// turn, and costs as many nodes as the piece has buffers. The next try starts from the result if that is no worse.
pub(crate) fn improve(
    problem: &Problem,
    known: &mut BoundedPiece,
    goal: u64,
    budget: &Budget<'_>,
    workers: &dyn JobRunner,
) -> u64 {
    let numbers: Vec<usize> = known.offsets.iter().map(|(buffer, _)| *buffer).collect();
    let cost = numbers.len() as u64;
    // What comes before the first try takes a second at a million buffers.
    if cost > budget.nodes || budget.is_over() {
        return 0;
    }
    let buffers = numbers.iter().map(|&buffer| Buffer {
        in_place: None,
        ..problem.buffers()[buffer]
    });
    // Two fixed buffers in one place are a contradiction without their permission to share it.
    let Ok(piece) = Problem::new(buffers.collect()) else {
        return 0;
    };
    let mut random = SplitMix(0x9E37_79B9_7F4A_7C15);
    let mut nodes = 0;
    for percent in CORES {
        if known.size <= goal || nodes + cost > budget.nodes || budget.is_over() {
            break;
        }
        nodes += cost;
        let left = Budget {
            nodes: budget.nodes - nodes,
            ..*budget
        };
        let (plan, searched) = around_core(&piece, percent, goal, &left, workers);
        nodes += searched;
        if let Some(plan) = plan.filter(|plan| plan.size < known.size) {
            known.size = plan.size;
            known.offsets = numbers.iter().copied().zip(plan.offsets).collect();
        }
    }
    let untried = if problem.len() > LARGE {
        &PlacementOrder::ALL[1..]
    } else {
        &[]
    };
    for &order in untried {
        if known.size <= goal || nodes + cost > budget.nodes || budget.is_over() {
            break;
        }
        nodes += cost;
        let plan = offsets::best_fit(&piece, order.of(&piece), budget);
        if let Some(plan) = plan.filter(|plan| plan.size < known.size) {
            known.size = plan.size;
            known.offsets = numbers.iter().copied().zip(plan.offsets).collect();
            known.order = Some(order);
        }
    }
    if known.size <= goal || nodes + cost > budget.nodes || budget.is_over() {
        return nodes;
    }
    let mut order = known.order.unwrap_or(PlacementOrder::Size).of(&piece);
    let mut offsets: Vec<u64> = known.offsets.iter().map(|(_, offset)| *offset).collect();
    let mut size = known.size;
    while known.size > goal && nodes + cost <= budget.nodes {
        nodes += cost;
        let line = goal.max(size - size / 1000);
        let mut turns: Vec<(u64, usize)> = (0..).zip(order.iter().copied()).collect();
        for (turn, buffer) in &mut turns {
            let end = offsets[*buffer] + piece.buffers()[*buffer].size;
            if end > line {
                *turn = *turn * random.below(1024) / 1024;
            }
        }
        turns.sort_by_key(|(turn, _)| *turn);
        let next: Vec<usize> = turns.into_iter().map(|(_, buffer)| buffer).collect();
        let Some(plan) = offsets::best_fit(&piece, next.iter().copied(), budget) else {
            break;
        };
        if plan.size <= size {
            size = plan.size;
            offsets = plan.offsets;
            order = next;
        }
        if size < known.size {
            known.size = size;
            known.offsets = numbers
                .iter()
                .copied()
                .zip(offsets.iter().copied())
                .collect();
        }
    }
    nodes
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

/// A splitmix generator: the same tries every time.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (value ^ (value >> 31)) % limit
    }
}
