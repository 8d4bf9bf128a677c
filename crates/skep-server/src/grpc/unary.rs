//! `ModelInfer` without the machinery of other calls, since it is by far the most frequent one.
//!
//! One message comes in, one goes out: the body is read in one piece, the message is decoded in place, and the answer
//! is one frame and the status. tonic's stream of messages, with a buffer for each direction, costs about as much as
//! the rest of the call. tonic still serves this call if compression is used.
//!
//! Source: gRPC over HTTP/2, "Length-Prefixed-Message", "Responses".

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::{Body, HttpBody};
use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body::{Frame, SizeHint};
use prost::Message;
use skep_proto::inference::ModelInferResponse;
use skep_tensor::Charge;
use tonic::{Code, Status, metadata::MetadataMap};

use super::{
    infer::{self, Noted},
    message::{MAX_MESSAGE_BYTES, PREFIX_BYTES},
};
use crate::{
    access::AccessNote,
    edge::{self, AnswerFuture, Shortcut, UnreadBody},
    state::ServerState,
    traced::{self, CallTiming, TracedCall},
    verbose,
};

const PATH: &str = "/inference.GRPCInferenceService/ModelInfer";

const CONTENT_TYPE: &str = "application/grpc";

/// Answers plain `ModelInfer` calls.
pub(super) struct DirectCall(pub(super) Arc<ServerState>);

impl Shortcut for DirectCall {
    fn take(
        &self,
        request: Request<Body>,
        charge: &Arc<Charge>,
    ) -> Result<AnswerFuture, Request<Body>> {
        if !is_plain(&request) {
            return Err(request);
        }
        verbose::log_call(&request);
        let state = Arc::clone(&self.0);
        let charge = Arc::clone(charge);
        let (parts, body) = request.into_parts();
        Ok(Box::pin(async move {
            let metadata = MetadataMap::from_headers(parts.headers);
            let note = AccessNote::of(&parts.extensions);
            let timing = CallTiming::begin(&state.traces, traced::GRPC);
            let mut call = DirectInfer {
                state: &state,
                metadata: &metadata,
                note: &note,
                traced: None,
            };
            let answer = call.answer(body, &charge, timing).await;
            if let (Some(traced), Err(status)) = (&call.traced, &answer) {
                traced.failed(status.message());
            }
            let mut response = answer.unwrap_or_else(Status::into_http);
            TracedCall::answered(call.traced, &mut response);
            response
        }))
    }
}

/// A call under way.
struct DirectInfer<'a> {
    state: &'a ServerState,
    metadata: &'a MetadataMap,
    note: &'a AccessNote,
    /// Set when its message was received, if it is traced.
    traced: Option<TracedCall>,
}

impl DirectInfer<'_> {
    async fn answer(
        &mut self,
        body: Body,
        charge: &Arc<Charge>,
        timing: CallTiming,
    ) -> Result<Response<Body>, Status> {
        let received = infer::receive(message(body).await?, charge).await?;
        let (state, metadata) = (self.state, self.metadata);
        self.traced = timing.received(state, &received.model, metadata.as_ref());
        let noted = Noted {
            note: self.note,
            traced: self.traced.as_ref(),
        };
        let answer = infer::infer(state, metadata, received, charge, noted).await;
        let answer = answer.map_err(|failure| failure.error)?;
        infer::charge_encoding(&answer, 1, charge)?;
        success(&answer)
    }
}

/// Whether a request is a `ModelInfer` call without compression.
fn is_plain(request: &Request<Body>) -> bool {
    let headers = request.headers();
    let is = |name, accepts: fn(&[u8]) -> bool| headers.get(name).map(|v| accepts(v.as_bytes()));
    request.uri().path() == PATH
        && request.method() == Method::POST
        && is("content-type", |value| {
            value.starts_with(CONTENT_TYPE.as_bytes())
        }) == Some(true)
        && is("grpc-encoding", |value| value == b"identity") != Some(false)
}

/// The only message of a call.
async fn message(body: Body) -> Result<Bytes, Status> {
    // Tensor data comes last in a message, and most tensors fill whole cache lines: if a message ends on an aligned
    // address, its tensor begins on one.
    let end = |first: &[u8]| Some(PREFIX_BYTES + length(first)?);
    let whole = edge::read_body(body, PREFIX_BYTES + MAX_MESSAGE_BYTES, end);
    let mut whole = whole.await.map_err(|unread| match unread {
        UnreadBody::TooLong => Status::out_of_range(format!(
            "the message is longer than {MAX_MESSAGE_BYTES} bytes"
        )),
        UnreadBody::NoMemory => Status::resource_exhausted(
            "the system is out of memory for the message, try again later",
        ),
        UnreadBody::Failed(error) => match error.into_inner().downcast::<Status>() {
            Ok(status) => *status,
            Err(error) => Status::new(Code::Unknown, error.to_string()),
        },
    })?;
    match (whole.first(), length(&whole)) {
        (Some(0), Some(length)) if length == whole.len() - PREFIX_BYTES => {}
        (Some(1), _) => {
            return Err(Status::internal(
                "the message is flagged as compressed, but the call names no encoding",
            ));
        }
        (first, length) => {
            return Err(Status::internal(format!(
                "the call has a body of {} bytes, expected one message: a byte 0, its length in 4 bytes, and that many bytes; got {first:?} and {length:?}",
                whole.len()
            )));
        }
    }
    whole.advance(PREFIX_BYTES);
    Ok(whole)
}

/// The length of a message by its prefix; `None` if the prefix is incomplete.
fn length(body: &[u8]) -> Option<usize> {
    let prefix: &[u8; PREFIX_BYTES] = body.first_chunk()?;
    let [_, length @ ..] = *prefix;
    usize::try_from(u32::from_be_bytes(length)).ok()
}

fn success(answer: &ModelInferResponse) -> Result<Response<Body>, Status> {
    let length = answer.encoded_len();
    let Ok(prefix) = u32::try_from(length) else {
        return Err(Status::out_of_range(format!(
            "the answer has {length} bytes, more than a message can hold"
        )));
    };
    let mut message = Vec::new();
    message
        .try_reserve_exact(PREFIX_BYTES + length)
        .map_err(|error| Status::resource_exhausted(error.to_string()))?;
    message.push(0);
    message.extend_from_slice(&prefix.to_be_bytes());
    answer
        .encode(&mut message)
        .expect("the vector has room for the whole message");
    let mut response = Response::new(Body::new(Unary::Message(message.into())));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    Ok(response)
}

/// The body of an answer: the message, then the status.
enum Unary {
    Message(Bytes),
    Status,
    Over,
}

impl HttpBody for Unary {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let (frame, next) = match std::mem::replace(&mut *self, Self::Over) {
            Self::Message(message) => (Some(Frame::data(message)), Self::Status),
            Self::Status => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                (Some(Frame::trailers(trailers)), Self::Over)
            }
            Self::Over => (None, Self::Over),
        };
        *self = next;
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Over)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Message(message) => SizeHint::with_exact(message.len() as u64),
            Self::Status | Self::Over => SizeHint::with_exact(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use skep_proto::inference::ModelInferRequest;

    use super::*;

    async fn read(body: &[u8]) -> Result<String, (Code, String)> {
        let body = Body::from(body.to_vec());
        let read = async {
            let charge = Arc::new(Charge::unbounded());
            infer::receive(message(body).await?, &charge).await
        };
        read.await
            .map(|received| received.model)
            .map_err(|status| (status.code(), status.message().to_owned()))
    }

    fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).expect("short").to_be_bytes();
        [&[flag][..], &length, message].concat()
    }

    #[tokio::test]
    async fn a_call_is_one_message() {
        let message = ModelInferRequest {
            model_name: "m".to_owned(),
            ..Default::default()
        }
        .encode_to_vec();
        assert_eq!(read(&framed(0, &message)).await, Ok("m".to_owned()));
        assert_eq!(read(&framed(0, b"")).await, Ok(String::new()));
        let twice = [framed(0, &message), framed(0, &message)].concat();
        let cut = &framed(0, &message)[..6];
        for (body, part) in [
            (&b""[..], "a body of 0 bytes"),
            (&[0, 0], "a body of 2 bytes"),
            (cut, "a body of 6 bytes"),
            (&twice, "expected one message"),
            (&framed(2, &message), "got Some(2)"),
            (&framed(1, &message), "compressed"),
            (&framed(0, b"\xff"), "decode"),
        ] {
            let (code, text) = read(body).await.expect_err(part);
            assert_eq!(code, Code::Internal);
            assert!(text.contains(part), "{text}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_a_message_and_a_status() {
        let answer = ModelInferResponse {
            id: "7".to_owned(),
            ..Default::default()
        };
        let mut body = success(&answer).expect("short enough").into_body();
        let mut frames = Vec::new();
        while !body.is_end_stream() {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            frames.push(frame.expect("not over").expect("no error"));
        }
        let [message, status] = frames.try_into().expect("two frames");
        let message = message.into_data().expect("data");
        assert_eq!(message, framed(0, &answer.encode_to_vec()));
        let status = status.into_trailers().expect("trailers");
        assert_eq!(status["grpc-status"], "0");
    }
}
