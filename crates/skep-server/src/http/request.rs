//! Decodes an inference request from its JSON and binary parts.
//!
//! Source: Open Inference Protocol, "Inference Request JSON Object"; Triton's "Binary Tensor Data Extension".

use std::{borrow::Cow, cell::Cell};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use skep_runtime::{InferRequest, NamedTensor};
use skep_tensor::{Charge, OverBudget};
use skep_wire::json::Document;
use smallvec::SmallVec;

use super::{
    fault,
    input::{self, InputPlace},
    lean::Leaves,
    members::TensorMembers,
    object::ObjectOnly,
    parameters,
    sequence::{AtMost, Id},
};
use crate::{
    bounds::MAX_TENSORS,
    error::ApiError,
    inference::{OutputRegions, RegionInput, RegionUse},
};

/// A decoded request, and the encoding of its outputs.
pub(super) struct DecodedRequest {
    pub(super) request: InferRequest,
    pub(super) wanted: OutputEncoding,
    /// Inputs that are not in the request yet, and outputs that do not travel with the response.
    pub(super) regions: RegionUse,
}

/// How outputs travel.
#[derive(Debug, Default)]
pub(super) struct OutputEncoding {
    /// All travel as binary data; only if the request names no output.
    pub(super) all_binary: bool,
    /// The outputs that travel as binary data.
    pub(super) binary: Vec<String>,
    /// The outputs that are replaced by classes, and how many classes.
    pub(super) classes: Vec<(String, u64)>,
    /// The outputs that are in regions, which comes before binary data.
    pub(super) regions: OutputRegions,
}

/// How one output travels.
#[derive(Debug, Clone, Copy)]
pub(super) enum OutputForm {
    /// As JSON.
    Json,
    /// As binary data behind the JSON part.
    Binary,
    /// Not at all: it is in a region.
    Region,
}

impl OutputEncoding {
    /// How an output travels.
    pub(super) fn form(&self, output: &NamedTensor) -> OutputForm {
        if self.regions.of(&output.name).is_some() {
            return OutputForm::Region;
        }
        if self.all_binary || self.binary.iter().any(|name| **name == *output.name) {
            return OutputForm::Binary;
        }
        OutputForm::Json
    }

    /// Whether an output travels as binary data.
    pub(super) fn is_binary(&self, output: &NamedTensor) -> bool {
        matches!(self.form(output), OutputForm::Binary)
    }
}

#[derive(Deserialize)]
struct RequestJson<'a> {
    #[serde(borrow, default)]
    id: Option<Id<'a>>,
    // Kept as text: a bare NaN in it must not become a number.
    #[serde(borrow, default)]
    parameters: Option<&'a RawValue>,
    #[serde(borrow)]
    inputs: AtMost<[ObjectOnly<input::InputJson<'a>>; 0], MAX_TENSORS>,
    #[serde(borrow, default)]
    outputs: Option<AtMost<[ObjectOnly<OutputJson<'a>>; 0], MAX_TENSORS>>,
}

#[derive(Deserialize)]
struct OutputJson<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default)]
    parameters: Option<TensorMembers>,
}

/// Decodes a body whose JSON part has `header_length` bytes (`None`: all of it). Binary data is not copied; data in JSON is
/// added to `charge` before it is read.
pub(super) fn decode(
    body: &Bytes,
    header_length: Option<usize>,
    model: &str,
    charge: &Charge,
) -> Result<DecodedRequest, ApiError> {
    let json_bytes = header_length.unwrap_or(body.len());
    let json = body.get(..json_bytes).ok_or_else(|| {
        ApiError::invalid(format!(
            "the request's body has {} bytes, Inference-Header-Content-Length says that its JSON part alone has {json_bytes}",
            body.len()
        ))
    })?;
    let document = Document::new(json);
    let copied_bytes = Cell::new(0);
    let parsed: Result<ObjectOnly<RequestJson<'_>>, Unparsed> = document.parse_within(
        |json| match str::from_utf8(json) {
            // UTF-8 is checked once, instead of string by string.
            Ok(text) => serde_json::from_str(text),
            Err(_) => serde_json::from_slice(json),
        },
        |bytes| {
            copied_bytes.set(bytes);
            charge.add(bytes).map_err(Unparsed::NoMemory)
        },
    );
    let ObjectOnly(parsed) = parsed.map_err(|unparsed| match unparsed {
        Unparsed::Json(error) => fault::find(&document, &error),
        Unparsed::NoMemory(over) => over.into(),
    })?;
    let texts = text_bytes(&parsed, &document);
    if texts > input::UNCHARGED_BYTES {
        charge.add(texts)?;
    }
    let mut binary = input::BinaryPart {
        rest: body.slice(json_bytes..),
        announced: header_length.is_some(),
        model,
    };
    let mut request = InferRequest {
        id: parsed.id.map_or_else(String::new, |Id(id)| id.into_owned()),
        ..Default::default()
    };
    let outputs = parsed
        .outputs
        .map_or_else(SmallVec::new, |outputs| outputs.0);
    let tensors = parsed.inputs.0.len() + outputs.len();
    if tensors > MAX_TENSORS {
        return Err(ApiError::invalid(format!(
            "the request has {tensors} inputs and outputs, at most {MAX_TENSORS} are taken"
        )));
    }
    let mut regions = RegionUse::default();
    for (position, ObjectOnly(input)) in parsed.inputs.0.into_iter().enumerate() {
        let place = input::place(&request.id, &input, &document, &mut binary, charge)?;
        let name = input.name.into_owned();
        match place {
            InputPlace::Request(tensor) => request.inputs.push((name, tensor)),
            InputPlace::Region(datatype, shape, span) => regions.inputs.push(RegionInput {
                position,
                name,
                datatype,
                shape,
                span,
            }),
        }
    }
    if !binary.rest.is_empty() {
        return Err(ApiError::invalid(format!(
            "unexpected additional input data for model '{model}'"
        )));
    }
    let mut wanted = OutputEncoding::default();
    let mut binary_output = false;
    if let Some(given) = parsed.parameters {
        let Leaves(given) = serde_json::from_str(document.text(given))
            .map_err(|error| fault::json_error(&error))?;
        binary_output = parameters::of_request(&given, &mut request)?;
    }
    for ObjectOnly(output) in outputs {
        output_parameters(&output, &mut wanted, &mut regions)?;
        request.outputs.push(output.name.into_owned());
    }
    // An output's own parameter takes precedence; a named output without one travels as JSON.
    wanted.all_binary = binary_output && request.outputs.is_empty();
    charge.give_back(copied_bytes.get());
    Ok(DecodedRequest {
        request,
        wanted,
        regions,
    })
}

/// Bytes of text that a decoded request keeps: names, and parameters as JSON and decoded.
fn text_bytes(parsed: &RequestJson<'_>, document: &Document<'_>) -> usize {
    let id = parsed.id.as_ref().map_or(0, |Id(id)| id.len());
    let inputs = parsed.inputs.0.iter().map(|input| input.0.name.len());
    let outputs = parsed.outputs.iter().flat_map(|outputs| &outputs.0);
    let names = inputs.chain(outputs.map(|output| output.0.name.len()));
    let parameters = parsed
        .parameters
        .map_or(0, |given| document.text(given).len());
    id + names.sum::<usize>() + 2 * parameters
}

/// Why a document is not parsed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unparsed {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    NoMemory(OverBudget),
}

fn output_parameters(
    output: &OutputJson<'_>,
    wanted: &mut OutputEncoding,
    regions: &mut RegionUse,
) -> Result<(), ApiError> {
    let Some(members) = &output.parameters else {
        return Ok(());
    };
    let mut classes = 0;
    for (key, value) in members.iter() {
        match key {
            "binary_data" if parameters::boolean(key, value)? => {
                wanted.binary.push(output.name.clone().into_owned());
            }
            "classification" => {
                let count = value.as_u64().ok_or_else(|| {
                    ApiError::invalid(
                        "Unable to set 'classification': attempt to access JSON non-unsigned-integer as unsigned-integer",
                    )
                })?;
                // 0 classes mean the output itself.
                classes = count;
                if count > 0 {
                    wanted
                        .classes
                        .push((output.name.clone().into_owned(), count));
                }
            }
            _ => {}
        }
    }
    match members.span(&output.name)? {
        Some(span) => regions.add_output(&output.name, span, classes),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_json(json: &str) -> Result<DecodedRequest, ApiError> {
        decode(
            &Bytes::copy_from_slice(json.as_bytes()),
            None,
            "m",
            &Charge::unbounded(),
        )
    }

    fn message(result: Result<DecodedRequest, ApiError>) -> String {
        match result {
            Ok(_) => "ok".to_owned(),
            Err(error) => tonic::Status::from(error).message().to_owned(),
        }
    }

    #[test]
    fn data_may_come_before_its_datatype() {
        let decoded = decode_json(
            r#"{"outputs":[{"name":"y","parameters":{"binary_data":true}}],"id":7,
                "inputs":[{"data":[[1,2],[3,4]],"shape":[2,2],"datatype":"INT16","name":"x"}]}"#,
        )
        .unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!(decoded.request.id, "7");
        assert_eq!(
            decoded.request.inputs[0].1.data().as_ref(),
            [1, 0, 2, 0, 3, 0, 4, 0]
        );
        assert_eq!(decoded.wanted.binary, ["y"]);
    }

    #[test]
    fn binary_data_is_taken_in_order_and_counted() {
        let json = r#"{"inputs":[
            {"name":"a","shape":[2],"datatype":"UINT8","parameters":{"binary_data_size":2}},
            {"name":"b","shape":[1],"datatype":"UINT8","data":[9]},
            {"name":"c","shape":[1],"datatype":"UINT8","parameters":{"binary_data_size":1}}]}"#;
        let body = |tail: &[u8]| Bytes::from([json.as_bytes(), tail].concat());
        let decoded = decode(
            &body(&[1, 2, 3]),
            Some(json.len()),
            "m",
            &Charge::unbounded(),
        )
        .unwrap_or_else(|e| panic!("{e:?}"));
        let data: Vec<&[u8]> = decoded
            .request
            .inputs
            .iter()
            .map(|(_, t)| t.data().as_ref())
            .collect();
        assert_eq!(data, [&[1u8, 2][..], &[9], &[3]]);
        for (tail, expected) in [
            (
                &[1u8][..],
                "unexpected size for input 'a', expecting 1 additional bytes for model 'm'",
            ),
            (
                &[1, 2, 3, 4],
                "unexpected additional input data for model 'm'",
            ),
        ] {
            assert_eq!(
                message(decode(
                    &body(tail),
                    Some(json.len()),
                    "m",
                    &Charge::unbounded()
                )),
                expected
            );
        }
    }

    #[test]
    fn bare_nan_and_infinity_are_numbers() {
        let json = r#"{"id":"NaN","parameters":{"mine":"NaN"},"inputs":[
            {"data":[NaN,-Infinity],"name":"x NaN","shape":[2],"datatype":"FP64"},
            {"name":"b","shape":[1],"datatype":"UINT8","parameters":{"binary_data_size":1}},
            {"name":"s","shape":[2],"datatype":"BYTES","data":["NaN","[Infinity"]}]}"#;
        let body = Bytes::from([json.as_bytes(), &[7]].concat());
        let decoded = decode(&body, Some(json.len()), "m", &Charge::unbounded())
            .unwrap_or_else(|e| panic!("{e:?}"));
        let inputs = &decoded.request.inputs;
        assert_eq!(
            (&*decoded.request.id, &*inputs[0].0),
            ("NaN", "x NaN"),
            "strings stay strings"
        );
        assert_eq!(
            inputs[0].1.data(),
            &[f64::NAN.to_le_bytes(), f64::NEG_INFINITY.to_le_bytes()].concat()
        );
        assert_eq!(inputs[1].1.data().as_ref(), [7]);
        let texts = [b"NaN".as_slice(), b"[Infinity"];
        assert_eq!(inputs[2].1.data(), &skep_tensor::encode_strings(texts));

        for json in [
            r#"{"inputs":[],"id":NaN}"#,
            r#"{"inputs":[],"parameters":NaN}"#,
            r#"{"inputs":[],"parameters":{"mine":NaN}}"#,
            r#"{"inputs":NaN}"#,
            r#"{"inputs":[NaN]}"#,
            r#"{"inputs":[{"name":NaN,"shape":[1],"datatype":"FP32","data":[1]}]}"#,
            r#"{"inputs":[{"name":"x","shape":[Infinity],"datatype":"FP32","data":[1]}]}"#,
            r#"{"inputs":[],"outputs":NaN}"#,
            r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1NaN]}]}"#,
        ] {
            let text = message(decode_json(json));
            let refused = ["failed to parse", "Unable to parse"];
            assert!(
                refused.iter().any(|start| text.starts_with(start)),
                "{json}: {text}"
            );
        }
    }

    #[test]
    fn impossible_data_is_reported_in_tritons_words() {
        for (datatype, data, expected) in [
            (
                "FP32",
                "[1,2]",
                "Shape does not match true shape of 'data' field: expected 1 elements, got 2",
            ),
            ("FP32", "[1e39]", "1e39 is not a valid FP32"),
            ("FP64", "[-1e400]", "-1e400 is not a valid FP64"),
            ("FP32", "[\"NaN\"]", "\"NaN\" is not a valid FP32"),
            ("FP32", "[NaN,\"NaN\"]", "\"NaN\" is not a valid FP32"),
            ("INT32", "[NaN]", "NaN is not a valid INT32"),
            ("BYTES", "[NaN]", "NaN is not a valid BYTES"),
        ] {
            let json = format!(
                r#"{{"inputs":[{{"name":"x","shape":[1],"datatype":"{datatype}","data":{data}}}]}}"#
            );
            assert_eq!(
                message(decode_json(&json)),
                format!("Unable to parse 'data': {expected}, in input 'x'")
            );
        }
    }

    #[test]
    fn each_fault_of_a_request_is_named() {
        for (json, part) in [
            ("{", "failed to parse the request JSON buffer"),
            ("[]", "failed to parse the request JSON buffer"),
            (
                "{}",
                "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'",
            ),
            (
                r#"{"inputs":{}}"#,
                "Unable to parse 'inputs': attempt to access JSON non-array as array",
            ),
            (
                r#"{"inputs":[],"id":[1]}"#,
                "Unable to parse 'id': attempt to access JSON non-string as string",
            ),
            (
                r#"{"inputs":[],"outputs":5}"#,
                "Unable to parse 'outputs': attempt to access JSON non-array as array",
            ),
            (
                r#"{"inputs":[],"outputs":[{}]}"#,
                "Unable to parse 'name': attempt to access non-existing object member 'name'",
            ),
            (
                r#"{"inputs":[{"name":"x","datatype":"FP32","data":[NaN]}]}"#,
                "Unable to parse 'shape': attempt to access non-existing object member 'shape'",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[1.5],"datatype":"FP32","data":[1]}]}"#,
                "Unable to parse 'shape': attempt to access JSON non-unsigned-integer as unsigned-integer",
            ),
            (
                r#"{"inputs":[],"parameters":{"mine":1},}"#,
                "failed to parse the request JSON buffer",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP31","data":[1]}]}"#,
                "unknown datatype `FP31`",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[-1],"datatype":"FP32","data":[1]}]}"#,
                "Unable to parse 'shape': attempt to access JSON non-unsigned-integer as unsigned-integer",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32"}]}"#,
                "But no field is set",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}"#,
                "must specify valid 'Inference-Header-Content-Length'",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[9223372036854775807,9],"datatype":"FP32","data":[]}]}"#,
                "more elements than can be addressed",
            ),
            (r#"{"inputs":[],"parameters":{"triton_x":1}}"#, "reserved"),
        ] {
            let text = message(decode_json(json));
            assert!(text.contains(part), "{json}: {text}");
        }
    }
}
