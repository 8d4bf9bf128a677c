//! Decodes an inference answer from its JSON and binary parts. Nothing in it is trusted.

use bytes::Bytes;
use http::HeaderValue;
use serde::Deserialize;
use serde_json::value::RawValue;
use skep_tensor::Tensor;
use skep_types::{DataType, Shape};
use skep_wire::json::{self, Document};

use crate::infer::InferResponse;

#[derive(Deserialize)]
struct AnswerJson<'a> {
    #[serde(default)]
    id: Option<String>,
    model_name: String,
    #[serde(default)]
    model_version: Option<String>,
    #[serde(borrow)]
    outputs: Vec<AnswerOutputJson<'a>>,
}

#[derive(Deserialize)]
struct AnswerOutputJson<'a> {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default)]
    parameters: OutputParameters,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct OutputParameters {
    #[serde(default)]
    binary_data_size: Option<usize>,
}

/// Decodes a body; the header says how long its JSON part is (`None`: all of it). Binary data is not copied.
pub(super) fn decode(
    body: &Bytes,
    header_length: Option<&HeaderValue>,
) -> Result<InferResponse, String> {
    let json_bytes = match header_length {
        Some(value) => value
            .to_str()
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| format!("Inference-Header-Content-Length is {value:?}"))?,
        None => body.len(),
    };
    let json = body.get(..json_bytes).ok_or_else(|| {
        format!(
            "its header says that the JSON part has {json_bytes} bytes, but the whole has {}",
            body.len()
        )
    })?;
    let mut binary = body.slice(json_bytes..);
    let document = Document::new(json);
    let answer: AnswerJson<'_> = document
        .parse(serde_json::from_slice)
        .map_err(|error| error.to_string())?;
    let mut outputs = Vec::with_capacity(answer.outputs.len());
    for output in answer.outputs {
        let tensor = tensor(&output, &document, &mut binary)
            .map_err(|reason| format!("output `{}`: {reason}", output.name))?;
        outputs.push((output.name, tensor));
    }
    if !binary.is_empty() {
        return Err(format!(
            "{} bytes follow the data of its last output",
            binary.len()
        ));
    }
    Ok(InferResponse {
        model: answer.model_name,
        version: answer.model_version.unwrap_or_default(),
        id: answer.id.unwrap_or_default(),
        outputs,
    })
}

fn tensor(
    output: &AnswerOutputJson<'_>,
    document: &Document<'_>,
    binary: &mut Bytes,
) -> Result<Tensor, String> {
    let datatype = DataType::from_protocol_name(&output.datatype).map_err(|e| e.to_string())?;
    let shape = Shape::from_wire(&output.shape).map_err(|e| e.to_string())?;
    let bytes = match (output.data, output.parameters.binary_data_size) {
        (Some(raw), None) => json::read(document.text(raw), datatype, shape.element_count())
            .map_err(|error| error.to_string())?,
        (None, Some(size)) if size <= binary.len() => binary.split_to(size),
        (None, Some(size)) => {
            return Err(format!(
                "declares {size} bytes of binary data, but {} are left",
                binary.len()
            ));
        }
        (Some(_), Some(_)) => return Err("has both JSON and binary data".to_owned()),
        (None, None) => return Err("has no data".to_owned()),
    };
    Tensor::new(datatype, shape, bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(json: &str, tail: &[u8]) -> Result<InferResponse, String> {
        let body = Bytes::from([json.as_bytes(), tail].concat());
        decode(&body, Some(&HeaderValue::from(json.len())))
    }

    fn answer(outputs: &str) -> String {
        format!(r#"{{"id":"7","model_name":"m","model_version":"2","outputs":[{outputs}]}}"#)
    }

    #[test]
    fn json_and_binary_outputs_mix() {
        let json = answer(
            r#"{"name":"a","datatype":"UINT8","shape":[2],"parameters":{"binary_data_size":2}},
               {"name":"b","shape":[2],"datatype":"FP32","data":[NaN,-Infinity]},
               {"name":"c","datatype":"BYTES","shape":[0],"parameters":{"binary_data_size":0}},
               {"name":"d NaN","datatype":"UINT8","shape":[1],"parameters":{"binary_data_size":1}}"#,
        );
        let response = decoded(&json, &[1, 2, 3]).expect("decodes");
        assert_eq!(
            (&*response.model, &*response.version, &*response.id),
            ("m", "2", "7")
        );
        let data = |name| response.output(name).map(|t| t.data().to_vec());
        assert_eq!(data("a"), Some(vec![1, 2]));
        assert_eq!(
            data("b"),
            Some([f32::NAN.to_le_bytes(), f32::NEG_INFINITY.to_le_bytes()].concat())
        );
        assert_eq!(data("c"), Some(vec![]));
        assert_eq!(data("d NaN"), Some(vec![3]));
    }

    #[test]
    fn id_and_version_may_be_missing() {
        let json = r#"{"model_name":"m","outputs":[]}"#;
        let response = decode(&Bytes::from_static(json.as_bytes()), None).expect("decodes");
        assert_eq!((&*response.version, &*response.id), ("", ""));
    }

    #[test]
    fn contradictions_are_named() {
        let output = |rest: &str| answer(&format!(r#"{{"name":"y","shape":[2],{rest}}}"#));
        for (json, tail, part) in [
            ("".to_owned(), &[][..], "EOF"),
            ("[]".to_owned(), &[], "invalid"),
            (answer(""), &[0], "1 bytes follow"),
            (output(r#""datatype":"UINT8""#), &[], "no data"),
            (output(r#""datatype":"FP31","data":[]"#), &[], "FP31"),
            (
                output(r#""datatype":"UINT8","data":[1]"#),
                &[],
                "expected 2",
            ),
            (
                output(r#""datatype":"UINT8","data":[1,NaN]"#),
                &[],
                "NaN is not a valid UINT8",
            ),
            (
                output(r#""datatype":"FP32","data":[NaN,"NaN"]"#),
                &[],
                "\"NaN\" is not a valid FP32",
            ),
            (
                output(r#""datatype":"UINT8","parameters":{"binary_data_size":3}"#),
                &[1, 2],
                "2 are left",
            ),
            (
                output(r#""datatype":"UINT8","parameters":{"binary_data_size":3}"#),
                &[1, 2, 3],
                "3 bytes of data, expected 2",
            ),
            (
                output(r#""datatype":"UINT8","parameters":{"binary_data_size":-1}"#),
                &[],
                "invalid value",
            ),
            (
                output(r#""datatype":"UINT8","parameters":{"binary_data_size":1},"data":[1,2]"#),
                &[1],
                "both",
            ),
            (
                answer(
                    r#"{"name":"y","datatype":"FP64","shape":[9223372036854775807,9],"data":[]}"#,
                ),
                &[],
                "more elements",
            ),
            (
                answer(r#"{"name":"y","datatype":"BYTES","shape":[1000000000000],"data":[]}"#),
                &[],
                "expected 1000000000000",
            ),
            (
                answer(
                    r#"{"name":"y","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":5}}"#,
                ),
                &[255, 255, 255, 255, 0],
                "0 whole elements",
            ),
        ] {
            let error = decoded(&json, tail).expect_err(&json);
            assert!(error.contains(part), "{json}: {error}");
        }
        let body = Bytes::from_static(b"{}");
        for length in ["3", "-1", "x", "99999999999999999999999"] {
            assert!(decode(&body, Some(&HeaderValue::from_static(length))).is_err());
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(body: Vec<u8>, length in 0usize..64) {
            let _ = decode(&Bytes::from(body), Some(&HeaderValue::from(length)));
        }

        #[test]
        fn no_answer_like_text_panics(data in r#"[\[\]",\\NaIinfty0-9.eE+ -]{0,40}"#, datatype in 0usize..14) {
            let datatype = DataType::ALL[datatype];
            let json = answer(&format!(r#"{{"name":"y","datatype":"{datatype}","shape":[2],"data":{data}}}"#));
            let _ = decode(&Bytes::from(json), None);
        }
    }
}
