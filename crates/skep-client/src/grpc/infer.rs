//! Encodes inference requests into messages, and decodes answers. Nothing in an answer is trusted.

use std::collections::BTreeMap;

use bytes::Bytes;
use skep_proto::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    model_infer_response::InferOutputTensor,
};
use skep_tensor::Tensor;
use skep_types::{DataType, Shape};
use skep_wire::typed;

use crate::{
    error::Error,
    infer::{Encoding, InferRequest, InferResponse, ParameterValue},
};

/// Encodes a request; raw data is not copied.
pub(super) fn encode(request: &InferRequest) -> Result<ModelInferRequest, Error> {
    let mut message = ModelInferRequest {
        model_name: request.model.clone(),
        model_version: request.version.map(|v| v.to_string()).unwrap_or_default(),
        id: request.id.clone(),
        parameters: request
            .parameters
            .iter()
            .map(|(key, value)| (key.clone(), parameter(value)))
            .collect(),
        ..Default::default()
    };
    for (name, tensor) in &request.inputs {
        let mut input = InferInputTensor {
            name: name.clone(),
            datatype: tensor.datatype().protocol_name().to_owned(),
            shape: tensor.shape().to_wire(),
            ..Default::default()
        };
        match request.encoding {
            Encoding::Binary => message.raw_input_contents.push(tensor.data().clone()),
            Encoding::Typed => {
                let contents = typed::write(tensor.view()).map_err(|error| {
                    Error::invalid(format!("input `{name}`: {error}, send it as raw contents"))
                })?;
                input.contents = Some(contents);
            }
        }
        message.inputs.push(input);
    }
    for output in &request.outputs {
        let mut parameters = BTreeMap::new();
        if let Some(classes) = output.classes {
            let classes = ParameterValue::Int64(classes.get().into());
            parameters.insert("classification".to_owned(), parameter(&classes));
        }
        message.outputs.push(InferRequestedOutputTensor {
            name: output.name.clone(),
            parameters,
        });
    }
    Ok(message)
}

fn parameter(value: &ParameterValue) -> InferParameter {
    let choice = match value {
        ParameterValue::Bool(value) => ParameterChoice::BoolParam(*value),
        ParameterValue::Int64(value) => ParameterChoice::Int64Param(*value),
        ParameterValue::Uint64(value) => ParameterChoice::Uint64Param(*value),
        ParameterValue::Double(value) => ParameterChoice::DoubleParam(*value),
        ParameterValue::String(value) => ParameterChoice::StringParam(value.clone()),
    };
    InferParameter {
        parameter_choice: Some(choice),
    }
}

/// Decodes an answer. Triton's data is always raw; other servers of the protocol may send typed contents.
pub(super) fn decode(message: ModelInferResponse) -> Result<InferResponse, String> {
    let raw_count = message.raw_output_contents.len();
    if raw_count != 0 && raw_count != message.outputs.len() {
        return Err(format!(
            "it has {} outputs, but raw contents for {raw_count}",
            message.outputs.len()
        ));
    }
    let mut raw = message.raw_output_contents.into_iter();
    let mut outputs = Vec::with_capacity(message.outputs.len());
    for output in message.outputs {
        let tensor = tensor(&output, raw.next())
            .map_err(|reason| format!("output `{}`: {reason}", output.name))?;
        outputs.push((output.name, tensor));
    }
    Ok(InferResponse {
        model: message.model_name,
        version: message.model_version,
        id: message.id,
        outputs,
    })
}

fn tensor(output: &InferOutputTensor, raw: Option<Bytes>) -> Result<Tensor, String> {
    let datatype = DataType::from_protocol_name(&output.datatype).map_err(|e| e.to_string())?;
    let shape = Shape::from_wire(&output.shape).map_err(|e| e.to_string())?;
    let data = match (raw, &output.contents) {
        (Some(_), Some(_)) => return Err("has both raw and typed contents".to_owned()),
        (Some(raw), None) => raw,
        (None, Some(contents)) => typed::read(contents, datatype).map_err(|e| e.to_string())?,
        // Absent contents are empty ones: right for a tensor without elements.
        (None, None) => {
            typed::read(&InferTensorContents::default(), datatype).map_err(|e| e.to_string())?
        }
    };
    Tensor::new(datatype, shape, data).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    use crate::WantedOutput;
    use prost::Message;
    use skep_types::ModelVersion;

    fn request(encoding: Encoding) -> InferRequest {
        let shape = Shape::new(&[1, 2]).expect("shape");
        let tensor = Tensor::new(
            DataType::Int16,
            shape,
            Bytes::from_static(&[1, 0, 255, 255]),
        );
        let mut request = InferRequest::new("m");
        request.version = Some(ModelVersion::ONE);
        request.encoding = encoding;
        request
            .inputs
            .push(("x".to_owned(), tensor.expect("tensor")));
        let mut wanted = WantedOutput::new("y");
        wanted.classes = NonZeroU32::new(3);
        request.outputs.push(wanted);
        request
            .parameters
            .insert("timeout".to_owned(), ParameterValue::Int64(-1));
        request
    }

    #[test]
    fn requests_are_raw_or_typed() {
        let raw = encode(&request(Encoding::Binary)).expect("encodes");
        assert_eq!(
            raw.raw_input_contents,
            [Bytes::from_static(&[1, 0, 255, 255])]
        );
        assert_eq!(raw.inputs[0].contents, None);
        assert_eq!((&*raw.model_version, &*raw.outputs[0].name), ("1", "y"));
        assert_eq!(
            raw.outputs[0].parameters["classification"].parameter_choice,
            Some(ParameterChoice::Int64Param(3))
        );
        assert_eq!(
            raw.parameters["timeout"].parameter_choice,
            Some(ParameterChoice::Int64Param(-1))
        );

        let typed = encode(&request(Encoding::Typed)).expect("encodes");
        assert!(typed.raw_input_contents.is_empty());
        let contents = typed.inputs[0].contents.as_ref().expect("contents");
        assert_eq!(contents.int_contents, [1, -1]);
    }

    #[test]
    fn half_precision_cannot_be_typed() {
        let mut request = request(Encoding::Typed);
        let shape = Shape::new(&[1]).expect("shape");
        let tensor = Tensor::new(DataType::Fp16, shape, Bytes::from_static(&[0, 0]));
        request.inputs[0].1 = tensor.expect("tensor");
        assert!(encode(&request).is_err());
    }

    fn answer(raw: Vec<Bytes>, contents: Option<InferTensorContents>) -> ModelInferResponse {
        ModelInferResponse {
            model_name: "m".to_owned(),
            outputs: vec![InferOutputTensor {
                name: "y".to_owned(),
                datatype: "INT8".to_owned(),
                shape: vec![2],
                contents,
                ..Default::default()
            }],
            raw_output_contents: raw,
            ..Default::default()
        }
    }

    fn ints(values: &[i32]) -> InferTensorContents {
        InferTensorContents {
            int_contents: values.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn raw_and_typed_answers_are_read() {
        let raw = vec![Bytes::from_static(&[1, 255])];
        for answer in [answer(raw, None), answer(vec![], Some(ints(&[1, -1])))] {
            let response = decode(answer).expect("decodes");
            assert_eq!(
                response.output("y").map(|t| t.data().to_vec()),
                Some(vec![1, 255])
            );
        }
    }

    #[test]
    fn contradictions_are_named() {
        let bytes = |n: usize| Bytes::from(vec![0; n]);
        let mut negative = answer(vec![bytes(2)], None);
        negative.outputs[0].shape = vec![-2];
        let mut huge = answer(vec![bytes(2)], None);
        huge.outputs[0].shape = vec![i64::MAX, i64::MAX];
        let mut unknown = answer(vec![bytes(2)], None);
        unknown.outputs[0].datatype = "INT9".to_owned();
        for (message, part) in [
            (
                answer(vec![bytes(2); 2], None),
                "1 outputs, but raw contents for 2",
            ),
            (answer(vec![bytes(3)], None), "3 bytes of data, expected 2"),
            (answer(vec![bytes(2)], Some(ints(&[]))), "both"),
            (
                answer(vec![], Some(ints(&[1, 128]))),
                "128 is not a valid INT8",
            ),
            (answer(vec![], None), "0 bytes of data"),
            (negative, "negative"),
            (huge, "more elements"),
            (unknown, "INT9"),
        ] {
            let error = decode(message).expect_err(part);
            assert!(error.contains(part), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_message_panics(bytes: Vec<u8>) {
            if let Ok(message) = ModelInferResponse::decode(bytes.as_slice()) {
                let _ = decode(message);
            }
        }
    }
}
