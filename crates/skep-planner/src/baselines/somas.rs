//! MindSpore's SOMAS with its best-fit strategy: slabs, in whose gaps later tensors are put.

use std::cmp::Reverse;

use crate::{
    budget::{Budget, WorkMeter},
    plan::OffsetPlan,
    problem::{Buffer, Problem},
    timeline::Span,
};

struct Slab {
    start: u64,
    end: u64,
    /// What is in it, by offset.
    tenants: Vec<(u64, u64, Span)>,
}

/// Tensors come by size, then by live range. Each goes into the first slab with a gap for it, there into the gap that
/// it fills best (the lowest of several); else it opens a slab of its size on top. `None` if the caller stopped it.
///
/// The published solver tries several orders; this is its first.
pub fn somas_best_fit(problem: &Problem, budget: &Budget<'_>) -> Option<OffsetPlan> {
    let buffers = problem.buffers();
    let mut order: Vec<usize> = problem.sized().collect();
    order.sort_by_key(|&buffer| {
        let Buffer {
            size, start, end, ..
        } = buffers[buffer];
        Reverse((size, end - start))
    });
    let mut offsets = vec![0; buffers.len()];
    let mut slabs: Vec<Slab> = Vec::new();
    let mut meter = WorkMeter::new(budget.should_stop);
    for (count, buffer) in order.into_iter().enumerate() {
        // It looks at tensors, of which there are as many as have come before.
        if meter.spend(count) {
            return None;
        }
        let Buffer {
            size, alignment, ..
        } = buffers[buffer];
        let span = problem.span(buffer);
        let gap = slabs
            .iter()
            .enumerate()
            .find_map(|(slab, own)| Some((slab, own.best_gap(size, alignment, span)?)));
        let (slab, offset) = gap.unwrap_or_else(|| {
            let top = slabs.last().map_or(0, |slab| slab.end);
            let start = top.next_multiple_of(alignment);
            slabs.push(Slab {
                start,
                end: start + size,
                tenants: Vec::new(),
            });
            (slabs.len() - 1, start)
        });
        let tenants = &mut slabs[slab].tenants;
        let position = tenants.partition_point(|(other, ..)| *other <= offset);
        tenants.insert(position, (offset, offset + size, span));
        offsets[buffer] = offset;
    }
    Some(OffsetPlan::new(problem, offsets))
}

impl Slab {
    fn best_gap(&self, size: u64, alignment: u64, span: Span) -> Option<u64> {
        let live = self
            .tenants
            .iter()
            .filter(|(.., other)| other.overlaps(span));
        let gaps = live
            .map(|&(offset, end, _)| (offset, end))
            .chain([(self.end, self.end)]);
        let mut free = self.start.next_multiple_of(alignment);
        let mut best: Option<(u64, u64)> = None;
        for (offset, end) in gaps {
            if free + size <= offset {
                let left = offset - free - size;
                best = best
                    .filter(|(least, _)| *least <= left)
                    .or(Some((left, free)));
            }
            free = free.max(end.next_multiple_of(alignment));
        }
        best.map(|(_, offset)| offset)
    }
}
