//! Local search for pieces that are too large to be searched exactly: what lies too high is placed earlier next time.

use crate::{
    budget::Budget,
    exact::Known,
    offsets::{self, Order},
    problem::{Buffer, Problem},
};

/// Tries orders near the best one until the plan needs at most `goal` bytes or the budget is spent.
///
/// A try moves every buffer that ends above `goal`, or above all but the top thousandth of the plan, to an earlier
/// turn, and costs as many nodes as the piece has buffers. What is no worse is the next try's beginning.
pub(crate) fn improve(problem: &Problem, known: &mut Known, goal: u64, budget: &Budget<'_>) -> u64 {
    let numbers: Vec<usize> = known.offsets.iter().map(|(buffer, _)| *buffer).collect();
    let cost = numbers.len() as u64;
    let buffers = numbers.iter().map(|&buffer| Buffer {
        in_place: None,
        ..problem.buffers()[buffer]
    });
    // Two fixed buffers in one place are a contradiction without their permission to share it.
    let Ok(piece) = Problem::new(buffers.collect()) else {
        return 0;
    };
    let mut order = known.order.unwrap_or(Order::Size).of(&piece);
    let mut offsets: Vec<u64> = known.offsets.iter().map(|(_, offset)| *offset).collect();
    let mut size = known.size;
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut nodes = 0;
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

/// A splitmix generator: the same tries every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (value ^ (value >> 31)) % limit
    }
}
