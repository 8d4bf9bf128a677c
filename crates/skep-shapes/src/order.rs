//! The order of a graph's nodes: the file's own where each node follows what it reads, else a stable topological sort.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use skep_proto::onnx::{GraphProto, NodeProto};

use crate::error::{InferError, NodeName};

/// Graphs within graphs deeper than this are refused; a protobuf reader stops at 33.
pub(super) const MAX_DEPTH: usize = 40;

/// The indices of `nodes` in an order in which each follows what it reads. `outside` knows the names that exist before
/// the first node runs; with `complete`, a name that neither is there nor is given by a node is an error.
pub(super) fn order(
    nodes: &[NodeProto],
    outside: &dyn Fn(&str) -> bool,
) -> Result<Vec<usize>, InferError> {
    let mut producers: HashMap<&str, usize> = HashMap::new();
    for (at, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            if producers.insert(output, at).is_some() {
                return Err(InferError::Twice {
                    tensor: output.clone(),
                    second: NodeName::of(node).to_string(),
                });
            }
        }
    }
    let mut waits = vec![0usize; nodes.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (at, node) in nodes.iter().enumerate() {
        for name in node.input.iter().filter(|name| !name.is_empty()) {
            match producers.get(name.as_str()) {
                Some(&producer) => {
                    readers[producer].push(at);
                    waits[at] += 1;
                }
                None if outside(name) => {}
                None => {
                    return Err(InferError::Missing {
                        tensor: name.clone(),
                        reader: NodeName::of(node).to_string(),
                    });
                }
            }
        }
        let mut captured = Vec::new();
        graphs(node).for_each(|graph| names(graph, MAX_DEPTH, &mut captured));
        for name in captured {
            // A name that the inner graph makes itself is not an edge. In a valid file the outer graph does not use it.
            if let Some(&producer) = producers.get(name).filter(|&&producer| producer != at) {
                readers[producer].push(at);
                waits[at] += 1;
            }
        }
    }
    sort(nodes, waits, &readers)
}

/// Everything that a node reads, what the graphs within it read included.
pub(crate) fn reads(node: &NodeProto) -> Vec<&str> {
    let mut found: Vec<&str> = node.input.iter().map(String::as_str).collect();
    graphs(node).for_each(|graph| names(graph, MAX_DEPTH, &mut found));
    found
}

/// The graphs in a node's attributes.
pub(crate) fn graphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    let attributes = node.attribute.iter();
    attributes.flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}

/// Everything that a graph's nodes and outputs read.
fn names<'a>(graph: &'a GraphProto, depth: usize, found: &mut Vec<&'a str>) {
    found.extend(graph.output.iter().map(|value| value.name()));
    for node in &graph.node {
        found.extend(node.input.iter().map(String::as_str));
        if depth > 0 {
            graphs(node).for_each(|graph| names(graph, depth - 1, found));
        }
    }
}

fn sort(
    nodes: &[NodeProto],
    mut waits: Vec<usize>,
    readers: &[Vec<usize>],
) -> Result<Vec<usize>, InferError> {
    // The smallest index first: an ordered file keeps its order.
    let mut ready: BinaryHeap<Reverse<usize>> = BinaryHeap::new();
    ready.extend((0..nodes.len()).filter(|&at| waits[at] == 0).map(Reverse));
    let mut sorted = Vec::with_capacity(nodes.len());
    while let Some(Reverse(at)) = ready.pop() {
        sorted.push(at);
        for &reader in &readers[at] {
            waits[reader] -= 1;
            if waits[reader] == 0 {
                ready.push(Reverse(reader));
            }
        }
    }
    if sorted.len() == nodes.len() {
        return Ok(sorted);
    }
    let node = &nodes[on_a_cycle(&waits, readers)];
    Err(InferError::Cycle {
        node: NodeName::of(node),
    })
}

/// A node that waits for itself, among those that wait for ever; some of these are merely behind a cycle.
fn on_a_cycle(waits: &[usize], readers: &[Vec<usize>]) -> usize {
    // Start anywhere and walk back along what each waits for: the first node met twice is on a cycle.
    let mut waits_for = vec![None; waits.len()];
    for (at, readers) in readers.iter().enumerate().filter(|(at, _)| waits[*at] > 0) {
        readers
            .iter()
            .for_each(|&reader| waits_for[reader] = Some(at));
    }
    let mut seen = vec![false; waits.len()];
    let mut at = waits.iter().position(|&wait| wait > 0).unwrap_or(0);
    while !seen[at] {
        seen[at] = true;
        at = waits_for[at].unwrap_or(at);
    }
    at
}
