//! Triton's flags that scripts pass and that mean nothing here.

use clap::Args;

use super::{limits::GrpcPings, triton::TritonArgs};
use crate::flag_values::boolean;

/// Each flag that is given is named once at the start.
#[derive(Debug, Args)]
#[command(next_help_heading = "Accepted without effect")]
pub(super) struct WithoutEffect {
    /// Connections are served by an asynchronous runtime of its own size
    #[arg(long, value_name = "N")]
    http_thread_count: Option<u32>,
    /// Backends are part of the binary
    #[arg(long, value_name = "PATH")]
    backend_directory: Option<String>,
    /// Repository agents are not served
    #[arg(long, value_name = "PATH")]
    repoagent_directory: Option<String>,
    /// The cache is part of the binary
    #[arg(long, value_name = "PATH")]
    cache_directory: Option<String>,
    /// Memory is allocated on demand
    #[arg(long, value_name = "BYTES")]
    pinned_memory_pool_byte_size: Option<u64>,
    /// GPUs are not used
    #[arg(long, value_name = "GPU:BYTES")]
    cuda_memory_pool_byte_size: Vec<String>,
    /// GPUs are not used
    #[arg(long, value_name = "GPU:BYTES")]
    cuda_virtual_address_size: Vec<String>,
    /// GPUs are not used
    #[arg(long, value_name = "VERSION")]
    min_supported_compute_capability: Option<f64>,
    /// GPUs are not used
    #[arg(long, value_name = "BOOL", value_parser = boolean, action = clap::ArgAction::Set)]
    enable_peer_access: Option<bool>,
    /// GPUs are not used
    #[arg(long, value_name = "GPU:FRACTION")]
    model_load_gpu_limit: Vec<String>,
    /// Tensors are not copied by threads of their own
    #[arg(long, value_name = "N")]
    buffer_manager_thread_count: Option<u32>,
    /// Requests over gRPC come into memory of their own
    #[arg(long, value_name = "N")]
    grpc_infer_allocation_pool_size: Option<u32>,
    #[command(flatten)]
    grpc_pings: GrpcPings,
    #[command(flatten)]
    triton: TritonArgs,
}

impl WithoutEffect {
    /// Refuses what asks for more than can be left out.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.triton.check()
    }

    /// The flags that were given, each with why it means nothing.
    pub(super) fn given(&self) -> Vec<String> {
        [
            (self.http_thread_count.is_some(), "--http-thread-count: connections are served by an asynchronous runtime of its own size"),
            (self.backend_directory.is_some(), "--backend-directory: backends are part of the binary"),
            (self.repoagent_directory.is_some(), "--repoagent-directory: repository agents are not served"),
            (self.cache_directory.is_some(), "--cache-directory: the response cache is part of the binary"),
            (self.pinned_memory_pool_byte_size.is_some(), "--pinned-memory-pool-byte-size: memory is allocated on demand"),
            (!self.cuda_memory_pool_byte_size.is_empty(), "--cuda-memory-pool-byte-size: GPUs are not used"),
            (!self.cuda_virtual_address_size.is_empty(), "--cuda-virtual-address-size: GPUs are not used"),
            (self.min_supported_compute_capability.is_some(), "--min-supported-compute-capability: GPUs are not used"),
            (self.enable_peer_access.is_some(), "--enable-peer-access: GPUs are not used"),
            (!self.model_load_gpu_limit.is_empty(), "--model-load-gpu-limit: GPUs are not used"),
            (self.buffer_manager_thread_count.is_some(), "--buffer-manager-thread-count: no threads copy tensors"),
            (self.grpc_infer_allocation_pool_size.is_some(), "--grpc-infer-allocation-pool-size: each request over gRPC has its own memory"),
        ]
        .into_iter()
        .chain(self.grpc_pings.notices())
        .map(|(given, text)| (given, text.to_owned()))
        .chain(self.triton.notices())
        .filter_map(|(given, text)| given.then_some(text))
        .collect()
    }
}
