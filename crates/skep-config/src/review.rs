//! The decision about every field: read elsewhere, accepted without effect (a notice), or refused as not supported yet.
//!
//! Each message is taken apart without `..`, so a field added to the `.proto` does not compile until somebody decides
//! about it here. `docs/model-configuration.md` says the same to users; a test compares the two.

use skep_proto::inference::{self, model_config::SchedulingChoice};

use crate::{
    error::ConfigError,
    foreign::INSTEAD_OF_ENSEMBLE,
    model::{Context, Notice},
    options::GraphOptimization,
};

const TENSORRT_ONLY: &str = "no effect: it is for TensorRT models";
const WITHOUT_ACCELERATOR: &str = "remove it, or start with `--gpu-as-cpu`, which ignores accelerators: ONNX Runtime then runs \
                                   the model on the CPU by itself";
const NO_SEQUENCES: &str = "a model that keeps nothing between requests is served without it; one that does can take its state \
                            as an input and give the next one as an output";

/// What goes through the fields of one configuration.
pub(crate) struct Review<'a> {
    model: &'a str,
    platform: &'a str,
    gpu_as_cpu: bool,
    notices: &'a mut Vec<Notice>,
}

impl<'a> Review<'a> {
    pub(crate) fn new(
        context: &Context<'a>,
        platform: &'a str,
        notices: &'a mut Vec<Notice>,
    ) -> Self {
        Self {
            model: context.model.as_str(),
            platform,
            gpu_as_cpu: context.gpu_as_cpu,
            notices,
        }
    }

    /// Refuses what is not supported yet; notes what has no effect.
    pub(crate) fn config(mut self, proto: &inference::ModelConfig) -> Result<(), ConfigError> {
        let inference::ModelConfig {
            // Read and checked in model.rs.
            name: _,
            platform: _,
            backend: _,
            max_batch_size: _,
            default_model_filename: _,
            // Checked in version_policy.rs.
            version_policy: _,
            runtime,
            input,
            output,
            // Taken apart in ragged.rs.
            batch_input: _,
            batch_output: _,
            optimization,
            scheduling_choice,
            instance_group,
            cc_model_filenames,
            // Checked in metrics.rs.
            metric_tags: _,
            // Checked in parameters.rs; each value is a string and nothing else, see `parameter_text`.
            parameters: _,
            // Taken apart in warmup.rs.
            model_warmup: _,
            model_operations,
            // The calls of the edge look at it.
            model_transaction_policy: _,
            model_repository_agents,
            response_cache,
            // Taken apart in metrics.rs.
            model_metrics: _,
        } = proto;
        self.no_effect(
            !runtime.is_empty(),
            "runtime",
            "no effect: backends are built in, no library is loaded by name",
        );
        self.inputs(input)?;
        self.outputs(output)?;
        if let Some(optimization) = optimization {
            self.optimization(optimization)?;
        }
        self.scheduling(scheduling_choice.as_ref())?;
        for (index, group) in instance_group.iter().enumerate() {
            self.instance_group(index, group)?;
        }
        self.no_gpu(!cc_model_filenames.is_empty(), "cc_model_filenames");
        self.rest(
            model_operations.as_ref(),
            model_repository_agents.as_ref(),
            *response_cache,
        )
    }

    /// Refuses a field that is set, and says what to do `instead`.
    fn unsupported(
        &self,
        set: bool,
        field: impl Into<String>,
        instead: &str,
    ) -> Result<(), ConfigError> {
        if !set {
            return Ok(());
        }
        Err(ConfigError::Unsupported {
            model: self.model.to_owned(),
            field: field.into(),
            hint: Some(instead.to_owned()),
        })
    }

    fn no_effect(&mut self, set: bool, field: impl Into<String>, why: &str) {
        if set {
            self.notices.push(Notice::new(field, why.to_owned()));
        }
    }

    fn no_gpu(&mut self, set: bool, field: impl Into<String>) {
        if set {
            self.notices.push(Notice::about_gpus(field));
        }
    }

    fn inputs(&mut self, inputs: &[inference::ModelInput]) -> Result<(), ConfigError> {
        for (index, input) in inputs.iter().enumerate() {
            let inference::ModelInput {
                // Checked in tensors.rs.
                name: _,
                data_type: _,
                dims: _,
                reshape: _,
                format,
                is_shape_tensor,
                // Read in ragged.rs.
                allow_ragged_batch: _,
                // Held against the model's file by `ModelConfig::check_optional`.
                optional: _,
                is_non_linear_format_io,
            } = input;
            let field = |name: &str| format!("input[{index}].{name}");
            self.tensorrt_io(&field, *is_shape_tensor, *is_non_linear_format_io)?;
            self.no_effect(
                *format != 0,
                field("format"),
                "informative: data is passed on as it is",
            );
        }
        Ok(())
    }

    fn outputs(&mut self, outputs: &[inference::ModelOutput]) -> Result<(), ConfigError> {
        for (index, output) in outputs.iter().enumerate() {
            let inference::ModelOutput {
                // Checked in tensors.rs.
                name: _,
                data_type: _,
                dims: _,
                reshape: _,
                label_filename: _,
                is_shape_tensor,
                is_non_linear_format_io,
            } = output;
            let field = |name: &str| format!("output[{index}].{name}");
            self.tensorrt_io(&field, *is_shape_tensor, *is_non_linear_format_io)?;
        }
        Ok(())
    }

    /// Triton refuses these two, in these words, for anything but TensorRT.
    fn tensorrt_io(
        &self,
        field: &dyn Fn(&str) -> String,
        shape: bool,
        non_linear: bool,
    ) -> Result<(), ConfigError> {
        let refuse = |name: &str, text: &str| {
            Err(ConfigError::invalid(
                self.model,
                field(name),
                format!("{text} for {}", self.model),
            ))
        };
        if shape {
            return refuse(
                "is_shape_tensor",
                "shape tensors are only supported for TensorRT platform",
            );
        }
        if non_linear {
            let text = "Non-linear IO format is only supported for the TensorRT platform";
            return refuse("is_non_linear_format_io", text);
        }
        Ok(())
    }

    fn optimization(
        &mut self,
        policy: &inference::ModelOptimizationPolicy,
    ) -> Result<(), ConfigError> {
        let inference::ModelOptimizationPolicy {
            // Its level is read by `graph_optimization`.
            graph: _,
            priority,
            cuda,
            execution_accelerators,
            input_pinned_memory,
            output_pinned_memory,
            gather_kernel_buffer_threshold,
            eager_batching,
        } = policy;
        self.no_effect(*priority != 0, "optimization.priority", TENSORRT_ONLY);
        self.no_gpu(cuda.is_some(), "optimization.cuda");
        if let Some(accelerators) = execution_accelerators {
            let inference::model_optimization_policy::ExecutionAccelerators {
                gpu_execution_accelerator,
                cpu_execution_accelerator,
            } = accelerators;
            let field = |side: &str| {
                format!("optimization.execution_accelerators.{side}_execution_accelerator")
            };
            self.no_gpu(!gpu_execution_accelerator.is_empty(), field("gpu"));
            let is_set = !cpu_execution_accelerator.is_empty();
            if self.gpu_as_cpu {
                self.no_gpu(is_set, field("cpu"));
            } else {
                self.unsupported(is_set, field("cpu"), WITHOUT_ACCELERATOR)?;
            }
        }
        // Only what differs from Triton's default is worth a line: a configuration read back from a server holds the
        // default written out.
        for (side, buffer) in [
            ("input", input_pinned_memory),
            ("output", output_pinned_memory),
        ] {
            if let Some(inference::model_optimization_policy::PinnedMemoryBuffer { enable }) =
                buffer
            {
                self.no_gpu(!enable, format!("optimization.{side}_pinned_memory"));
            }
        }
        self.no_gpu(
            *gather_kernel_buffer_threshold != 0,
            "optimization.gather_kernel_buffer_threshold",
        );
        self.no_effect(
            *eager_batching,
            "optimization.eager_batching",
            TENSORRT_ONLY,
        );
        Ok(())
    }

    fn scheduling(&self, choice: Option<&SchedulingChoice>) -> Result<(), ConfigError> {
        match choice {
            // Taken apart in batching.rs.
            None | Some(SchedulingChoice::DynamicBatching(_)) => Ok(()),
            Some(SchedulingChoice::SequenceBatching(_)) => {
                self.unsupported(true, "sequence_batching", NO_SEQUENCES)
            }
            Some(SchedulingChoice::EnsembleScheduling(_)) => {
                self.unsupported(true, "ensemble_scheduling", INSTEAD_OF_ENSEMBLE)
            }
        }
    }

    fn instance_group(
        &mut self,
        index: usize,
        group: &inference::ModelInstanceGroup,
    ) -> Result<(), ConfigError> {
        let inference::ModelInstanceGroup {
            // Checked in instances.rs.
            name,
            kind: _,
            count: _,
            gpus: _,
            rate_limiter,
            secondary_devices,
            profile,
            passive: _,
            host_policy,
        } = group;
        let field = |name: &str| format!("instance_group[{index}].{name}");
        if !profile.is_empty() {
            let reason = format!(
                "instance group {name} of model {} and platform {} specifies profile field which is only supported for \
                 TensorRT models",
                self.model, self.platform
            );
            return Err(ConfigError::invalid(self.model, field("profile"), reason));
        }
        if let Some(inference::ModelRateLimiter {
            resources,
            priority,
        }) = rate_limiter
        {
            // In instances.rs.
            let _: &u32 = priority;
            self.unsupported(
                !resources.is_empty(),
                field("rate_limiter.resources"),
                "remove it: models share the cores by `--cpu-slots` and `rate_limiter { priority: N }`",
            )?;
        }
        self.unsupported(
            !host_policy.is_empty(),
            field("host_policy"),
            "remove it: `taskset` or `numactl` binds the whole server to cores",
        )?;
        let has_devices = !secondary_devices.is_empty();
        if self.gpu_as_cpu {
            self.no_gpu(has_devices, field("secondary_devices"));
        } else {
            self.no_effect(has_devices, field("secondary_devices"), TENSORRT_ONLY);
        }
        Ok(())
    }

    fn rest(
        &self,
        operations: Option<&inference::ModelOperations>,
        agents: Option<&inference::ModelRepositoryAgents>,
        cache: Option<inference::ModelResponseCache>,
    ) -> Result<(), ConfigError> {
        if let Some(inference::ModelOperations {
            op_library_filename,
        }) = operations
        {
            self.unsupported(
                !op_library_filename.is_empty(),
                "model_operations.op_library_filename",
                "export the model with the operators of ONNX itself; libraries of custom operators are not loaded",
            )?;
        }
        if let Some(inference::ModelRepositoryAgents { agents }) = agents {
            self.unsupported(
                !agents.is_empty(),
                "model_repository_agents",
                "remove it, and do what the agent does (a checksum, a decryption) before the files are put in the repository",
            )?;
        }
        if let Some(inference::ModelResponseCache { enable }) = cache {
            self.unsupported(
                enable,
                "response_cache.enable",
                "remove it: every request is then computed, and the answers are the same",
            )?;
        }
        Ok(())
    }
}

/// The text of one parameter.
pub(crate) fn parameter_text(parameter: &inference::ModelParameter) -> &str {
    let inference::ModelParameter { string_value } = parameter;
    string_value
}

/// How far the graph is rewritten; a level that ONNX Runtime's backend does not know means all, as in Triton.
pub(crate) fn graph_optimization(
    proto: &inference::ModelConfig,
    notices: &mut Vec<Notice>,
) -> GraphOptimization {
    let graph = proto
        .optimization
        .as_ref()
        .and_then(|optimization| optimization.graph);
    let Some(inference::model_optimization_policy::Graph { level }) = graph else {
        return GraphOptimization::All;
    };
    match level {
        0 => GraphOptimization::All,
        -1 => GraphOptimization::Basic,
        1 => GraphOptimization::Extended,
        2 => GraphOptimization::Disable,
        other => {
            let text = format!(
                "level {other} is none of -1, 0, 1, 2; it is taken as 0, all optimizations"
            );
            notices.push(Notice::new("optimization.graph.level", text));
            GraphOptimization::All
        }
    }
}
