//! Memory that ONNX Runtime's operators take for themselves while they run.
//!
//! It comes from the same allocator as tensors, so it is part of the plan. Convolutions in the blocked layout and
//! matrix products on packed weights need none.

use super::graph::{GraphNode, MemoryGraph};

/// What a convolution in the file's layout unfolds its input into, a part at a time and a thread, however little there
/// is to unfold (`MLAS_CONV_WORKING_BUFFER_SIZE_PER_THREAD`, 16,384 numbers).
const UNFOLDED_BYTES: u64 = 64 << 10;

/// Sets the scratch memory of nodes whose operator needs some. That of fused operators was set when they were made.
pub(super) fn assign(graph: &mut MemoryGraph) {
    for node in 0..graph.nodes.len() {
        let scratch = match &*graph.nodes[node].op {
            "Conv" => convolution(graph, &graph.nodes[node]),
            "ConvTranspose" => transposed(graph, &graph.nodes[node]),
            _ => None,
        };
        if let Some(bytes) = scratch {
            graph.nodes[node].scratch = bytes;
        }
    }
}

/// Positions of an image: what is behind batch and channels.
fn positions(dims: &[usize]) -> u64 {
    dims.iter()
        .skip(2)
        .map(|&size| size as u64)
        .fold(1, u64::saturating_mul)
}

/// Numbers of each filter, or of each channel's filters: what is behind the first dimension of the weight.
fn behind_first(dims: &[usize]) -> u64 {
    dims.iter()
        .skip(1)
        .map(|&size| size as u64)
        .fold(1, u64::saturating_mul)
}

/// The whole input unfolded where there are more filters than positions, else a part of it (`MlasConvPrepare`).
fn convolution(graph: &MemoryGraph, node: &GraphNode) -> Option<u64> {
    let weight = &graph.tensors[node.input(1)?].dims;
    let made = &graph.tensors[node.output()?];
    if !made.is_fp32 || positions(weight) == 1 {
        return None;
    }
    let unfolded = positions(&made.dims)
        .saturating_mul(behind_first(weight))
        .saturating_mul(4);
    let filters = (*weight.first()? / node.attributes.group.max(1)) as u64;
    if filters > positions(&made.dims) {
        Some(unfolded)
    } else {
        Some(UNFOLDED_BYTES)
    }
}

/// Each position of one image's input times each filter, before they are summed up.
fn transposed(graph: &MemoryGraph, node: &GraphNode) -> Option<u64> {
    let image = &graph.tensors[node.input(0)?].dims;
    let weight = &graph.tensors[node.input(1)?].dims;
    let numbers = positions(image).saturating_mul(behind_first(weight));
    Some(numbers.saturating_mul(4))
}
