//! Greedy by breadth: the tasks that need most memory come first.

use std::cmp::Reverse;

use super::Filling;
use crate::{
    budget::{Budget, WorkMeter},
    plan::ObjectPlan,
    problem::Problem,
    timeline,
};

/// Visits tasks by the sum of their tensors' sizes, largest first and of equal ones the earliest, and in each its
/// tensors, largest first. A tensor takes the smallest object that holds it, else the largest one, which grows; new
/// ones where all are in use while it is live. `None` if the caller stopped it.
pub fn greedy_by_breadth(problem: &Problem, budget: &Budget<'_>) -> Option<ObjectPlan> {
    let sizes = problem.buffers().iter().map(|buffer| buffer.size);
    let spans = problem.timeline().spans();
    let sections = problem.timeline().sections();
    let breadths = timeline::loads(sections, spans.iter().copied().zip(sizes));
    // A tensor is assigned in the task that comes first of all in which it is live.
    let mut tasks: Vec<usize> = (0..sections).collect();
    tasks.sort_by_key(|&task| Reverse(breadths[task]));
    let mut turns = vec![0_usize; sections];
    for (turn, task) in tasks.into_iter().enumerate() {
        turns[task] = turn;
    }
    let turns = RangeMinimum::new(turns);
    let mut order: Vec<usize> = (0..problem.len()).collect();
    order.sort_by_key(|&tensor| {
        let first = turns.over(spans[tensor].sections());
        (first, Reverse(problem.buffers()[tensor].size))
    });
    let mut filling = Filling::new(problem);
    let mut meter = WorkMeter::new(budget.should_stop);
    for tensor in order {
        if meter.spend(filling.sizes().len()) {
            return None;
        }
        let size = problem.buffers()[tensor].size;
        let mut best: Option<usize> = None;
        let sizes = filling.sizes();
        for (object, &own) in sizes.iter().enumerate() {
            let is_better = best.is_none_or(|best| {
                let best = sizes[best];
                if best < size {
                    own > best
                } else {
                    size <= own && own < best
                }
            });
            if is_better && !filling.tenants()[object].meet(spans[tensor]) {
                best = Some(object);
            }
        }
        filling.join(tensor, best);
    }
    Some(filling.finish())
}

/// Minimums of ranges in constant time.
struct RangeMinimum(Vec<Vec<usize>>);

impl RangeMinimum {
    fn new(values: Vec<usize>) -> Self {
        let mut levels = vec![values];
        let mut step = 1;
        while 2 * step <= levels[0].len() {
            let below = &levels[levels.len() - 1];
            let level = below.iter().zip(&below[step..]).map(|(a, b)| *a.min(b));
            levels.push(level.collect());
            step *= 2;
        }
        Self(levels)
    }

    fn over(&self, range: std::ops::Range<usize>) -> usize {
        let level = range.len().ilog2() as usize;
        self.0[level][range.start].min(self.0[level][range.end - (1 << level)])
    }
}
