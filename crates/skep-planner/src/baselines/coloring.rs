//! Colouring of the interference graph, as compilers assign registers.

use std::cmp::Reverse;

use crate::{
    budget::{Budget, WorkMeter},
    objects::Filling,
    offsets,
    plan::ObjectPlan,
    problem::Problem,
};

/// Welsh and Powell's order: buffers come by their number of conflicts, then by size, and take the first colour that no
/// neighbour has. A colour is an object as large as its largest buffer. `None` if the caller stopped it.
pub fn coloring(problem: &Problem, budget: &Budget<'_>) -> Option<ObjectPlan> {
    let conflicts = offsets::conflicts(problem);
    let size = |buffer: usize| problem.buffers()[buffer].size;
    let mut order: Vec<usize> = (0..problem.len()).collect();
    order.sort_by_key(|&buffer| Reverse((conflicts[buffer], size(buffer))));
    let mut colors = Filling::new(problem);
    let mut meter = WorkMeter::new(budget.should_stop);
    for buffer in order {
        if meter.spend(colors.sizes().len()) {
            return None;
        }
        let span = problem.span(buffer);
        let mut neighbours = colors.tenants().iter();
        let free = neighbours.position(|tenants| !tenants.meet(span));
        colors.join(buffer, free);
    }
    Some(colors.finish())
}
