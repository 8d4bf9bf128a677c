//! Strategies that go through the tensors in the order of time and take what has been released.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use crate::{
    budget::{Budget, WorkMeter},
    plan::ObjectPlan,
    problem::Problem,
};

/// A tensor takes the object of exactly its size that was released last, or a new one.
pub fn equality(problem: &Problem) -> ObjectPlan {
    in_order(problem, &mut BySize::default())
}

/// [`equality`]; `None` if the caller stopped it.
pub(crate) fn equality_within(problem: &Problem, budget: &Budget<'_>) -> Option<ObjectPlan> {
    let mut meter = WorkMeter::new(budget.should_stop);
    in_order_within(problem, &mut BySize::default(), &mut meter)
}

/// A tensor takes the released object whose size is nearest to its own, the larger of two; one that is too small grows.
pub fn greedy_in_order(problem: &Problem) -> ObjectPlan {
    in_order(problem, &mut NearestInSize::default())
}

/// As [`greedy_in_order`], but a tensor only follows one that `graph` allows ([`super::reallocation_graph`]), so that
/// the plan holds in whatever order independent operators run.
///
/// # Panics
/// Where `graph` has not one list for each buffer.
pub fn greedy_in_order_reallocating(problem: &Problem, graph: &[Vec<usize>]) -> ObjectPlan {
    assert_eq!(graph.len(), problem.len(), "one list for each buffer");
    let mut pool = Allowed {
        graph,
        free: BTreeSet::new(),
        tenant: Vec::new(),
    };
    in_order(problem, &mut pool)
}

/// Objects without a live tensor.
trait IdleObjects {
    fn release(&mut self, object: usize, size: u64);

    /// Takes out the object for a tensor.
    fn take(&mut self, tensor: usize, size: u64) -> Option<usize>;

    /// Notes which object a tensor got.
    fn assigned(&mut self, _tensor: usize, _object: usize) {}
}

/// Objects by exact size, released last on top.
#[derive(Default)]
struct BySize(BTreeMap<u64, Vec<usize>>);

impl IdleObjects for BySize {
    fn release(&mut self, object: usize, size: u64) {
        self.0.entry(size).or_default().push(object);
    }

    fn take(&mut self, _tensor: usize, size: u64) -> Option<usize> {
        self.0.get_mut(&size)?.pop()
    }
}

/// Objects by size, then number.
#[derive(Default)]
struct NearestInSize(BTreeSet<(u64, usize)>);

impl IdleObjects for NearestInSize {
    fn release(&mut self, object: usize, size: u64) {
        self.0.insert((size, object));
    }

    fn take(&mut self, _tensor: usize, size: u64) -> Option<usize> {
        let above = self.0.range((size, 0)..).next().copied();
        let below = self.0.range(..(size, 0)).next_back().copied();
        let chosen = match (below, above) {
            (Some(below), Some(above)) if size - below.0 < above.0 - size => below,
            (_, Some(above)) => above,
            (below, None) => below?,
        };
        self.0.remove(&chosen);
        Some(chosen.1)
    }
}

/// Objects by size, then number, with the tensor that each held last.
struct Allowed<'g> {
    graph: &'g [Vec<usize>],
    free: BTreeSet<(u64, usize)>,
    tenant: Vec<usize>,
}

impl IdleObjects for Allowed<'_> {
    fn release(&mut self, object: usize, size: u64) {
        self.free.insert((size, object));
    }

    fn take(&mut self, tensor: usize, size: u64) -> Option<usize> {
        let chosen = self
            .free
            .iter()
            .filter(|(_, object)| self.graph[self.tenant[*object]].contains(&tensor))
            .min_by_key(|(own, _)| own.abs_diff(size))
            .copied()?;
        self.free.remove(&chosen);
        Some(chosen.1)
    }

    fn assigned(&mut self, tensor: usize, object: usize) {
        if object == self.tenant.len() {
            self.tenant.push(tensor);
        } else {
            self.tenant[object] = tensor;
        }
    }
}

/// What finding an object for a tensor takes, in entries looked at.
const STEPS_A_TENSOR: usize = 64;

/// The common procedure. Tensors come by their start, as records of a graph do; of those that start together, in their
/// order. Objects are released by the end of their tensor, then by number.
fn in_order(problem: &Problem, pool: &mut impl IdleObjects) -> ObjectPlan {
    let plan = in_order_within(problem, pool, &mut WorkMeter::new(&|| false));
    plan.expect("nothing ends it")
}

/// [`in_order`]; `None` where the caller ends it.
fn in_order_within(
    problem: &Problem,
    pool: &mut impl IdleObjects,
    meter: &mut WorkMeter<'_>,
) -> Option<ObjectPlan> {
    let mut order: Vec<usize> = (0..problem.len()).collect();
    order.sort_by_key(|&tensor| problem.span(tensor).start);
    let mut objects = vec![0; problem.len()];
    let mut sizes: Vec<u64> = Vec::new();
    let mut in_use: BinaryHeap<Reverse<(u32, usize)>> = BinaryHeap::new();
    for tensor in order {
        if meter.spend(STEPS_A_TENSOR) {
            return None;
        }
        let span = problem.span(tensor);
        let size = problem.buffers()[tensor].size;
        while let Some(&Reverse((end, object))) = in_use.peek()
            && end <= span.start
        {
            in_use.pop();
            pool.release(object, sizes[object]);
        }
        let object = pool.take(tensor, size).unwrap_or(sizes.len());
        if object == sizes.len() {
            sizes.push(size);
        }
        sizes[object] = sizes[object].max(size);
        objects[tensor] = object;
        pool.assigned(tensor, object);
        in_use.push(Reverse((span.end, object)));
    }
    Some(ObjectPlan { objects, sizes })
}
