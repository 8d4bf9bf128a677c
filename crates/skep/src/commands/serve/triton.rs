//! Triton's flags for what Skep does not do: endpoints of clouds, TensorFlow.
//!
//! A flag that only leaves something out starts the server and is named. One that opens what clients
//! then call, and that would not be there, is refused: the server would start, and each of these calls would fail.

use anyhow::bail;
use clap::Args;

use crate::flag_values::boolean;

const NO_SAGEMAKER: &str = "SageMaker's endpoints are not served";
const NO_VERTEX: &str = "Vertex AI's endpoints are not served";
const NO_TENSORFLOW: &str = "TensorFlow models are not served";
const NO_THREADS: &str = "calls are served by an asynchronous runtime of its own size";
const NO_BINDING: &str =
    "instances are bound to no cores or memory; `taskset` or `numactl` binds the server";

#[derive(Debug, Args)]
#[command(next_help_heading = "Accepted without effect")]
pub(super) struct TritonArgs {
    /// Instances are bound to no cores
    #[arg(long, value_name = "NAME,KEY=VALUE")]
    host_policy: Vec<String>,
    /// SageMaker's endpoints are not served; `true` is refused
    #[arg(long, value_name = "BOOL", value_parser = boolean, action = clap::ArgAction::Set)]
    allow_sagemaker: Option<bool>,
    /// SageMaker's endpoints are not served
    #[arg(long, value_name = "PORT")]
    sagemaker_port: Option<u16>,
    /// SageMaker's endpoints are not served
    #[arg(long, value_name = "FROM-TO")]
    sagemaker_safe_port_range: Option<String>,
    /// SageMaker's endpoints are not served
    #[arg(long, value_name = "N")]
    sagemaker_thread_count: Option<u32>,
    /// Vertex AI's endpoints are not served; `true` is refused
    #[arg(long, value_name = "BOOL", value_parser = boolean, action = clap::ArgAction::Set)]
    allow_vertex_ai: Option<bool>,
    /// Vertex AI's endpoints are not served
    #[arg(long, value_name = "PORT")]
    vertex_ai_port: Option<u16>,
    /// Vertex AI's endpoints are not served
    #[arg(long, value_name = "N")]
    vertex_ai_thread_count: Option<u32>,
    /// Vertex AI's endpoints are not served
    #[arg(long, value_name = "NAME")]
    vertex_ai_default_model: Option<String>,
    /// Calls over gRPC are served by an asynchronous runtime of its own size
    #[arg(long, value_name = "N")]
    grpc_infer_thread_count: Option<u32>,
    /// Answers over gRPC are freed when they are written
    #[arg(long, value_name = "N")]
    grpc_max_response_pool_size: Option<u32>,
    /// TensorFlow models are not served
    #[arg(long, value_name = "BOOL", value_parser = boolean, action = clap::ArgAction::Set)]
    tf_allow_soft_placement: Option<bool>,
    /// TensorFlow models are not served
    #[arg(long, value_name = "FRACTION")]
    tf_gpu_memory_fraction: Option<f64>,
    /// TensorFlow models are not served
    #[arg(long, value_name = "GPU:N:MIB")]
    tf_add_vgpu: Vec<String>,
}

impl TritonArgs {
    /// Refuses what asks for endpoints that are not served.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.allow_sagemaker == Some(true) {
            bail!(
                "--allow-sagemaker=true: {NO_SAGEMAKER}\n  try: without it, behind a proxy that passes `/ping` to \
                 `/v2/health/ready` and `/invocations` to `/v2/models/NAME/infer`"
            );
        }
        if self.allow_vertex_ai == Some(true) {
            bail!(
                "--allow-vertex-ai=true: {NO_VERTEX}\n  try: without it; Vertex AI takes a container with the routes `/v2/health/live` and \
                 `/v2/models/NAME/infer`, for requests to `rawPredict`"
            );
        }
        Ok(())
    }

    /// The flags that were given, each with why it means nothing.
    pub(super) fn notices(&self) -> impl Iterator<Item = (bool, String)> {
        let notice = |given, flag: &str, why: &str| (given, format!("--{flag}: {why}"));
        let clouds = [
            notice(
                self.allow_sagemaker.is_some(),
                "allow-sagemaker",
                NO_SAGEMAKER,
            ),
            notice(
                self.sagemaker_port.is_some(),
                "sagemaker-port",
                NO_SAGEMAKER,
            ),
            notice(
                self.sagemaker_safe_port_range.is_some(),
                "sagemaker-safe-port-range",
                NO_SAGEMAKER,
            ),
            notice(
                self.sagemaker_thread_count.is_some(),
                "sagemaker-thread-count",
                NO_SAGEMAKER,
            ),
            notice(self.allow_vertex_ai.is_some(), "allow-vertex-ai", NO_VERTEX),
            notice(self.vertex_ai_port.is_some(), "vertex-ai-port", NO_VERTEX),
            notice(
                self.vertex_ai_thread_count.is_some(),
                "vertex-ai-thread-count",
                NO_VERTEX,
            ),
            notice(
                self.vertex_ai_default_model.is_some(),
                "vertex-ai-default-model",
                NO_VERTEX,
            ),
        ];
        let others = [
            notice(!self.host_policy.is_empty(), "host-policy", NO_BINDING),
            notice(
                self.grpc_infer_thread_count.is_some(),
                "grpc-infer-thread-count",
                NO_THREADS,
            ),
            notice(
                self.grpc_max_response_pool_size.is_some(),
                "grpc-max-response-pool-size",
                "answers are freed when they are written",
            ),
            notice(
                self.tf_allow_soft_placement.is_some(),
                "tf-allow-soft-placement",
                NO_TENSORFLOW,
            ),
            notice(
                self.tf_gpu_memory_fraction.is_some(),
                "tf-gpu-memory-fraction",
                NO_TENSORFLOW,
            ),
            notice(!self.tf_add_vgpu.is_empty(), "tf-add-vgpu", NO_TENSORFLOW),
        ];
        clouds.into_iter().chain(others)
    }
}
