//! Flags of the forms of requests and answers.

use clap::{Args, ValueEnum};
use skep_server::{HeaderPattern, InferenceOptions};

use crate::flag_values::boolean;

/// Triton's levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CompressionLevel {
    None,
    Low,
    Medium,
    High,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Requests and answers")]
pub(super) struct FormArgs {
    /// HTTP headers whose names match this regular expression, whatever their case, become parameters of their request
    /// for inference
    #[arg(long, value_name = "REGEX", default_value = "", value_parser = |text: &str| HeaderPattern::parse(text))]
    http_header_forward_pattern: HeaderPattern,
    /// The same for gRPC metadata
    #[arg(long, value_name = "REGEX", default_value = "", value_parser = |text: &str| HeaderPattern::parse(text))]
    grpc_header_forward_pattern: HeaderPattern,
    /// Whether answers over gRPC are compressed for clients that take it: none for no; low, medium and high, which are
    /// the same here, for yes
    #[arg(long, value_name = "LEVEL", default_value = "none")]
    grpc_infer_response_compression_level: CompressionLevel,
    /// Whether clients may register shared memory and name it as the place of inputs and outputs. They can then read
    /// and write every object in /dev/shm that the server may
    #[arg(long, value_name = "BOOL", default_value = "false", value_parser = boolean, action = clap::ArgAction::Set)]
    allow_client_shm: bool,
}

impl FormArgs {
    pub(super) fn forms(&self) -> InferenceOptions {
        InferenceOptions {
            http_headers: self.http_header_forward_pattern.clone(),
            grpc_headers: self.grpc_header_forward_pattern.clone(),
            grpc_compression: self.grpc_infer_response_compression_level != CompressionLevel::None,
            client_regions: self.allow_client_shm,
        }
    }
}
