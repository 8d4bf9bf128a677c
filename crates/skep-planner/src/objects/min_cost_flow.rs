//! Chains of tensors with the least growth, by minimum-cost flow.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::{
    budget::{Budget, WorkMeter},
    plan::ObjectPlan,
    problem::Problem,
};

/// Each tensor either begins an object, at the cost of its size, or follows one that has ended, at the cost of what it
/// is larger; the cheapest choice of all. (The cost of a chain is not the size of its object, so the sum is not the
/// smallest.) `None` if the caller stopped it.
///
/// There is an edge for each pair of tensors that could follow each other, and as many shortest paths as tensors.
pub fn min_cost_flow(problem: &Problem, budget: &Budget<'_>) -> Option<ObjectPlan> {
    let count = problem.len();
    let mut meter = WorkMeter::new(budget.should_stop);
    let mut network = Network::new(problem, &mut meter)?;
    let mut paths = 0;
    while network.augment(&mut meter) {
        paths += 1;
    }
    if meter.is_over() {
        return None;
    }
    debug_assert_eq!(
        paths, count,
        "every tensor begins an object or follows another"
    );
    let mut plan = ObjectPlan {
        objects: vec![0; count],
        sizes: Vec::new(),
    };
    for &edge in &network.from[network.source()] {
        let mut next = network.saturated_to_right(edge);
        if next.is_some() {
            plan.sizes.push(0);
        }
        let object = plan.sizes.len().saturating_sub(1);
        while let Some(tensor) = next {
            plan.objects[tensor] = object;
            plan.sizes[object] = plan.sizes[object].max(problem.buffers()[tensor].size);
            let mut followers = network.from[tensor].iter();
            next = followers.find_map(|&edge| network.saturated_to_right(edge));
        }
    }
    Some(plan)
}

struct Edge {
    to: usize,
    cost: i64,
    free: bool,
}

/// Left nodes 0..n (a tensor that is followed), right nodes n..2n (a tensor that begins or follows), source and sink.
/// Edges have capacity 1; the reverse of edge e is e ^ 1.
struct Network {
    count: usize,
    edges: Vec<Edge>,
    from: Vec<Vec<usize>>,
}

impl Network {
    /// `None` where the caller ends it.
    fn new(problem: &Problem, meter: &mut WorkMeter<'_>) -> Option<Self> {
        let count = problem.len();
        let mut network = Self {
            count,
            edges: Vec::new(),
            from: vec![Vec::new(); 2 * count + 2],
        };
        let (source, sink) = (network.source(), network.source() + 1);
        let size = |tensor: usize| {
            i64::try_from(problem.buffers()[tensor].size).expect("sizes stay below 2^62")
        };
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|&tensor| problem.span(tensor).start);
        let mut live: BinaryHeap<Reverse<(u32, usize)>> = BinaryHeap::new();
        let mut over: Vec<usize> = Vec::new();
        for tensor in order {
            let span = problem.span(tensor);
            while let Some(&Reverse((end, ended))) = live.peek()
                && end <= span.start
            {
                live.pop();
                over.push(ended);
            }
            network.add(source, tensor, 0);
            network.add(count + tensor, sink, 0);
            network.add(source, count + tensor, size(tensor));
            if meter.spend(over.len()) {
                return None;
            }
            for &before in &over {
                let growth = (size(tensor) - size(before)).max(0);
                network.add(before, count + tensor, growth);
            }
            live.push(Reverse((span.end, tensor)));
        }
        Some(network)
    }

    fn source(&self) -> usize {
        2 * self.count
    }

    fn add(&mut self, from: usize, to: usize, cost: i64) {
        for (from, to, cost, free) in [(from, to, cost, true), (to, from, -cost, false)] {
            self.from[from].push(self.edges.len());
            self.edges.push(Edge { to, cost, free });
        }
    }

    /// The tensor to which a used forward edge leads on the right side.
    fn saturated_to_right(&self, edge: usize) -> Option<usize> {
        let Edge { to, free, .. } = self.edges[edge];
        let is_forward = edge.is_multiple_of(2);
        (is_forward && !free && (self.count..2 * self.count).contains(&to)).then(|| to - self.count)
    }

    /// Sends one more unit along the cheapest path, which it finds layer by layer. Returns false if there is no path, or if
    /// the meter's work is used up.
    fn augment(&mut self, meter: &mut WorkMeter<'_>) -> bool {
        let (source, sink) = (self.source(), self.source() + 1);
        let mut cost = vec![i64::MAX; self.from.len()];
        let mut arrived_by = vec![usize::MAX; self.from.len()];
        let mut is_next = vec![false; self.from.len()];
        cost[source] = 0;
        let mut layer = vec![source];
        while !layer.is_empty() {
            let mut next = Vec::new();
            for node in layer {
                is_next[node] = false;
                if meter.spend(self.from[node].len()) {
                    return false;
                }
                for &edge in &self.from[node] {
                    let Edge {
                        to,
                        cost: own,
                        free,
                    } = self.edges[edge];
                    if free && cost[node] + own < cost[to] {
                        cost[to] = cost[node] + own;
                        arrived_by[to] = edge;
                        if !is_next[to] {
                            is_next[to] = true;
                            next.push(to);
                        }
                    }
                }
            }
            layer = next;
        }
        let mut node = sink;
        while node != source {
            let edge = arrived_by[node];
            if edge == usize::MAX {
                return false;
            }
            self.edges[edge].free = false;
            self.edges[edge ^ 1].free = true;
            node = self.edges[edge ^ 1].to;
        }
        true
    }
}
