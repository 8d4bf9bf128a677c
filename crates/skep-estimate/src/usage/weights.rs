//! What weights take once a model is loaded: most are held once, in the layout in which they are used.

use std::collections::HashMap;

use super::{
    build::{Built, inner_weights},
    graph::{GraphNode, MemoryGraph, TensorId, TensorOrigin},
};
use skep_onnx::OnnxModel;

/// Columns of a packed matrix come in sixteens (`MLAS_SGEMM_STRIDEN_THREAD_ALIGN`).
const PACKED_COLUMNS: u64 = 16;

/// What a node or a leaf of a decision tree takes in its operator, beyond its numbers in the session's copy of the
/// attributes: measured with ensembles of 20,000 to 100,000 of them in FP64.
const TREE_NODE_BYTES: u64 = 56;

/// Bytes of weights in a loaded model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct WeightBytes {
    /// As they are in the file, without those that became part of others.
    pub(crate) plain: u64,
    /// What their layouts take beyond that: whole blocks, and copies where one is needed in two layouts.
    pub(crate) layouts: u64,
}

/// The weights of a graph as ONNX Runtime holds them.
pub(crate) fn weights(model: &OnnxModel, built: &Built) -> WeightBytes {
    let graph = &built.graph;
    let mut packed: HashMap<TensorId, (usize, u64)> = HashMap::new();
    for node in graph.alive() {
        if let Some((weight, bytes)) = packed_bytes(graph, &graph.nodes[node]) {
            let (times, total) = packed.entry(weight).or_default();
            *times += 1;
            *total = total.saturating_add(bytes);
        }
    }
    let (numbers, tree_nodes) = attributes(model);
    let mut sum = WeightBytes {
        plain: inner_weights(model).saturating_add(numbers),
        layouts: tree_nodes.saturating_mul(TREE_NODE_BYTES),
    };
    for (id, tensor) in graph.tensors.iter().enumerate() {
        let uses = graph.uses(id);
        if tensor.origin != TensorOrigin::File || uses == 0 {
            continue;
        }
        let (times, in_packs) = packed.get(&id).copied().unwrap_or_default();
        // The file's layout is dropped when every node that reads it has packed it.
        let held = in_packs.saturating_add(if uses > times { tensor.bytes } else { 0 });
        let plain = tensor.bytes.saturating_sub(tensor.padding);
        sum.plain = sum.plain.saturating_add(plain);
        sum.layouts = sum.layouts.saturating_add(held.saturating_sub(plain));
    }
    sum
}

/// The weights of classical models, which lie in attributes of their operators: bytes, and how many of them are nodes
/// and leaves of trees.
fn attributes(model: &OnnxModel) -> (u64, u64) {
    let nodes = model.graph().node.iter();
    let attributes = nodes
        .filter(|node| node.domain() == "ai.onnx.ml")
        .flat_map(|node| &node.attribute);
    attributes.fold((0, 0), |(bytes, tree_nodes), attribute| {
        let tensor = attribute.t.as_ref().map_or(0, super::build::bytes);
        let numbers = 8 * attribute.ints.len() as u64 + 4 * attribute.floats.len() as u64;
        let of_trees = match attribute.name() {
            "nodes_featureids" | "leaf_targetids" => attribute.ints.len() as u64,
            _ => 0,
        };
        (
            numbers.saturating_add(tensor).saturating_add(bytes),
            tree_nodes + of_trees,
        )
    })
}

/// The matrix that a node packs when it is loaded, and what the pack takes.
fn packed_bytes(graph: &MemoryGraph, node: &GraphNode) -> Option<(TensorId, u64)> {
    if !["MatMul", "com.microsoft:FusedMatMul", "Gemm"].contains(&&*node.op) {
        return None;
    }
    let weight = node.input(1)?;
    let tensor = &graph.tensors[weight];
    let ([rows, columns], true, TensorOrigin::File) =
        (&tensor.dims[..], tensor.is_fp32, tensor.origin)
    else {
        return None;
    };
    let (rows, columns) = if node.attributes.trans_b {
        (columns, rows)
    } else {
        (rows, columns)
    };
    let columns = (*columns as u64).next_multiple_of(PACKED_COLUMNS);
    Some((
        weight,
        (*rows as u64).saturating_mul(columns).saturating_mul(4),
    ))
}
