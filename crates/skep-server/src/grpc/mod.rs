//! gRPC: `inference.GRPCInferenceService`, the health service, reflection.

mod calls;
mod codec;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod health;
mod infer;
mod inflate;
mod logging;
mod message;
mod parameters;
mod repository;
mod scan;
mod service;
mod stream;
mod traces;
mod unary;

use std::sync::Arc;

use axum::Router;
use skep_proto::{
    INFERENCE_DESCRIPTORS, inference::grpc_inference_service_server::GrpcInferenceServiceServer,
};
use tonic::{codec::CompressionEncoding, service::Routes};
use tonic_health::pb::health_server::HealthServer;

use self::message::MAX_MESSAGE_BYTES;
pub(crate) use self::message::message_bounds;
use crate::{bounds::MAX_MANAGEMENT_BYTES, edge, restrict::CallGroup, state::ServerState};

/// All services.
///
/// # Errors
/// If reflection cannot read a descriptor, which would be a mistake in the build.
pub(crate) fn routes(
    state: &Arc<ServerState>,
) -> Result<edge::PortRoutes, tonic_reflection::server::Error> {
    let all = edge::PortRoutes::from(router(Arc::clone(state))?);
    // The shortcut handles neither restrictions nor compression.
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
