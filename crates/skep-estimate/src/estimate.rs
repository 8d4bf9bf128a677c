//! The memory of a server with one model, before anything runs.
//!
//! In the classes of DNNMem (Gao and others, "Estimating GPU Memory Consumption of Deep Learning Models", ESEC/FSE
//! 2020), as they are for the ONNX Runtime backend on a CPU:
//!
//! | class | once per model | once per instance |
//! |---|---|---|
//! | weights | those of the file, without those that rewriting made part of others | |
//! | intermediates | | the planned block; inputs and outputs of a request |
//! | workspace | padding and copies that layouts of weights need | operators' scratch memory, within the planned block |
//! | runtime | the process, the library, the session's structures | a thread |
//!
//! Each running instance has a planned block. No more instances run at once than there are cores; the others wait
//! without a block. Nothing is fitted: weights and tensors are counted, and the constants are what a process without
//! them holds. What a heap keeps of memory that was freed is not counted; it keeps 8 MiB at most behind what is in use,
//! and more in between: right after a load, and where several instances run for the first time at once.

use skep_onnx::OnnxModel;
use skep_planner::{Budget, UsageRecordsError, auto};
use skep_shapes::InferredShapes;

use crate::usage::{
    CpuTraits, GraphUsage, RewriteLevel, graph_usage, runtime_weights, usage_without_workspace,
};

/// What a server holds beside its models: measured, as PSS, with a release build and ONNX Runtime 1.31.1 on Linux
/// x86-64, after it has answered. Pages of the library 17.8 MiB and of the binary 14.1 MiB, those of the C and C++
/// libraries 1.1 MiB; on the heap 8 MiB, most of it the library's table of operators; stacks, and the heap of small
/// blocks, 3.5 MiB.
const PROCESS_BYTES: u64 = 89 << 19;

/// What a session keeps for a node of the file, from its name to its kernel, with the gaps that rewriting leaves:
/// measured with networks of 111 to 440 nodes, 5 to 11 KiB. `Constant` is a weight, and no node of a session.
const NODE_BYTES: u64 = 8 << 10;

/// What an instance's thread touches of its stack and of its heap of small blocks.
const INSTANCE_BYTES: u64 = 128 << 10;

/// Steps of the search for a plan: ample for chains of layers, and a fraction of a second for anything.
const PLAN_NODES: u64 = 20_000;

/// What a model takes, with the shapes of one batch size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
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
    /// Instances that run at once, at most.
    cores: u64,
}

/// Bytes by class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryClasses {
    /// Weights of the model.
    pub weights: u64,
    /// Tensors of a run, and of the request that it answers.
    pub intermediates: u64,
    /// Layouts of weights beyond the file's, and scratch memory.
    pub workspace: u64,
    /// Process, library, session, threads.
    pub runtime: u64,
}

impl MemoryClasses {
    /// The sum of all classes.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.weights
            .saturating_add(self.intermediates)
            .saturating_add(self.workspace)
            .saturating_add(self.runtime)
    }
}

impl MemoryEstimate {
    /// For `model` served by the ONNX Runtime backend with a planned arena, each instance answering requests of the
    /// shapes of `inferred`.
    ///
    /// # Errors
    /// [`UsageRecordsError::Problem`] where sizes add up to more than can be counted.
    pub fn new(
        model: &OnnxModel,
        inferred: &InferredShapes,
        cpu: CpuTraits,
    ) -> Result<Self, UsageRecordsError> {
        let weights = runtime_weights(model, inferred, cpu);
        let usage = graph_usage(model, inferred, RewriteLevel::Fused, cpu)?;
        let block = planned(&usage_without_workspace(model, inferred, cpu)?);
        let nodes = model.graph().node.iter();
        let nodes = nodes.filter(|node| node.op_type() != "Constant").count() as u64;
        Ok(Self {
            weights: weights.plain,
            layouts: weights.layouts,
            session: nodes.saturating_mul(NODE_BYTES),
            block,
            scratch: planned(&usage).saturating_sub(block),
            request: usage.input_bytes.saturating_add(usage.output_bytes),
            cores: cpu.cores.max(1) as u64,
        })
    }

    /// With this many instances.
    #[must_use]
    pub fn with_instances(&self, instances: u64) -> MemoryClasses {
        let running = instances.min(self.cores);
        let requests = self.request.saturating_mul(instances);
        let scratch = self.scratch.saturating_mul(running);
        let threads = INSTANCE_BYTES.saturating_mul(instances);
        MemoryClasses {
            weights: self.weights,
            intermediates: self.block.saturating_mul(running).saturating_add(requests),
            workspace: self.layouts.saturating_add(scratch),
            runtime: PROCESS_BYTES
                .saturating_add(self.session)
                .saturating_add(threads),
        }
    }
}

/// The bytes of a plan.
fn planned(usage: &GraphUsage) -> u64 {
    auto(usage.records.problem(), &Budget::nodes(PLAN_NODES))
        .plan
        .size
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use skep_models::{Options, generate};
    use skep_proto::onnx::{
        AttributeProto, ModelProto, NodeProto, ValueInfoProto, tensor_proto::DataLocation,
    };
    use skep_shapes::{GivenShapes, infer_shapes};

    use super::*;

    const AVX_512: CpuTraits = CpuTraits {
        channel_block: 16,
        cores: 2,
    };

    fn estimate(kind: &str, batch: usize) -> MemoryEstimate {
        let kind = kind.parse().expect("a kind");
        let model = generate(&kind, &Options::default()).expect("a model");
        let model = OnnxModel::decode(model.to_bytes().expect("bytes").into()).expect("decodes");
        let given = GivenShapes {
            batch: Some(batch),
            ..GivenShapes::default()
        };
        let inferred = infer_shapes(&model, &given).expect("shapes");
        MemoryEstimate::new(&model, &inferred, AVX_512).expect("an estimate")
    }

    #[test]
    fn each_class_counts_what_it_says() {
        let estimate = estimate("mlp:layers=64x33x7", 4);
        let classes = estimate.with_instances(1);
        assert_eq!(classes.weights, 4 * (64 * 33 + 33 + 33 * 7 + 7));
        // Columns in sixteens: 48 for 33, 16 for 7.
        assert_eq!(classes.workspace, 4 * (64 * (48 - 33) + 33 * (16 - 7)));
        // The hidden layer for four rows, at a multiple of 64; rows of 64 in and 7 out.
        assert_eq!(classes.intermediates, 4 * 4 * 33 + 4 * 4 * (64 + 7));
        assert_eq!(
            classes.total(),
            classes.weights + classes.workspace + classes.intermediates + classes.runtime
        );
    }

    #[test]
    fn trees_count_as_weights_and_constants_not_as_nodes() {
        let node = |op: &str, domain: &str, output: &str| NodeProto {
            op_type: Some(op.to_owned()),
            domain: Some(domain.to_owned()),
            output: vec![output.to_owned()],
            ..Default::default()
        };
        let mut trees = node("TreeEnsembleRegressor", "ai.onnx.ml", "y");
        trees.input.push("x".to_owned());
        trees.attribute.push(AttributeProto {
            name: Some("nodes_featureids".to_owned()),
            ints: vec![0; 100],
            ..Default::default()
        });
        trees.attribute.push(AttributeProto {
            name: Some("nodes_values".to_owned()),
            floats: vec![0.0; 100],
            ..Default::default()
        });
        let model = generate(&"mlp".parse().expect("a kind"), &Options::default());
        let mut proto = model.expect("a model").to_proto().expect("a message");
        let graph = proto.graph.as_mut().expect("a graph");
        graph.initializer.clear();
        graph.input[0].name = Some("x".to_owned());
        graph.output = vec![ValueInfoProto {
            name: Some("y".to_owned()),
            ..Default::default()
        }];
        graph.node = vec![trees];
        let estimate = |proto: &ModelProto| {
            let model = OnnxModel::decode(proto.encode_to_vec().into()).expect("decodes");
            let given = GivenShapes {
                batch: Some(1),
                ..GivenShapes::default()
            };
            let inferred = infer_shapes(&model, &given).expect("shapes");
            let estimate = MemoryEstimate::new(&model, &inferred, AVX_512).expect("an estimate");
            estimate.with_instances(1)
        };
        let without = estimate(&proto);
        assert_eq!((without.weights, without.workspace), (1200, 5600));
        let mut constant = node("Constant", "", "c");
        constant.attribute.push(AttributeProto {
            name: Some("value_int".to_owned()),
            i: Some(1),
            ..Default::default()
        });
        proto.graph.as_mut().expect("a graph").node.push(constant);
        assert_eq!(estimate(&proto).runtime, without.runtime);
    }

    #[test]
    fn there_are_no_more_blocks_than_cores() {
        let estimate = estimate("cnn", 8);
        let [one, two, four] = [1, 2, 4].map(|n| estimate.with_instances(n));
        let request = 8 * (3 * 32 * 32 + 10) * 4;
        assert_eq!(two.intermediates, 2 * one.intermediates);
        assert_eq!(four.intermediates, two.intermediates + 2 * request);
        assert_eq!(four.weights, one.weights);
        assert!(four.runtime > one.runtime);
    }

    #[test]
    fn external_weights_count_by_their_declared_size() {
        let model = generate(&"cnn".parse().expect("a kind"), &Options::default());
        let mut proto = model.expect("a model").to_proto().expect("a message");
        for tensor in &mut proto.graph.as_mut().expect("a graph").initializer {
            if tensor.dims.len() > 1 {
                tensor.raw_data = None;
                tensor.data_location = Some(DataLocation::External.into());
            }
        }
        let model = OnnxModel::decode(proto.encode_to_vec().into()).expect("decodes");
        let given = GivenShapes {
            batch: Some(2),
            ..GivenShapes::default()
        };
        let inferred = infer_shapes(&model, &given).expect("shapes");
        let beside = MemoryEstimate::new(&model, &inferred, AVX_512).expect("an estimate");
        assert_eq!(beside, estimate("cnn", 2));
    }
}
