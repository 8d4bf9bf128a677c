//! gRPC: `inference.GRPCInferenceService`, the health service, reflection.

mod calls;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod health;
mod infer;
mod inflate;
mod logging;
mod parameters;
mod repository;
mod scan;
mod service;
mod stream;
mod unary;

use std::sync::Arc;

use axum::Router;
use skep_proto::{
    INFERENCE_DESCRIPTORS, inference::grpc_inference_service_server::GrpcInferenceServiceServer,
};
use tonic::{codec::CompressionEncoding, service::Routes};
use tonic_health::pb::health_server::HealthServer;

use crate::{
    bounds::{MANAGEMENT_WEIGHT, MAX_MANAGEMENT_BYTES},
    edge,
    restrict::CallGroup,
    state::ServerState,
};

/// The largest message either way: Triton's, which is what an `int` holds. What a server has memory for bounds it first.
const MAX_MESSAGE_BYTES: usize = i32::MAX.unsigned_abs() as usize;

/// What a message begins with: whether it is compressed, and its length (u32, big-endian).
const PREFIX_BYTES: usize = 5;

/// The call of the inference service that a path names.
fn method(path: &str) -> Option<&str> {
    path.strip_prefix("/inference.GRPCInferenceService/")
}

/// Whether a call's messages are as large as tensors and files are; those of all others are short.
fn is_large(path: &str) -> bool {
    matches!(
        method(path),
        Some("ModelInfer" | "ModelStreamInfer" | "RepositoryModelLoad")
    )
}

/// What bounds the messages of a call. Large ones are charged again for what they become, when that is known; short ones
/// for the worst of it as they come.
pub(crate) fn message_bounds(path: &str) -> edge::MessageBounds {
    if is_large(path) {
        edge::MessageBounds {
            bytes: MAX_MESSAGE_BYTES,
            weight: 1,
            many: is_stream(path),
        }
    } else {
        edge::MessageBounds {
            bytes: MAX_MANAGEMENT_BYTES,
            weight: MANAGEMENT_WEIGHT,
            many: is_stream(path),
        }
    }
}

/// Whether a client may send a call's messages whenever it likes. All other calls take one.
fn is_stream(path: &str) -> bool {
    method(path) == Some("ModelStreamInfer") || path.ends_with("/ServerReflectionInfo")
}

/// All services.
///
/// # Errors
/// A descriptor that reflection cannot read, which would be a mistake in the build.
pub(crate) fn routes(
    state: &Arc<ServerState>,
) -> Result<edge::PortRoutes, tonic_reflection::server::Error> {
    let all = edge::PortRoutes::from(router(Arc::clone(state))?);
    // What asks for more than a message in and a message out is the services' business.
    if state.grpc_restrictions.restricts(CallGroup::Inference) || state.inference.grpc_compression {
        return Ok(all);
    }
    Ok(all.with_shortcut(Arc::new(unary::DirectCall(Arc::clone(state)))))
}

fn router(state: Arc<ServerState>) -> Result<Router, tonic_reflection::server::Error> {
    let inference =
        GrpcInferenceServiceServer::new(service::InferenceService::new(Arc::clone(&state)))
            .max_decoding_message_size(MAX_MANAGEMENT_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Deflate);
    let inference = if state.inference.grpc_compression {
        inference
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Deflate)
    } else {
        inference
    };
    let restrictions = &state.grpc_restrictions;
    let health = HealthServer::new(health::Health::new(Arc::clone(&state)));
    let inference = calls::LargeCalls::new(inference, Arc::clone(&state));
    let inference = inflate::Inflated::new(inference, state.max_json_bytes);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(INFERENCE_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Routes::new(restrictions.guard_service(inference))
        .add_service(restrictions.guard_service(health))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .prepare()
        .into_axum_router())
}
