//! What fuzzing runs of the gRPC edge; see [`crate::fuzzing`].

use bytes::Bytes;
use prost::Message;
use skep_proto::inference::{
    ModelInferRequest, ModelInferResponse, model_infer_request::InferInputTensor,
};

use super::infer;
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
