//! `ModelInfer`: messages into requests and answers into messages.

use bytes::Bytes;
use skep_proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    model_infer_response::InferOutputTensor,
};
use skep_runtime::{InferRequest, InferResponse};
use skep_tensor::Tensor;
use skep_types::{DataType, Shape};
use skep_wire::{WireError, typed};

use crate::{api, error::ApiError};

/// Decodes a message; raw tensor data is not copied.
pub(super) fn decode(message: ModelInferRequest) -> Result<InferRequest, ApiError> {
    let model = message.model_name;
    for (key, parameter) in &message.parameters {
        check_parameter(key, parameter)?;
    }
    let raw = !message.raw_input_contents.is_empty();
    if raw && message.raw_input_contents.len() != message.inputs.len() {
        return Err(ApiError::invalid(format!(
            "expected {} raw_input_contents, one for each input of the request for model '{model}', got {}",
            message.inputs.len(),
            message.raw_input_contents.len()
        )));
    }
    let mut contents = message.raw_input_contents.into_iter();
    let mut request = InferRequest {
        id: message.id,
        ..Default::default()
    };
    for mut input in message.inputs {
        let tensor = tensor(&mut input, contents.next(), &model)?;
        request.inputs.push((input.name, tensor));
    }
    for output in message.outputs {
        check_output(&output)?;
        request.outputs.push(output.name);
    }
    Ok(request)
}

fn check_parameter(key: &str, parameter: &InferParameter) -> Result<(), ApiError> {
    if key.starts_with("triton_") && key != "triton_enable_empty_final_response" {
        return Err(api::reserved_parameter(key));
    }
    match parameter.parameter_choice {
        Some(_) => Ok(()),
        None => Err(ApiError::invalid(format!("parameter '{key}' has no value"))),
    }
}

fn check_output(output: &InferRequestedOutputTensor) -> Result<(), ApiError> {
    for (key, parameter) in &output.parameters {
        match key.as_str() {
            // Zero classes means none, as Triton's clients send it.
            "classification"
                if parameter.parameter_choice == Some(ParameterChoice::Int64Param(0)) => {}
            "classification" => {
                return Err(ApiError::unsupported("output parameter `classification`"));
            }
            key if key.starts_with("shared_memory_") => {
                return Err(ApiError::unsupported("shared memory"));
            }
            key => check_parameter(key, parameter)?,
        }
    }
    Ok(())
}

fn tensor(
    input: &mut InferInputTensor,
    raw: Option<Bytes>,
    model: &str,
) -> Result<Tensor, ApiError> {
    let name = &input.name;
    let invalid = |what: String| ApiError::invalid(format!("input '{name}': {what}"));
    if input
        .parameters
        .keys()
        .any(|key| key.starts_with("shared_memory_"))
    {
        return Err(ApiError::unsupported("shared memory"));
    }
    let datatype =
        DataType::from_protocol_name(&input.datatype).map_err(|e| invalid(e.to_string()))?;
    let shape = Shape::from_wire(&input.shape).map_err(|e| invalid(e.to_string()))?;
    let data = match (raw, input.contents.take()) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(format!(
                "contents field must not be specified when using raw_input_contents for '{name}' for model '{model}'"
            )));
        }
        (Some(raw), None) => raw,
        // Absent contents are empty ones: right for a tensor without elements.
        (None, contents) => typed::read(&contents.unwrap_or_default(), datatype)
            .map_err(|error| invalid(contents_error(&error)))?,
    };
    api::input_tensor(name, model, datatype, shape, data)
}

fn contents_error(error: &WireError) -> String {
    match error {
        WireError::NoTypedForm(_) => format!("{error}, send it in raw_input_contents"),
        _ => error.to_string(),
    }
}

/// Encodes an answer: always raw contents, as on Triton.
pub(super) fn encode(answer: InferResponse, id: String) -> ModelInferResponse {
    let mut message = ModelInferResponse {
        model_name: answer.model.to_string(),
        model_version: answer.version.to_string(),
        id,
        ..Default::default()
    };
    for output in answer.outputs {
        message.outputs.push(InferOutputTensor {
            name: output.name.to_string(),
            datatype: output.tensor.datatype().protocol_name().to_owned(),
            shape: output.tensor.shape().to_wire(),
            ..Default::default()
        });
        message
            .raw_output_contents
            .push(output.tensor.data().clone());
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::inference::InferTensorContents;

    fn message(
        datatype: &str,
        contents: InferTensorContents,
        raw: Vec<Bytes>,
    ) -> ModelInferRequest {
        let mut input = InferInputTensor {
            name: "x".into(),
            datatype: datatype.into(),
            shape: vec![1, 2],
            ..Default::default()
        };
        input.contents = Some(contents).filter(|c| *c != InferTensorContents::default());
        ModelInferRequest {
            model_name: "m".into(),
            inputs: vec![input],
            raw_input_contents: raw,
            ..Default::default()
        }
    }

    fn outcome(message: ModelInferRequest) -> Result<Bytes, String> {
        decode(message)
            .map(|request| request.inputs[0].1.data().clone())
            .map_err(|error| tonic::Status::from(error).message().to_owned())
    }

    #[test]
    fn typed_contents_narrow_exactly() {
        let ints = |values: &[i32]| InferTensorContents {
            int_contents: values.to_vec(),
            ..Default::default()
        };
        assert_eq!(
            outcome(message("INT8", ints(&[-1, 127]), vec![])).as_deref(),
            Ok(&[255u8, 127][..])
        );
        assert_eq!(
            outcome(message("INT8", ints(&[0, 128]), vec![])),
            Err("input 'x': 128 is no INT8".to_owned())
        );
    }

    #[test]
    fn half_precision_has_no_typed_contents() {
        assert_eq!(
            outcome(message("FP16", InferTensorContents::default(), vec![])),
            Err("input 'x': FP16 has no typed contents, send it in raw_input_contents".to_owned())
        );
    }

    #[test]
    fn raw_and_typed_contents_exclude_each_other() {
        let typed = InferTensorContents {
            fp32_contents: vec![1.0, 2.0],
            ..Default::default()
        };
        let raw = vec![Bytes::from(vec![0; 8])];
        assert!(outcome(message("FP32", InferTensorContents::default(), raw.clone())).is_ok());
        let error = outcome(message("FP32", typed, raw)).expect_err("both");
        assert!(error.contains("must not be specified"), "{error}");
    }

    #[test]
    fn sizes_are_checked() {
        let raw = vec![Bytes::from(vec![0; 7])];
        assert_eq!(
            outcome(message("FP32", InferTensorContents::default(), raw)),
            Err(
                "input byte size mismatch for input 'x' for model 'm'. Expected 8, got 7"
                    .to_owned()
            )
        );
    }
}
