//! gRPC: `inference.GRPCInferenceService`, the health service, reflection.

mod health;
mod infer;
mod inflate;
mod logging;
mod parameters;
mod repository;
mod service;
mod stream;

use std::{future::Future, sync::Arc};

use skep_proto::{
    INFERENCE_DESCRIPTORS, inference::grpc_inference_service_server::GrpcInferenceServiceServer,
};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tonic::{codec::CompressionEncoding, transport::Server};
use tonic_health::pb::health_server::HealthServer;

use crate::server::{Shared, no_delay};

/// What a client may send of one request before it is read: with HTTP/2's 64 KiB a tensor of a megabyte would take
/// sixteen round trips.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// The same over all requests of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// The largest frame: fewer, larger frames cost less work a byte.
const FRAME_BYTES: u32 = 1 << 20;

/// Why gRPC cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("gRPC: {0}")]
    Transport(#[from] tonic::transport::Error),
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serves on an open port until `stop`, then lets the calls in flight finish.
pub(crate) async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    // Triton bounds messages by the protocol alone.
    let inference = GrpcInferenceServiceServer::new(service::Service::new(Arc::clone(&shared)))
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Deflate);
    let inference = if shared.forms.grpc_compression {
        inference
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Deflate)
    } else {
        inference
    };
    let restrictions = &shared.grpc_restrictions;
    let health = HealthServer::new(health::Health::new(Arc::clone(&shared)));
    let inference = inflate::Inflated::new(inference, shared.max_json_bytes);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(INFERENCE_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let connections = tokio_stream::wrappers::TcpListenerStream::new(listener).map(|connection| {
        connection.map(|mut stream| {
            no_delay(&mut stream);
            stream
        })
    });
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .add_service(restrictions.guard_service(inference))
        .add_service(restrictions.guard_service(health))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .serve_with_incoming_shutdown(connections, stop)
        .await?;
    Ok(())
}
