//! The memory of a server with one model, before anything runs.
//!
//! In the classes of DNNMem (Gao and others, "Estimating GPU Memory Consumption of Deep Learning Models", ESEC/FSE 2020),
//! as they are for the ONNX Runtime backend on a CPU:
//!
//! | class | once a model | once an instance |
//! |---|---|---|
//! | weights | those of the file, without those that rewriting made part of others | |
//! | intermediates | | the planned block; inputs and outputs of a request |
//! | workspace | padding and copies that layouts of weights need | scratch memory of operators, within the planned block |
//! | runtime | the process, the library, the session's structures | a thread |
//!
//! Nothing is fitted: weights and tensors are counted, and the constants are what a process without them holds.

use skep_onnx::{OnnxModel, infer::Inferred};
use skep_planner::{Budget, auto};

use crate::{
    RecordsError,
    onnx::{Machine, Usage, Variant, runtime_weights, usage, usage_without_workspace},
};

/// What a server holds that has a model of no size: measured, as PSS, with a release build and ONNX Runtime 1.31.1 on
/// Linux x86-64, after it has answered. Pages of the library 17.5 MiB and of the binary 11.5 MiB, those of the C and C++
/// libraries 2.1 MiB; on the heap 8.7 MiB, most of it the library's table of operators; stacks, and the heap of small
/// blocks, 3.8 MiB.
const PROCESS_BYTES: u64 = 43_600 << 10;

/// What a session keeps for a node of the file, from its name to its kernel, with the gaps that rewriting leaves:
/// measured with networks of 111 to 422 nodes, 5 to 11 KiB.
const NODE_BYTES: u64 = 8 << 10;

/// What an instance's thread touches of its stack and of its heap of small blocks.
const INSTANCE_BYTES: u64 = 128 << 10;

/// Steps of the search for a plan: ample for chains of layers, and a fraction of a second for anything.
const PLAN_NODES: u64 = 20_000;

/// What a model takes, with the shapes of one batch size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Weights, once.
    weights: u64,
    /// What their layouts take beyond that.
    layouts: u64,
    /// Structures of the session.
    session: u64,
    /// An instance's planned block, without workspace.
    block: u64,
    /// What operators' scratch memory adds to it.
    scratch: u64,
    /// Inputs and outputs of a request.
    request: u64,
}

/// Bytes by class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Classes {
    /// Weights of the model.
    pub weights: u64,
    /// Tensors of a run, and of the request that it answers.
    pub intermediates: u64,
    /// Layouts of weights beyond the file's, and scratch memory.
    pub workspace: u64,
    /// Process, library, session, threads.
    pub runtime: u64,
}

impl Classes {
    /// All of it.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.weights
            .saturating_add(self.intermediates)
            .saturating_add(self.workspace)
            .saturating_add(self.runtime)
    }
}

impl Estimate {
    /// For `model` served by the ONNX Runtime backend with a planned arena, each instance answering requests of the
    /// shapes of `inferred`.
    ///
    /// # Errors
    /// [`RecordsError::Problem`] where sizes add up to more than can be counted.
    pub fn new(
        model: &OnnxModel,
        inferred: &Inferred,
        machine: Machine,
    ) -> Result<Self, RecordsError> {
        let weights = runtime_weights(model, inferred, machine);
        let usage = usage(model, inferred, Variant::Fused, machine)?;
        let block = planned(&usage_without_workspace(model, inferred, machine)?);
        let nodes = model.graph().node.len() as u64;
        Ok(Self {
            weights: weights.plain,
            layouts: weights.layouts,
            session: nodes.saturating_mul(NODE_BYTES),
            block,
            scratch: planned(&usage).saturating_sub(block),
            request: usage.input_bytes.saturating_add(usage.output_bytes),
        })
    }

    /// With this many instances.
    #[must_use]
    pub const fn with_instances(&self, instances: u64) -> Classes {
        let each = self.block.saturating_add(self.request);
        Classes {
            weights: self.weights,
            intermediates: each.saturating_mul(instances),
            workspace: self
                .layouts
                .saturating_add(self.scratch.saturating_mul(instances)),
            runtime: PROCESS_BYTES
                .saturating_add(self.session)
                .saturating_add(INSTANCE_BYTES.saturating_mul(instances)),
        }
    }
}

/// The bytes of a plan.
fn planned(usage: &Usage) -> u64 {
    auto(usage.records.problem(), &Budget::nodes(PLAN_NODES))
        .plan
        .size
}
