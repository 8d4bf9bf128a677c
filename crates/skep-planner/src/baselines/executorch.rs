//! ExecuTorch's greedy: objects of fixed size, into which smaller tensors are stacked.

use std::cmp::Reverse;

use crate::{
    budget::{Budget, WorkMeter},
    plan::OffsetPlan,
    problem::Problem,
    timeline::Span,
};

struct SharedBlock {
    start: u64,
    size: u64,
    /// Tenants: where they end in the object, and when they live.
    tenants: Vec<(u64, Span)>,
}

/// Tensors come by size. Each goes to the bottom of the first object in which nothing is live with it; else, above all
/// that is, into the first object that has room there; else into a new one. Objects lie one behind the other. `None`
/// if the caller stopped it.
pub fn executorch_greedy(problem: &Problem, budget: &Budget<'_>) -> Option<OffsetPlan> {
    let buffers = problem.buffers();
    // Sizes are rounded up to the alignment, which is one for all there.
    let alignment = buffers
        .iter()
        .map(|buffer| buffer.alignment)
        .max()
        .unwrap_or(1);
    let size = |buffer: usize| buffers[buffer].size.next_multiple_of(alignment);
    let mut order: Vec<usize> = problem.sized().collect();
    order.sort_by_key(|&buffer| Reverse(size(buffer)));
    let mut offsets = vec![0; buffers.len()];
    let mut objects: Vec<SharedBlock> = Vec::new();
    let mut end = 0;
    let mut meter = WorkMeter::new(budget.should_stop);
    for (count, buffer) in order.into_iter().enumerate() {
        // It looks at tensors, of which there are as many as have come before.
        if meter.spend(count) {
            return None;
        }
        let (size, span) = (size(buffer), problem.span(buffer));
        let live_below = |object: &SharedBlock| {
            let live = object
                .tenants
                .iter()
                .filter(|(_, other)| other.overlaps(span));
            live.map(|(end, _)| *end).max()
        };
        let free = objects
            .iter()
            .position(|object| live_below(object).is_none());
        let stacked = || {
            let mut tops = objects.iter().map(live_below).enumerate();
            tops.find_map(|(object, top)| {
                let top = top.filter(|top| top + size <= objects[object].size)?;
                Some((object, top))
            })
        };
        let found = free.map(|object| (object, 0)).or_else(stacked);
        let (object, inside) = found.unwrap_or((objects.len(), 0));
        if found.is_none() {
            objects.push(SharedBlock {
                start: end,
                size,
                tenants: Vec::new(),
            });
            end += size;
        }
        objects[object].tenants.push((inside + size, span));
        offsets[buffer] = objects[object].start + inside;
    }
    let mut plan = OffsetPlan::new(problem, offsets);
    // Objects are allocated whole.
    plan.size = end;
    Some(plan)
}
