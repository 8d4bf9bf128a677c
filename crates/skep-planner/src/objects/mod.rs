//! Shared objects: whole buffers that several tensors use in turn.
//!
//! The rules are those of TFLite's GPU delegate (Pisarchyk and Lee, arXiv 2001.03288), tie breaks included. A *task* is
//! a section of the timeline: what lives through neighbouring operators alike needs looking at only once.

mod breadth;
mod in_order;
mod min_cost_flow;
mod reallocation;
pub mod shaped;
mod size;

pub use breadth::greedy_by_breadth;
pub(crate) use in_order::equality_within;
pub use in_order::{equality, greedy_in_order, greedy_in_order_reallocating};
pub use min_cost_flow::min_cost_flow;
pub use reallocation::reallocation_graph;
pub use size::greedy_by_size;

use std::{cmp::Reverse, collections::BTreeMap};

use crate::{
    budget::{Budget, WorkMeter},
    plan::ObjectPlan,
    problem::Problem,
    timeline::Span,
};

/// An object a buffer.
pub fn naive(problem: &Problem) -> ObjectPlan {
    ObjectPlan {
        objects: (0..problem.len()).collect(),
        sizes: problem.buffers().iter().map(|buffer| buffer.size).collect(),
    }
}

/// The smaller one of [`greedy_by_size`] and [`greedy_by_breadth`], the former where they are equal.
pub fn greedy_best(problem: &Problem, budget: &Budget<'_>) -> Option<ObjectPlan> {
    let by_size = greedy_by_size(problem, budget)?;
    let by_breadth = greedy_by_breadth(problem, budget)?;
    Some(if by_breadth.size() < by_size.size() {
        by_breadth
    } else {
        by_size
    })
}

/// The largest k-th largest size of any task, for each k: no set of shared objects is smaller than their sum.
pub fn positional_maximums(problem: &Problem, budget: &Budget<'_>) -> Option<Vec<u64>> {
    let mut maximums: Vec<u64> = Vec::new();
    let mut live = Live::new(problem);
    let mut meter = WorkMeter::new(budget.should_stop);
    for section in 0..problem.timeline().sections() {
        live.advance(section);
        if meter.spend(live.by_size.len()) {
            return None;
        }
        for (position, (Reverse(size), _)) in live.by_size.keys().enumerate() {
            match maximums.get_mut(position) {
                Some(maximum) => *maximum = (*maximum).max(*size),
                None => maximums.push(*size),
            }
        }
    }
    Some(maximums)
}

/// The live buffers, from section to section.
struct Live<'p> {
    problem: &'p Problem,
    by_start: Vec<usize>,
    by_end: Vec<usize>,
    begun: usize,
    ended: usize,
    /// Largest first, then in their order.
    by_size: BTreeMap<(Reverse<u64>, usize), ()>,
}

impl<'p> Live<'p> {
    fn new(problem: &'p Problem) -> Self {
        let mut by_start: Vec<usize> = (0..problem.len()).collect();
        let mut by_end = by_start.clone();
        by_start.sort_by_key(|&buffer| problem.span(buffer).start);
        by_end.sort_by_key(|&buffer| problem.span(buffer).end);
        Self {
            problem,
            by_start,
            by_end,
            begun: 0,
            ended: 0,
            by_size: BTreeMap::new(),
        }
    }

    /// Advances to `section`, which is later than the last one.
    fn advance(&mut self, section: usize) {
        let key = |buffer: usize| (Reverse(self.problem.buffers()[buffer].size), buffer);
        while let Some(&buffer) = self.by_start.get(self.begun)
            && self.problem.span(buffer).start as usize <= section
        {
            self.by_size.insert(key(buffer), ());
            self.begun += 1;
        }
        while let Some(&buffer) = self.by_end.get(self.ended)
            && self.problem.span(buffer).end as usize <= section
        {
            self.by_size.remove(&key(buffer));
            self.ended += 1;
        }
    }
}

/// Objects as they fill: a plan in the making, and the tensors in each object.
pub(crate) struct Filling<'p> {
    problem: &'p Problem,
    plan: ObjectPlan,
    tenants: Vec<ObjectOccupancy>,
}

impl<'p> Filling<'p> {
    pub(crate) fn new(problem: &'p Problem) -> Self {
        Self {
            problem,
            plan: ObjectPlan {
                objects: vec![0; problem.len()],
                sizes: Vec::new(),
            },
            tenants: Vec::new(),
        }
    }

    /// Each object's size so far.
    pub(crate) fn sizes(&self) -> &[u64] {
        &self.plan.sizes
    }

    /// The live ranges in each object.
    pub(crate) fn tenants(&self) -> &[ObjectOccupancy] {
        &self.tenants
    }

    /// Puts a buffer into an object, which grows if it has to, or into a new one; returns the object.
    pub(crate) fn join(&mut self, buffer: usize, object: Option<usize>) -> usize {
        let object = object.unwrap_or_else(|| {
            self.plan.sizes.push(0);
            self.tenants.push(ObjectOccupancy::default());
            self.tenants.len() - 1
        });
        let size = self.problem.buffers()[buffer].size;
        self.plan.sizes[object] = self.plan.sizes[object].max(size);
        self.plan.objects[buffer] = object;
        self.tenants[object].insert(self.problem.span(buffer));
        object
    }

    pub(crate) fn finish(self) -> ObjectPlan {
        self.plan
    }
}

/// Live ranges of one object's tenants, which never overlap.
#[derive(Default)]
pub(crate) struct ObjectOccupancy(BTreeMap<u32, u32>);

impl ObjectOccupancy {
    pub(crate) fn insert(&mut self, span: Span) {
        self.0.insert(span.start, span.end);
    }

    /// Whether any tenant is live in these sections.
    pub(crate) fn meet(&self, span: Span) -> bool {
        let before = self.0.range(..span.end).next_back();
        before.is_some_and(|(_, end)| *end > span.start)
    }

    /// Ends of the tenant before and start of the tenant after these sections, in which none is live.
    pub(crate) fn around(&self, span: Span) -> (Option<u32>, Option<u32>) {
        let before = self.0.range(..span.end).next_back();
        let after = self.0.range(span.end..).next();
        (before.map(|(_, end)| *end), after.map(|(start, _)| *start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{problem::Buffer, splitmix::SplitMix};

    #[test]
    fn the_best_is_the_smaller_one_and_of_equals_the_one_by_size() {
        let budget = Budget::nodes(0);
        let (mut smaller_by_breadth, mut equal) = (0, 0);
        let mut random = SplitMix(3);
        for _ in 0..300 {
            let buffers = (0..8).map(|_| {
                let start = random.below(6);
                Buffer::new(1 + random.below(9), start, start + 1 + random.below(4))
            });
            let problem = Problem::new(buffers.collect()).expect("valid buffers");
            let by_size = greedy_by_size(&problem, &budget).expect("nothing ends it");
            let by_breadth = greedy_by_breadth(&problem, &budget).expect("nothing ends it");
            let best = greedy_best(&problem, &budget).expect("nothing ends it");
            if by_breadth.size() < by_size.size() {
                smaller_by_breadth += 1;
                assert_eq!(best, by_breadth);
            } else {
                equal += usize::from(by_breadth.size() == by_size.size() && by_breadth != by_size);
                assert_eq!(best, by_size);
            }
        }
        assert!(
            smaller_by_breadth > 0 && equal > 0,
            "{smaller_by_breadth}, {equal}"
        );
    }

    #[test]
    fn the_nearest_tenants_are_those_around_a_span() {
        let span = |start, end| Span { start, end };
        let mut tenants = ObjectOccupancy::default();
        for (start, end) in [(0, 2), (4, 6), (9, 12)] {
            tenants.insert(span(start, end));
        }
        assert_eq!(tenants.around(span(6, 9)), (Some(6), Some(9)));
        assert_eq!(tenants.around(span(2, 3)), (Some(2), Some(4)));
        assert_eq!(tenants.around(span(12, 20)), (Some(12), None));
        assert_eq!(ObjectOccupancy::default().around(span(0, 1)), (None, None));
        assert!(tenants.meet(span(5, 7)) && !tenants.meet(span(6, 9)));
    }
}
