//! Usage records of an ONNX graph: what a run will allocate, before it runs.
//!
//! ```text
//! file + shapes -> build -> Graph --------------------------------> lives -> records    "graph", "graph, in place"
//!                             \-> fuse -> nchwc -> workspace -> order -> reuse -> records    "fused (predicted)"
//! ```
//!
//! A buffer is a tensor that a node of the main graph makes: weights are not buffers, and inputs and outputs lie in
//! the caller's memory. It is live from its node's step to before the step behind its last reader's.
//!
//! # What is left out
//!
//! Tensors within the graphs of `If`, `Loop` and `Scan`, and within model-local functions: their nodes are steps of the
//! main graph, with what they read and make. [`GraphUsage::left_out`] names them. Elements of sequences count where
//! they were made. Scratch memory is known of convolutions and of fused Gelu alone.

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

use skep_onnx::OnnxModel;
use skep_planner::{Buffer, UsageRecords, UsageRecordsError};
use skep_shapes::InferredShapes;
pub(crate) use weights::WeightBytes;

use std::collections::HashSet;

use build::{Built, Constants, build};
use graph::TensorOrigin;
use lives::InputSharing;

/// How far a graph is rewritten before its tensors are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewriteLevel {
    /// Not at all: each output of each node has its own memory.
    AsWritten,
    /// Views share the memory of what they view, and element-wise operators may write over an input that nothing else
    /// needs any more. What a runtime without fused operators could do.
    InPlace,
    /// After ONNX Runtime's main rewrites, sharing what it shares, in its order, with its operators' scratch memory: a
    /// prediction of what a run records.
    Fused,
}

impl RewriteLevel {
    /// All of them, from the file's graph to the one that runs.
    pub const ALL: [Self; 3] = [Self::AsWritten, Self::InPlace, Self::Fused];

    /// Its name in tables and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AsWritten => "graph",
            Self::InPlace => "graph, in place",
            Self::Fused => "fused (predicted)",
        }
    }
}

/// The properties of a CPU that decide how much memory a model takes on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTraits {
    /// Channels in a block of ONNX Runtime's layout of images: 16 with AVX-512, 8 with AVX, 1 where it has no such
    /// layout.
    pub channel_block: usize,
    /// Cores, which bound how many instances run at once.
    pub cores: usize,
}

/// What a run of a graph allocates.
#[derive(Debug, Clone)]
pub struct GraphUsage {
    /// The tensors that a run makes.
    pub records: UsageRecords,
    /// Bytes of the inputs, which lie in the caller's memory.
    pub input_bytes: u64,
    /// Bytes of the outputs, which lie in the caller's memory as well.
    pub output_bytes: u64,
    /// Nodes whose inner tensors the records leave out.
    pub left_out: Vec<String>,
}

/// The usage records of `model` with the shapes of `inferred`, at a level of rewriting.
///
/// # Errors
/// [`UsageRecordsError::Problem`] where sizes add up to more than can be counted.
pub fn graph_usage(
    model: &OnnxModel,
    inferred: &InferredShapes,
    level: RewriteLevel,
    cpu: CpuTraits,
) -> Result<GraphUsage, UsageRecordsError> {
    let sharing = match level {
        RewriteLevel::AsWritten => InputSharing::Nothing,
        RewriteLevel::InPlace => InputSharing::Possible,
        RewriteLevel::Fused => return runtime_records(runtime_graph(model, inferred, cpu)),
    };
    let built = build(model, inferred, Constants::Run);
    let named = lives::buffers(&built.graph, &built.order, sharing);
    records_of(built, named)
}

/// The records of [`RewriteLevel::Fused`] without operators' scratch memory.
pub(crate) fn usage_without_workspace(
    model: &OnnxModel,
    inferred: &InferredShapes,
    cpu: CpuTraits,
) -> Result<GraphUsage, UsageRecordsError> {
    let mut built = runtime_graph(model, inferred, cpu);
    for node in &mut built.graph.nodes {
        node.scratch = 0;
    }
    runtime_records(built)
}

/// What the weights take once the model is loaded.
pub(crate) fn runtime_weights(
    model: &OnnxModel,
    inferred: &InferredShapes,
    cpu: CpuTraits,
) -> WeightBytes {
    weights::weights(model, &runtime_graph(model, inferred, cpu))
}

/// The graph that ONNX Runtime makes of a file, and the order in which it runs it.
fn runtime_graph(model: &OnnxModel, inferred: &InferredShapes, cpu: CpuTraits) -> Built {
    let mut built = build(model, inferred, Constants::Folded);
    built.graph.remove_unread();
    fuse::fuse(&mut built.graph);
    nchwc::block(&mut built.graph, cpu.channel_block);
    workspace::assign(&mut built.graph);
    built.order = built.graph.order();
    built
}

/// The records of what ONNX Runtime made of a graph.
fn runtime_records(built: Built) -> Result<GraphUsage, UsageRecordsError> {
    let named = reuse::buffers(&built.graph, &built.order);
    records_of(built, named)
}

/// These buffers, and what is said beside them.
fn records_of(
    built: Built,
    mut named: Vec<(String, Buffer)>,
) -> Result<GraphUsage, UsageRecordsError> {
    let Built {
        graph, left_out, ..
    } = built;
    let sum = |wanted: &dyn Fn(&graph::GraphTensor) -> bool| {
        let wanted = graph.tensors.iter().filter(|tensor| wanted(tensor));
        wanted
            .map(|tensor| tensor.bytes)
            .fold(0, u64::saturating_add)
    };
    make_unique(&mut named);
    Ok(GraphUsage {
        records: UsageRecords::new(named)?,
        input_bytes: sum(&|tensor| tensor.origin == TensorOrigin::Caller),
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
