//! What fuzzing runs of the gRPC edge; see [`crate::fuzzing`].

use std::io;

use axum::body::{self, Body};
use bytes::Bytes;
use futures_util::{FutureExt, stream};
use prost::Message;
use skep_proto::inference::{
    ModelInferRequest, ModelInferResponse, model_infer_request::InferInputTensor,
};

use super::{infer, inflate::Messages};
use crate::fuzzing::{assert_consistent, assert_same_inputs, assert_same_parameters, echo};

/// A `ModelInferRequest` as it travels.
pub fn grpc_infer(data: &[u8]) {
    let Ok(message) = ModelInferRequest::decode(Bytes::copy_from_slice(data)) else {
        return;
    };
    let Ok(decoded) = infer::decode(message) else {
        return;
    };
    let sent = decoded.request;
    assert_consistent(&sent);
    assert!(
        decoded
            .classes
            .iter()
            .all(|(name, count)| { sent.outputs.contains(name) && *count > 0 })
    );
    // The outputs of an answer are written as the inputs of a request are.
    let answer = infer::encode(echo(&sent), sent.id.clone()).encode_to_vec();
    let answer = ModelInferResponse::decode(answer.as_slice()).expect("what was just encoded");
    let inputs = answer.outputs.into_iter().map(|output| InferInputTensor {
        name: output.name,
        datatype: output.datatype,
        shape: output.shape,
        ..Default::default()
    });
    let message = ModelInferRequest {
        id: answer.id,
        parameters: answer.parameters,
        inputs: inputs.collect(),
        raw_input_contents: answer.raw_output_contents,
        ..Default::default()
    };
    let Ok(read) = infer::decode(message) else {
        panic!("an answer that cannot be read");
    };
    assert_eq!(read.request.id, sent.id);
    assert_same_parameters(&read.request.parameters, &sent.parameters);
    assert_same_inputs(&read.request.inputs, &sent.inputs);
}

/// A byte that bounds what a message may become, one that says how long the pieces are in which the rest comes, and the
/// rest: messages with their prefixes, which may be compressed. The pieces make no difference.
pub fn grpc_messages(data: &[u8]) {
    let [bound, piece, body @ ..] = data else {
        return;
    };
    let limit = 1usize << (bound % 17);
    let whole = plain(body, body.len().max(1), limit);
    assert_eq!(whole, plain(body, usize::from(*piece).max(1), limit));
    let Some(mut rest) = whole.as_deref() else {
        return;
    };
    // What is cut short passes as it is, at the end.
    while let Some(([flag, length @ ..], tail)) = rest.split_first_chunk::<5>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).expect("32 bits");
        let Some((_, next)) = tail.split_at_checked(length) else {
            return;
        };
        assert_ne!(*flag, 1, "a message that is compressed still");
        rest = next;
    }
}

/// What comes out of a body that comes in pieces; `None` if it is refused.
fn plain(body: &[u8], piece: usize, limit: usize) -> Option<Vec<u8>> {
    let pieces: Vec<io::Result<Bytes>> = body
        .chunks(piece)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    let messages = Messages::new(Body::from_stream(stream::iter(pieces)), limit, None);
    let all = body::to_bytes(Body::new(messages), usize::MAX).now_or_never();
    Some(all.expect("no connection to wait for").ok()?.to_vec())
}
