//! What fuzzing runs of the gRPC edge; see [`crate::fuzzing`].

use std::{collections::BTreeMap, io, sync::Arc};

use axum::body::{self, Body};
use bytes::Bytes;
use futures_util::{FutureExt, stream};
use prost::Message;
use skep_proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, RepositoryModelLoadRequest,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};
use skep_tensor::Charge;

use super::{
    infer,
    inflate::InflatedMessages,
    scan::{self, DecodingNeeds, ScanFault},
};
use crate::{
    bounds::{MAX_DIMS, MAX_PARAMETERS, MAX_TENSORS},
    fuzzing::checks::{MODEL, assert_consistent, assert_same_inputs, assert_same_parameters, echo},
    inference::OutputRegions,
};

/// An encoded `ModelInferRequest`. A message that the scan accepts has no more entries than allowed, and takes no more
/// memory decoded than the scan says.
pub fn grpc_infer(data: &[u8]) {
    let needs = scan::infer_request(data, usize::MAX);
    if let (Ok(message), Err(fault)) = (
        RepositoryModelLoadRequest::decode(data),
        scan::load_request(data),
    ) {
        let most = matches!(fault, ScanFault::TooMany { .. });
        assert!(most, "{fault}: {message:?}");
    }
    let message = match (
        ModelInferRequest::decode(Bytes::copy_from_slice(data)),
        needs,
    ) {
        (Ok(message), Ok(needs)) => {
            assert_within(&message, needs);
            message
        }
        // A message that the scan refuses is not decoded; what the scan finds malformed must not decode.
        (Ok(_), Err(fault)) => {
            assert!(matches!(fault, ScanFault::TooMany { .. }), "{fault}");
            return;
        }
        (Err(_), _) => return,
    };
    let Ok(decoded) = infer::decode(message, MODEL) else {
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
    // The outputs of an answer are written like the inputs of a request.
    let answer =
        infer::encode(echo(&sent), sent.id.clone(), &OutputRegions::default()).encode_to_vec();
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
    let Ok(read) = infer::decode(message, MODEL) else {
        panic!("an answer that cannot be read");
    };
    assert_eq!(read.request.id, sent.id);
    assert_same_parameters(&read.request.parameters, &sent.parameters);
    assert_same_inputs(&read.request.inputs, &sent.inputs);
}

/// A decoded message is no larger than the scan said.
fn assert_within(message: &ModelInferRequest, needs: DecodingNeeds) {
    let tensors = message.inputs.len() + message.outputs.len();
    assert!(tensors <= MAX_TENSORS && message.raw_input_contents.len() <= MAX_TENSORS);
    let texts = |texts: &[&String]| texts.iter().map(|text| text.capacity()).sum::<usize>();
    let parameters = |given: &BTreeMap<String, InferParameter>| {
        assert!(given.len() <= MAX_PARAMETERS);
        let value = |value: &InferParameter| match &value.parameter_choice {
            Some(ParameterChoice::StringParam(text)) => text.capacity(),
            _ => 0,
        };
        let entry = size_of::<String>() + size_of::<InferParameter>();
        let entries = given.iter();
        entries
            .map(|(key, text)| entry + key.capacity() + value(text))
            .sum::<usize>()
    };
    let mut bytes = texts(&[&message.model_name, &message.model_version, &message.id]);
    bytes += parameters(&message.parameters);
    bytes += message.inputs.capacity() * size_of::<InferInputTensor>();
    bytes += message.outputs.capacity() * size_of::<InferRequestedOutputTensor>();
    bytes += message.raw_input_contents.capacity() * size_of::<Bytes>();
    for input in &message.inputs {
        assert!(input.shape.len() <= MAX_DIMS);
        bytes += texts(&[&input.name, &input.datatype]) + parameters(&input.parameters);
        bytes += input.shape.capacity() * size_of::<i64>();
        if let Some(contents) = &input.contents {
            bytes += contents.bool_contents.capacity() * size_of::<bool>()
                + contents.int_contents.capacity() * size_of::<i32>()
                + contents.int64_contents.capacity() * size_of::<i64>()
                + contents.uint_contents.capacity() * size_of::<u32>()
                + contents.uint64_contents.capacity() * size_of::<u64>()
                + contents.fp32_contents.capacity() * size_of::<f32>()
                + contents.fp64_contents.capacity() * size_of::<f64>()
                + contents.bytes_contents.capacity() * size_of::<Bytes>();
        }
    }
    for output in &message.outputs {
        bytes += texts(&[&output.name]) + parameters(&output.parameters);
    }
    // A list begins with room for four elements, a text with eight bytes.
    let first = 64 * (1 + tensors) + 4 * size_of::<InferInputTensor>() * 3;
    assert!(
        bytes <= needs.passing + first,
        "{bytes} bytes, said {needs:?}"
    );
}

/// A byte that limits a decompressed message, a byte for the length of the pieces in which the rest arrives, and the
/// rest: messages with prefixes, possibly compressed. The length of the pieces must make no difference.
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
    // A truncated message passes unchanged, at the end.
    while let Some(([flag, length @ ..], tail)) = rest.split_first_chunk::<5>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).expect("32 bits");
        let Some((_, next)) = tail.split_at_checked(length) else {
            return;
        };
        assert_ne!(*flag, 1, "a message that is compressed still");
        rest = next;
    }
}

/// The output for a body that arrives in pieces; `None` if it is refused.
fn plain(body: &[u8], piece: usize, limit: usize) -> Option<Vec<u8>> {
    let pieces: Vec<io::Result<Bytes>> = body
        .chunks(piece)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    let messages = InflatedMessages::new(
        Body::from_stream(stream::iter(pieces)),
        limit,
        Arc::new(Charge::unbounded()),
    );
    let all = body::to_bytes(Body::new(messages), usize::MAX).now_or_never();
    Some(all.expect("no connection to wait for").ok()?.to_vec())
}
