//! `optimization`: how far the graph is rewritten, and settings for accelerators.

use skep_proto::inference::{
    self,
    model_optimization_policy::{ExecutionAccelerators, Graph, PinnedMemoryBuffer},
};

use super::{
    options::GraphOptimization,
    review::{Review, TENSORRT_ONLY},
};
use crate::{error::ConfigError, vocabulary::notice::Notice};

const WITHOUT_ACCELERATOR: &str = "remove it, or start with `--gpu-as-cpu`, which ignores accelerators; ONNX Runtime then runs \
                                   the model on the CPU";

pub(super) fn review(
    review: &mut Review<'_>,
    policy: Option<&inference::ModelOptimizationPolicy>,
) -> Result<(), ConfigError> {
    let Some(inference::ModelOptimizationPolicy {
        // read below
        graph: _,
        priority,
        cuda,
        execution_accelerators,
        input_pinned_memory,
        output_pinned_memory,
        gather_kernel_buffer_threshold,
        eager_batching,
    }) = policy
    else {
        return Ok(());
    };
    review.no_effect(*priority != 0, "optimization.priority", TENSORRT_ONLY);
    review.no_gpu(cuda.is_some(), "optimization.cuda");
    if let Some(accelerators) = execution_accelerators {
        review_accelerators(review, accelerators)?;
    }
    // Only what differs from Triton's default is worth a line: a configuration read back from a server has the default
    // written out.
    for (side, buffer) in [
        ("input", input_pinned_memory),
        ("output", output_pinned_memory),
    ] {
        if let Some(PinnedMemoryBuffer { enable }) = buffer {
            review.no_gpu(!enable, format!("optimization.{side}_pinned_memory"));
        }
    }
    review.no_gpu(
        *gather_kernel_buffer_threshold != 0,
        "optimization.gather_kernel_buffer_threshold",
    );
    review.no_effect(
        *eager_batching,
        "optimization.eager_batching",
        TENSORRT_ONLY,
    );
    Ok(())
}

fn review_accelerators(
    review: &mut Review<'_>,
    accelerators: &ExecutionAccelerators,
) -> Result<(), ConfigError> {
    const GPU: &str = "optimization.execution_accelerators.gpu_execution_accelerator";
    const CPU: &str = "optimization.execution_accelerators.cpu_execution_accelerator";
    let ExecutionAccelerators {
        gpu_execution_accelerator,
        cpu_execution_accelerator,
    } = accelerators;
    review.no_gpu(!gpu_execution_accelerator.is_empty(), GPU);
    let is_set = !cpu_execution_accelerator.is_empty();
    if review.gpu_as_cpu {
        review.no_gpu(is_set, CPU);
        return Ok(());
    }
    review.unsupported(is_set, CPU, WITHOUT_ACCELERATOR)
}

/// Reads how far the graph is rewritten. As in Triton, a level that ONNX Runtime's backend does not know means all.
pub(crate) fn graph_optimization(
    proto: &inference::ModelConfig,
    notices: &mut Vec<Notice>,
) -> GraphOptimization {
    let graph = proto
        .optimization
        .as_ref()
        .and_then(|optimization| optimization.graph);
    let Some(Graph { level }) = graph else {
        return GraphOptimization::All;
    };
    match level {
        0 => GraphOptimization::All,
        -1 => GraphOptimization::Basic,
        1 => GraphOptimization::Extended,
        2 => GraphOptimization::Disable,
        other => {
            let text = format!(
                "unknown level {other}, expected -1, 0, 1 or 2; all optimizations run, as with 0"
            );
            notices.push(Notice::new("optimization.graph.level", text));
            GraphOptimization::All
        }
    }
}

/// Writes the defaults that Triton shows.
pub(crate) fn write_defaults(proto: &mut inference::ModelConfig) {
    let optimization = proto.optimization.get_or_insert_default();
    optimization
        .input_pinned_memory
        .get_or_insert(PinnedMemoryBuffer { enable: true });
    optimization
        .output_pinned_memory
        .get_or_insert(PinnedMemoryBuffer { enable: true });
}

/// Removes accelerators that the CPU serves instead: worker processes read the message without the flag.
pub(crate) fn remove_accelerators(proto: &mut inference::ModelConfig) {
    if let Some(optimization) = &mut proto.optimization {
        optimization.execution_accelerators = None;
    }
}
