//! Greedy by size, improved: by classes of size, and within them what leaves objects idle for the shortest time.

use std::cmp::Reverse;

use super::{Filling, ObjectOccupancy, positional_maximums};
use crate::{
    budget::{Budget, WorkMeter},
    plan::ObjectPlan,
    problem::Problem,
};

/// The nearest object that a tensor could join: steps that it is idle between, and its number.
type NearestObject = Option<(u64, usize)>;

/// Tensors come by the class of their size (the last positional maximum that is no smaller), then by their distance in
/// time from the nearest object without an overlap, then by size. Each joins that object, or a new one. `None` if the
/// caller stopped it.
pub fn greedy_by_size(problem: &Problem, budget: &Budget<'_>) -> Option<ObjectPlan> {
    let maximums = positional_maximums(problem, budget)?;
    let buffers = problem.buffers();
    let classes: Vec<usize> = buffers
        .iter()
        .map(|buffer| maximums.partition_point(|maximum| *maximum >= buffer.size))
        .collect();
    let mut open: Vec<usize> = (0..problem.len()).collect();
    open.sort_by_key(|&tensor| (classes[tensor], Reverse(buffers[tensor].size), tensor));
    let mut nearest: Vec<NearestObject> = vec![None; problem.len()];
    let mut filling = Filling::new(problem);
    let mut meter = WorkMeter::new(budget.should_stop);
    while let Some(&first) = open.first() {
        if meter.spend(2 * open.len()) {
            return None;
        }
        // Of the class that is due, the nearest; of those, `open` has the largest first.
        let class = classes[first];
        let position = (0..open.len())
            .take_while(|&position| classes[open[position]] == class)
            .min_by_key(|&position| nearest[open[position]].map_or(u64::MAX, |(steps, _)| steps))
            .unwrap_or(0);
        let tensor = open.remove(position);
        let object = filling.join(tensor, nearest[tensor].map(|(_, object)| object));
        for &other in &open {
            let met = problem.span(other).overlaps(problem.span(tensor));
            if met && nearest[other].is_some_and(|(_, near)| near == object) {
                if meter.spend(SEARCH_STEPS * filling.tenants().len()) {
                    return None;
                }
                nearest[other] = search(problem, filling.tenants(), other);
            } else if !met {
                let steps = distance(problem, other, tensor);
                let is_nearer = nearest[other].is_none_or(|(near, _)| steps < near);
                if is_nearer && !filling.tenants()[object].meet(problem.span(other)) {
                    nearest[other] = Some((steps, object));
                }
            }
        }
    }
    Some(filling.finish())
}

/// What looking into one object takes, in tensors looked at.
const SEARCH_STEPS: usize = 16;

/// Steps between two tensors that are not live together.
fn distance(problem: &Problem, first: usize, second: usize) -> u64 {
    let (first, second) = (&problem.buffers()[first], &problem.buffers()[second]);
    first.start.max(second.start) - first.end.min(second.end)
}

/// The nearest object of all, the lowest number of several.
fn search(problem: &Problem, tenants: &[ObjectOccupancy], tensor: usize) -> NearestObject {
    let span = problem.span(tensor);
    let steps = problem.timeline().steps();
    let step = |section: u32| steps[section as usize];
    tenants
        .iter()
        .enumerate()
        .filter(|(_, tenants)| !tenants.meet(span))
        .filter_map(|(object, tenants)| {
            let (before, after) = tenants.around(span);
            let before = before.map(|end| step(span.start) - step(end));
            let after = after.map(|start| step(start) - step(span.end));
            let nearest = before.into_iter().chain(after).min()?;
            Some((nearest, object))
        })
        .min()
}
