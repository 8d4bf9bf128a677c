//! Usage records out of an ONNX graph: what a run of it will need, before it runs.
//!
//! ```text
//! file + shapes -> build -> Graph --------------------------------> lives -> records    "graph", "graph, in place"
//!                             \-> fuse -> nchwc -> workspace -> order -> reuse -> records    "fused (predicted)"
//! ```
//!
//! A buffer is a tensor that a node of the main graph makes: weights are no buffers, and inputs and outputs lie in the
//! caller's memory. It is live from its node's step to before the step behind its last reader's.
//!
//! # What is left out
//!
//! Tensors within the graphs of `If`, `Loop` and `Scan`, and within model-local functions: their nodes are steps of the
//! main graph, with what they read and make. [`Usage::left_out`] names them. Elements of sequences count where they
//! were made. Scratch memory is known of convolutions and of fused Gelu alone.

mod build;
mod extents;
mod fuse;
mod graph;
mod lives;
mod nchwc;
mod reuse;
#[cfg(test)]
mod tests;

mod weights;
mod workspace;

use skep_onnx::{OnnxModel, infer::Inferred};
use skep_planner::Buffer;
pub(crate) use weights::Weights;

use std::collections::HashSet;

use crate::{Records, RecordsError};
use build::{Built, Constants, build};
use graph::Origin;
use lives::Sharing;

/// How a graph is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// As it is in the file: each output of each node has its own memory.
    Graph,
    /// Views share the memory of what they view, and element-wise operators may write over an input that nothing else
    /// needs any more. What a runtime without fused operators could do.
    InPlace,
    /// After ONNX Runtime's main rewrites, sharing what it shares, in its order, with its operators' scratch memory: a
    /// prediction of what a run records.
    Fused,
}

impl Variant {
    /// All of them, from what is in the file to what runs.
    pub const ALL: [Self; 3] = [Self::Graph, Self::InPlace, Self::Fused];

    /// What tables and reports call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Graph => "graph",
            Self::InPlace => "graph, in place",
            Self::Fused => "fused (predicted)",
        }
    }
}

/// What of the machine decides memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Channels in a block of ONNX Runtime's layout of images: 16 with AVX-512, 8 with AVX, 1 where it has no such
    /// layout.
    pub channel_block: usize,
    /// Cores, and so runs at once.
    pub cores: usize,
}

/// Usage records of a graph.
#[derive(Debug, Clone)]
pub struct Usage {
    /// What is to be planned.
    pub records: Records,
    /// Bytes of the inputs, which lie in the caller's memory.
    pub input_bytes: u64,
    /// Bytes of the outputs, which do as well.
    pub output_bytes: u64,
    /// Nodes whose inner tensors are no part of the records.
    pub left_out: Vec<String>,
}

/// The usage records of `model` with the shapes of `inferred`.
///
/// # Errors
/// [`RecordsError::Problem`] where sizes add up to more than can be counted.
pub fn usage(
    model: &OnnxModel,
    inferred: &Inferred,
    variant: Variant,
    machine: Machine,
) -> Result<Usage, RecordsError> {
    let sharing = match variant {
        Variant::Graph => Sharing::Nothing,
        Variant::InPlace => Sharing::Possible,
        Variant::Fused => return runtime_records(runtime_graph(model, inferred, machine)),
    };
    let built = build(model, inferred, Constants::Run);
    let named = lives::buffers(&built.graph, &built.order, sharing);
    records_of(built, named)
}

/// The records of [`Variant::Fused`] without operators' scratch memory.
pub(crate) fn usage_without_workspace(
    model: &OnnxModel,
    inferred: &Inferred,
    machine: Machine,
) -> Result<Usage, RecordsError> {
    let mut built = runtime_graph(model, inferred, machine);
    for node in &mut built.graph.nodes {
        node.scratch = 0;
    }
    runtime_records(built)
}

/// What the weights take once the model is loaded.
pub(crate) fn runtime_weights(model: &OnnxModel, inferred: &Inferred, machine: Machine) -> Weights {
    weights::weights(model, &runtime_graph(model, inferred, machine))
}

/// The graph that ONNX Runtime makes of a file, and the order in which it runs it.
fn runtime_graph(model: &OnnxModel, inferred: &Inferred, machine: Machine) -> Built {
    let mut built = build(model, inferred, Constants::Folded);
    built.graph.remove_unread();
    fuse::fuse(&mut built.graph);
    nchwc::block(&mut built.graph, machine.channel_block);
    workspace::assign(&mut built.graph);
    built.order = built.graph.order();
    built
}

/// The records of what ONNX Runtime made of a graph.
fn runtime_records(built: Built) -> Result<Usage, RecordsError> {
    let named = reuse::buffers(&built.graph, &built.order);
    records_of(built, named)
}

/// These buffers, and what is said beside them.
fn records_of(built: Built, mut named: Vec<(String, Buffer)>) -> Result<Usage, RecordsError> {
    let Built {
        graph, left_out, ..
    } = built;
    let sum = |wanted: &dyn Fn(&graph::Tensor) -> bool| {
        let wanted = graph.tensors.iter().filter(|tensor| wanted(tensor));
        wanted
            .map(|tensor| tensor.bytes)
            .fold(0, u64::saturating_add)
    };
    make_unique(&mut named);
    Ok(Usage {
        records: Records::new(named)?,
        input_bytes: sum(&|tensor| tensor.origin == Origin::Caller),
        output_bytes: sum(&|tensor| tensor.is_output),
        left_out,
    })
}

/// Numbers the names that were made here and are another tensor's already.
fn make_unique(named: &mut [(String, Buffer)]) {
    let mut seen = HashSet::with_capacity(named.len());
    for (number, (name, _)) in named.iter_mut().enumerate() {
        if !seen.insert(name.clone()) {
            *name = format!("{name} #{number}");
        }
    }
}
