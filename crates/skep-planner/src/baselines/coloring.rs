//! Colouring of the interference graph, as compilers assign registers.

use std::cmp::Reverse;

use crate::{budget::Budget, objects::Filling, offsets, plan::ObjectPlan, problem::Problem};

/// Welsh and Powell's order: buffers come by their number of conflicts, then by size, and take the first colour that no
/// neighbour has. A colour is an object as large as its largest buffer. `None` if the caller stopped it.
pub fn coloring(problem: &Problem, budget: &Budget<'_>) -> Option<ObjectPlan> {
    let conflicts = offsets::conflicts(problem);
    let size = |buffer: usize| problem.buffers()[buffer].size;
    let mut order: Vec<usize> = (0..problem.len()).collect();
    order.sort_by_key(|&buffer| Reverse((conflicts[buffer], size(buffer))));
    let mut colors = Filling::new(problem);
    for (count, buffer) in order.into_iter().enumerate() {
        if count % 16 == 0 && budget.is_over() {
            return None;
        }
        let span = problem.span(buffer);
        let mut neighbours = colors.tenants().iter();
        let free = neighbours.position(|tenants| !tenants.meet(span));
        colors.join(buffer, free);
    }
    Some(colors.finish())
}
