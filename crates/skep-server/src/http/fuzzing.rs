//! What fuzzing runs of the HTTP edge; see [`crate::fuzzing`].

use std::sync::OnceLock;

use axum::{
    body,
    http::{HeaderMap, HeaderValue},
    response::IntoResponse,
};
use bytes::Bytes;
use futures_util::FutureExt;
use serde_json::value::RawValue;
use skep_config::{ConfigContext, ModelConfig, parse_pbtxt};
use skep_runtime::InferResponse;
use skep_tensor::Charge;
use skep_types::ModelName;
use skep_wire::json::Document;

use super::{
    compression::{self, Coding},
    generate, infer, lean, logging, raw, repository,
    request::{self, DecodedRequest, OutputEncoding},
    response,
};
use crate::{
    fuzzing::checks::{MODEL, assert_consistent, assert_same_inputs, assert_same_parameters, echo},
    inflate::{InflateError, inflate},
};

/// Configurations for raw requests and `generate`: each kind of input once, then inputs named like the protocol's own
/// members.
const CONFIGS: [&str; 6] = [
    r#"input [ { name: "x" data_type: TYPE_FP32 dims: [-1] }, { name: "s" data_type: TYPE_STRING dims: [1] },
        { name: "i" data_type: TYPE_INT64 dims: [2, 2] }, { name: "b" data_type: TYPE_BOOL dims: [-1] },
        { name: "d" data_type: TYPE_FP64 dims: [-1, 2, -1] }, { name: "h" data_type: TYPE_FP16 dims: [-1] } ]"#,
    r#"max_batch_size: 8 input [ { name: "id" data_type: TYPE_STRING dims: [-1] },
        { name: "parameters" data_type: TYPE_UINT8 dims: [1] } ]"#,
    r#"input { name: "x" data_type: TYPE_FP32 dims: [-1, 3] }"#,
    r#"input { name: "x" data_type: TYPE_STRING dims: [1] }"#,
    r#"max_batch_size: 4 input { name: "x" data_type: TYPE_INT8 dims: [2, 2] }"#,
    r#"max_batch_size: 4 input { name: "x" data_type: TYPE_BF16 dims: [-1] reshape { shape: [-1, 1] } }"#,
];

fn configs() -> &'static [ModelConfig] {
    static MADE: OnceLock<Vec<ModelConfig>> = OnceLock::new();
    MADE.get_or_init(|| {
        let name = ModelName::new(MODEL).expect("a name");
        let made = CONFIGS.map(|inputs| {
            let output = r#"output { name: "y" data_type: TYPE_FP32 dims: [1] }"#;
            let text = format!("name: \"{MODEL}\" backend: \"mock\" {inputs} {output}");
            let proto = parse_pbtxt(text.as_bytes(), "config.pbtxt").expect("parses");
            ModelConfig::from_proto(proto, &ConfigContext::new(&name)).expect("valid")
        });
        made.into()
    })
}

/// An inference request: a line that is the header with the JSON part's length (nothing for no header, `auto` for the
/// length up to the last brace, which few mutations would get right), then the body.
pub fn http_infer(data: &[u8]) {
    let line = data
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(data.len());
    let body = Bytes::copy_from_slice(data.get(line + 1..).unwrap_or_default());
    let mut headers = HeaderMap::new();
    let value = match &data[..line] {
        b"" => None,
        b"auto" => {
            let json = body.iter().rposition(|byte| *byte == b'}');
            Some(HeaderValue::from(json.map_or(0, |last| last + 1)))
        }
        text => HeaderValue::from_bytes(text).ok(),
    };
    if let Some(value) = value {
        headers.insert(infer::HEADER_LENGTH, value);
    }
    let Ok(header_length) = infer::header_length(&headers, body.len()) else {
        return;
    };
    if header_length == Some(0) {
        for config in configs() {
            if let Ok(decoded) = raw::decode(body.clone(), config) {
                assert!(decoded.request.inputs[0].1.data().ends_with(&body));
                assert_read_back(&decoded);
            }
        }
        return;
    }
    if let Ok(decoded) = request::decode(&body, header_length, MODEL, &Charge::unbounded()) {
        for name in &decoded.wanted.binary {
            assert!(decoded.request.outputs.contains(name));
        }
        assert_read_back(&decoded);
    }
}

/// A request that is written as an answer reads back as the same request.
fn assert_read_back(decoded: &DecodedRequest) {
    assert_consistent(&decoded.request);
    let mixed = OutputEncoding {
        all_binary: false,
        binary: decoded.wanted.binary.clone(),
        ..OutputEncoding::default()
    };
    let binary = OutputEncoding {
        all_binary: true,
        ..OutputEncoding::default()
    };
    let sent = &decoded.request;
    for wanted in [OutputEncoding::default(), mixed, binary] {
        let answer = response::encode(&echo(sent), &sent.id, &wanted, &Charge::unbounded());
        // Half precision has no JSON form, and neither have bytes that are not UTF-8.
        let Ok(encoded) = answer else {
            assert!(!wanted.all_binary);
            continue;
        };
        let (headers, body) = received(encoded.into_response());
        let header_length = headers.get(infer::HEADER_LENGTH).map(|value| {
            let text = value.to_str().expect("digits");
            text.parse::<usize>().expect("a number")
        });
        // An answer's outputs are written like a request's inputs. Inside strings the quotes would be escaped.
        let (outputs, inputs) = (b"\"outputs\":[".as_slice(), b"\"inputs\":[".as_slice());
        let at = body
            .windows(outputs.len())
            .position(|part| part == outputs)
            .expect("outputs");
        let body = [&body[..at], inputs, &body[at + outputs.len()..]].concat();
        let header_length = header_length.map(|length| length - (outputs.len() - inputs.len()));
        // Tensors without elements are announced as binary data, although no data follows.
        let header_length = header_length.or(wanted.all_binary.then_some(body.len()));
        let Ok(read) = request::decode(&body.into(), header_length, MODEL, &Charge::unbounded())
        else {
            panic!("an answer that cannot be read");
        };
        assert_eq!(read.request.id, sent.id);
        assert_same_parameters(&read.request.parameters, &sent.parameters);
        assert_same_inputs(&read.request.inputs, &sent.inputs);
    }
}

fn received(response: axum::response::Response) -> (HeaderMap, Bytes) {
    let (parts, body) = response.into_parts();
    let body = body::to_bytes(body, usize::MAX).now_or_never();
    (
        parts.headers,
        body.expect("all there").expect("no connection to fail"),
    )
}

/// The body of a `generate` request.
pub fn http_generate(data: &[u8]) {
    for config in configs() {
        let Ok(request) = generate::decode(data, config, &Charge::unbounded()) else {
            continue;
        };
        assert_consistent(&request);
        let Ok(json) = generate::encode(echo(&request), &request.id, &Charge::unbounded()) else {
            continue;
        };
        let document = Document::new(&json);
        let parsed: serde_json::Result<&RawValue> = document.parse(serde_json::from_slice);
        assert!(parsed.is_ok(), "an answer that is no JSON");
        // If no input is named `id`, the answer without its parameters is a request.
        if config.input("id").is_some() {
            continue;
        }
        let answer = InferResponse {
            parameters: Vec::new(),
            ..echo(&request)
        };
        let json = generate::encode(answer, &request.id, &Charge::unbounded()).expect("as before");
        let Ok(read) = generate::decode(&json, config, &Charge::unbounded()) else {
            panic!("an answer that cannot be read");
        };
        assert_eq!(read.id, request.id);
        // If an input is given twice, the answer has the last one; members are sorted by name.
        let mut sent: Vec<_> = request.inputs.into_iter().rev().collect();
        sent.sort_by(|(left, _), (right, _)| left.cmp(right));
        sent.dedup_by(|(later, _), (kept, _)| later == kept);
        assert_same_inputs(&read.inputs, &sent);
    }
}

/// The bodies of a load request and of a change of log settings.
pub fn http_control(data: &[u8]) {
    let body = Bytes::copy_from_slice(data);
    let parameters = repository::parameters(&body, "a load request");
    if let Ok(overrides) = parameters.and_then(|(_, given)| repository::overrides(given)) {
        let files = overrides.files.iter().map(|(_, content)| content.len());
        assert!(files.sum::<usize>() <= data.len());
    }
    if let Ok(body) = lean::parse(data, 1) {
        // Either outcome is fine.
        drop(logging::decode(&body));
    }
}

/// A byte that sets the limit (up to 64 KiB), then a compressed body.
pub fn http_compression(data: &[u8]) {
    let Some((bound, body)) = data.split_first() else {
        return;
    };
    let limit = 1usize << (bound % 17);
    let plain = match inflate(body, limit, &Charge::unbounded()) {
        Ok(plain) => plain,
        Err(InflateError::TooLong | InflateError::NoMemory(_)) => return,
        // Not compressed data, so use it as data to compress.
        Err(InflateError::Broken(_)) => body.to_vec(),
    };
    for coding in [Coding::Gzip, Coding::Deflate] {
        let packed =
            compression::deflate(&plain, coding, &Charge::unbounded()).expect("vectors take all");
        let again =
            inflate(&packed, plain.len(), &Charge::unbounded()).expect("what was just compressed");
        assert_eq!(again, plain);
        if let Some(less) = plain.len().checked_sub(1) {
            let error = inflate(&packed, less, &Charge::unbounded());
            assert!(matches!(error, Err(InflateError::TooLong)));
        }
    }
}
