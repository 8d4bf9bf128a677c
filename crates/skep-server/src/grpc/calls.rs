//! The calls whose messages may be large: inference, inference streams, loads with files. Their messages arrive
//! undecoded; they are scanned and charged, and decoded without delaying other calls.
//!
//! The generated service answers all other calls; their messages are short ([`message::message_bounds`]).

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Body;
use prost::Message;
use skep_tensor::Charge;
use tonic::{
    Request, Response, Status, Streaming,
    codec::{CompressionEncoding, EnabledCompressionEncodings},
    server::{Grpc, NamedService},
};
use tower::{Service, service_fn};

use super::{
    codec::{EncodedMessage, RawCodec, of_message},
    infer::{self, Noted},
    message::{self, MAX_MESSAGE_BYTES},
    repository, stream,
};
use crate::{
    access::AccessNote,
    edge::Leaving,
    state::ServerState,
    traced::{self, CallTiming, TracedCall},
};

/// Answers calls with large messages, and passes the others to the generated service.
#[derive(Clone)]
pub(super) struct LargeCalls<S> {
    service: S,
    state: Arc<ServerState>,
}

impl<S> LargeCalls<S> {
    pub(super) const fn new(service: S, state: Arc<ServerState>) -> Self {
        Self { service, state }
    }
}

impl<S: NamedService> NamedService for LargeCalls<S> {
    const NAME: &'static str = S::NAME;
}

type GrpcResponse = http::Response<tonic::body::Body>;

impl<S, B> Service<http::Request<B>> for LargeCalls<S>
where
    S: Service<http::Request<B>, Response = GrpcResponse, Error = Infallible>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    type Response = GrpcResponse;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<GrpcResponse, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let call = LargeCall::new(&self.state, &request);
        match message::method(request.uri().path()) {
            Some("ModelInfer") => Box::pin(async move { Ok(call.infer(request).await) }),
            Some("ModelStreamInfer") => Box::pin(async move { Ok(call.stream(request).await) }),
            Some("RepositoryModelLoad") => Box::pin(async move { Ok(call.load(request).await) }),
            _ => Box::pin(self.service.call(request)),
        }
    }
}

/// One call.
struct LargeCall {
    state: Arc<ServerState>,
    /// The charge for bytes that have arrived and belong to no message yet.
    incoming: Arc<Charge>,
    leaving: Arc<Charge>,
    note: AccessNote,
}

impl LargeCall {
    fn new<B>(state: &Arc<ServerState>, request: &http::Request<B>) -> Self {
        let extensions = request.extensions();
        let free = || Arc::new(Charge::unbounded());
        Self {
            state: Arc::clone(state),
            incoming: extensions.get().cloned().unwrap_or_else(free),
            leaving: extensions
                .get()
                .map_or_else(free, |Leaving(leaving)| Arc::clone(leaving)),
            note: AccessNote::of(extensions),
        }
    }

    fn grpc<M: Message + 'static>(&self) -> Grpc<RawCodec<M>> {
        let grpc = Grpc::new(RawCodec::new(&self.leaving))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        if self.state.inference.grpc_compression {
            let mut codings = EnabledCompressionEncodings::default();
            codings.enable(CompressionEncoding::Gzip);
            codings.enable(CompressionEncoding::Deflate);
            grpc.apply_compression_config(EnabledCompressionEncodings::default(), codings)
        } else {
            grpc
        }
    }

    async fn infer<B>(self, request: http::Request<B>) -> GrpcResponse
    where
        B: Body + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let mut grpc = self.grpc();
        let timing = CallTiming::begin(&self.state.traces, traced::GRPC);
        let traced = OnceLock::new();
        let handle = |request: Request<Bytes>| async {
            let (metadata, _, message) = request.into_parts();
            let charge = of_message(&self.incoming, &message);
            let received = infer::receive(message, &charge).await?;
            let call = timing.received(&self.state, &received.model, metadata.as_ref());
            let call = traced.get_or_init(|| call).as_ref();
            let noted = Noted {
                note: &self.note,
                traced: call,
            };
            let answer = infer::infer(&self.state, &metadata, received, &charge, noted).await;
            let message = answer.map_err(|failure| failure.error)?;
            infer::charge_encoding(&message, self.encodings(), &charge)?;
            Ok(Response::new(EncodedMessage {
                message,
                charge: Some(charge),
                traced: None,
            }))
        };
        let mut response = grpc.unary(service_fn(handle), request).await;
        let traced: Option<TracedCall> = traced.into_inner().flatten();
        if let (Some(call), Some(status)) = (&traced, Status::from_header_map(response.headers())) {
            call.failed(status.message());
        }
        TracedCall::answered(traced, &mut response);
        response
    }

    async fn stream<B>(self, request: http::Request<B>) -> GrpcResponse
    where
        B: Body + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let mut grpc = self.grpc();
        let handle = |request: Request<Streaming<Bytes>>| {
            let (metadata, _, requests) = request.into_parts();
            let state = Arc::clone(&self.state);
            let incoming = Arc::clone(&self.incoming);
            let note = self.note.clone();
            let encodings = self.encodings();
            let answers = stream::answers(state, metadata, requests, incoming, encodings, note);
            std::future::ready(Ok::<_, Status>(Response::new(Box::pin(answers))))
        };
        grpc.streaming(service_fn(handle), request).await
    }

    async fn load<B>(self, request: http::Request<B>) -> GrpcResponse
    where
        B: Body + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let mut grpc = self.grpc();
        let handle = |request: Request<Bytes>| async {
            let answer = repository::load(&self.state, request.into_inner(), &self.incoming);
            Ok(Response::new(EncodedMessage {
                message: answer.await?,
                charge: None,
                traced: None,
            }))
        };
        grpc.unary(service_fn(handle), request).await
    }

    /// How many times an answer is encoded before it leaves.
    fn encodings(&self) -> usize {
        1 + usize::from(self.state.inference.grpc_compression)
    }
}
