//! Encodes an inference request as a body: JSON, followed by binary tensor data.
//!
//! Source: Open Inference Protocol, "Inference Request JSON Object"; Triton's "Binary Tensor Data Extension".

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Map, Number, Value, json};
use skep_tensor::Tensor;

use crate::{
    error::Error,
    infer::{Encoding, InferRequest, ParameterValue, WantedOutput},
};

/// The request's parameter that asks for outputs as binary data.
const BINARY_OUTPUT: &str = "binary_data_output";

/// A request's body and the headers that describe it.
#[derive(Debug, Default)]
pub(super) struct EncodedRequest {
    pub(super) chunks: VecDeque<Bytes>,
    pub(super) content_type: Option<&'static str>,
    /// The length of the JSON part, if binary data may follow.
    pub(super) header_length: Option<usize>,
}

impl EncodedRequest {
    pub(super) fn json(body: Bytes) -> Self {
        Self {
            chunks: VecDeque::from([body]),
            content_type: Some("application/json"),
            header_length: None,
        }
    }
}

/// Encodes a request; binary data is not copied.
pub(super) fn encode(request: &InferRequest) -> Result<EncodedRequest, Error> {
    let mut json = b"{".to_vec();
    if !request.id.is_empty() {
        extend(&mut json, &format!("\"id\":{},", json!(request.id)));
    }
    let parameters = parameters(request)?;
    if !parameters.is_empty() {
        let parameters = Value::Object(parameters);
        extend(&mut json, &format!("\"parameters\":{parameters},"));
    }
    extend(&mut json, "\"inputs\":[");
    for (index, (name, tensor)) in request.inputs.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        input(name, tensor, request.encoding, &mut json)?;
    }
    json.push(b']');
    if !request.outputs.is_empty() {
        let outputs: Value = request
            .outputs
            .iter()
            .map(|wanted| output(wanted, request.encoding))
            .collect();
        extend(&mut json, &format!(",\"outputs\":{outputs}"));
    }
    json.push(b'}');
    if request.encoding == Encoding::Typed {
        return Ok(EncodedRequest::json(json.into()));
    }
    let header_length = json.len();
    let blobs = request.inputs.iter().map(|(_, t)| t.data().clone());
    Ok(EncodedRequest {
        chunks: std::iter::once(Bytes::from(json))
            .chain(blobs.filter(|blob| !blob.is_empty()))
            .collect(),
        content_type: Some("application/octet-stream"),
        header_length: Some(header_length),
    })
}

/// A named output needs its own parameter: the request's parameter applies only if no output is named.
fn output(wanted: &WantedOutput, encoding: Encoding) -> Value {
    let mut parameters = Map::new();
    if encoding == Encoding::Binary {
        parameters.insert("binary_data".to_owned(), Value::Bool(true));
    }
    if let Some(classes) = wanted.classes {
        parameters.insert("classification".to_owned(), json!(classes));
    }
    if parameters.is_empty() {
        json!({ "name": wanted.name })
    } else {
        json!({ "name": wanted.name, "parameters": parameters })
    }
}

fn extend(json: &mut Vec<u8>, text: &str) {
    json.extend_from_slice(text.as_bytes());
}

fn input(name: &str, tensor: &Tensor, encoding: Encoding, json: &mut Vec<u8>) -> Result<(), Error> {
    let (datatype, shape) = (tensor.datatype(), tensor.shape());
    extend(
        json,
        &format!(
            "{{\"name\":{},\"datatype\":\"{datatype}\",\"shape\":{shape},",
            json!(name)
        ),
    );
    match encoding {
        Encoding::Binary => {
            let size = tensor.data().len();
            extend(
                json,
                &format!("\"parameters\":{{\"binary_data_size\":{size}}}"),
            );
        }
        Encoding::Typed => {
            extend(json, "\"data\":");
            skep_wire::json::write(tensor.view(), json).map_err(|error| {
                Error::invalid(format!("input `{name}`: {error}, send it as binary data"))
            })?;
        }
    }
    json.push(b'}');
    Ok(())
}

fn parameters(request: &InferRequest) -> Result<Map<String, Value>, Error> {
    let mut object = Map::new();
    for (key, parameter) in &request.parameters {
        if key == BINARY_OUTPUT {
            return Err(Error::invalid(format!(
                "parameter `{key}` follows from the request's encoding and cannot be set"
            )));
        }
        let value = match parameter {
            ParameterValue::Bool(value) => json!(value),
            ParameterValue::Int64(value) => json!(value),
            ParameterValue::Uint64(value) => json!(value),
            ParameterValue::String(value) => json!(value),
            ParameterValue::Double(value) => {
                Number::from_f64(*value).map(Value::Number).ok_or_else(|| {
                    Error::invalid(format!(
                        "parameter `{key}` is {value}, which is not a JSON number"
                    ))
                })?
            }
        };
        object.insert(key.clone(), value);
    }
    if request.encoding == Encoding::Binary {
        object.insert(BINARY_OUTPUT.to_owned(), Value::Bool(true));
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use skep_types::{DataType, Shape};

    fn request(encoding: Encoding) -> InferRequest {
        let tensor = |datatype, data: &'static [u8]| {
            Tensor::new(
                datatype,
                Shape::new(&[1, 2]).expect("shape"),
                Bytes::from_static(data),
            )
            .expect("tensor")
        };
        let mut request = InferRequest::new("m");
        request.id = "i\"d".to_owned();
        request.encoding = encoding;
        request.inputs = vec![
            ("a".to_owned(), tensor(DataType::Int16, &[1, 0, 255, 255])),
            (
                "b".to_owned(),
                tensor(DataType::Bytes, &[1, 0, 0, 0, b'x', 0, 0, 0, 0]),
            ),
        ];
        request.outputs = vec![WantedOutput::new("y")];
        request
            .parameters
            .insert("priority".to_owned(), ParameterValue::Uint64(u64::MAX));
        request
    }

    fn whole(encoded: &EncodedRequest) -> Vec<u8> {
        encoded.chunks.iter().flatten().copied().collect()
    }

    #[test]
    fn json_requests_hold_everything() {
        let encoded = encode(&request(Encoding::Typed)).expect("encodes");
        assert_eq!(encoded.header_length, None);
        assert_eq!(
            String::from_utf8(whole(&encoded)).as_deref(),
            Ok(
                r#"{"id":"i\"d","parameters":{"priority":18446744073709551615},"inputs":[{"name":"a","datatype":"INT16","shape":[1,2],"data":[1,-1]},{"name":"b","datatype":"BYTES","shape":[1,2],"data":["x",""]}],"outputs":[{"name":"y"}]}"#
            )
        );
    }

    #[test]
    fn binary_requests_end_in_the_inputs_bytes() {
        let encoded = encode(&request(Encoding::Binary)).expect("encodes");
        let body = whole(&encoded);
        let (json, blobs) = body.split_at(encoded.header_length.expect("binary"));
        assert_eq!(
            blobs,
            [1, 0, 255, 255, 1, 0, 0, 0, b'x', 0, 0, 0, 0].as_slice()
        );
        let json: Value = serde_json::from_slice(json).expect("JSON");
        assert_eq!(json["parameters"][BINARY_OUTPUT], true);
        assert_eq!(json["outputs"][0]["parameters"]["binary_data"], true);
        assert_eq!(json["inputs"][1]["parameters"]["binary_data_size"], 9);
        assert_eq!(json["inputs"][1].get("data"), None);
    }

    #[test]
    fn an_outputs_parameter_asks_for_classes() {
        let mut request = request(Encoding::Typed);
        request.outputs[0].classes = NonZeroU32::new(3);
        let json: Value =
            serde_json::from_slice(&whole(&encode(&request).expect("encodes"))).expect("JSON");
        let expected = json!({ "name": "y", "parameters": { "classification": 3 } });
        assert_eq!(json["outputs"][0], expected);
    }

    #[test]
    fn values_without_a_json_form_are_refused() {
        let mut half = request(Encoding::Typed);
        let shape = Shape::new(&[1]).expect("shape");
        let tensor = Tensor::new(DataType::Fp16, shape, Bytes::from_static(&[0, 0]));
        half.inputs[0].1 = tensor.expect("tensor");
        let mut binary = request(Encoding::Typed);
        let shape = Shape::new(&[1]).expect("shape");
        let tensor = Tensor::new(
            DataType::Bytes,
            shape,
            Bytes::from_static(b"\x01\0\0\0\xff"),
        );
        binary.inputs[1].1 = tensor.expect("tensor");
        let mut infinite = request(Encoding::Binary);
        infinite
            .parameters
            .insert("p".to_owned(), ParameterValue::Double(f64::INFINITY));
        let mut twice = request(Encoding::Binary);
        twice
            .parameters
            .insert(BINARY_OUTPUT.to_owned(), ParameterValue::Bool(false));
        for (request, part) in [
            (
                half,
                "input `a`: FP16 has no JSON form, send it as binary data",
            ),
            (
                binary,
                "input `b`: holds bytes that are not UTF-8, send it as binary data",
            ),
            (infinite, "`p`"),
            (twice, BINARY_OUTPUT),
        ] {
            let error = encode(&request).expect_err("refused").to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
