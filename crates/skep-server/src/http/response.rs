//! Encodes an answer as JSON, followed by binary tensor data if that was asked for.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::{Body, HttpBody},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use serde::Serialize;
use skep_runtime::{InferResponse, NamedTensor};
use skep_tensor::Charge;
use skep_wire::WireError;

use super::{
    compression::{self, Coding},
    parameters,
    request::{OutputEncoding, OutputForm},
};
use crate::{error::ApiError, growth::make_room};

/// Where the JSON part ends. Triton capitalises the name; HTTP ignores case.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Binary data up to this size is copied behind the JSON part, so that both leave in one plain write; more is sent from
/// where the model wrote it. From tens of KiB on a copy costs more than a separate piece.
const MAX_COPIED_BYTES: usize = 32 << 10;

/// An encoded answer.
#[derive(Debug)]
pub(super) struct EncodedResponse {
    /// The JSON part, and the binary data that was copied behind it.
    body: Vec<u8>,
    /// Binary data that was not copied, in the outputs' order.
    rest: Vec<Bytes>,
    /// Where the JSON part ends, if binary data follows.
    header_length: Option<usize>,
    /// How the body is compressed.
    coding: Option<Coding>,
}

impl EncodedResponse {
    /// Compresses the answer; memory is charged before it is allocated.
    pub(super) async fn compress(
        &mut self,
        coding: Coding,
        charge: &Arc<Charge>,
    ) -> Result<(), ApiError> {
        for piece in self.rest.drain(..) {
            make_room(&mut self.body, piece.len(), charge)?;
            self.body.extend_from_slice(&piece);
        }
        let plain = std::mem::take(&mut self.body);
        self.body = compression::compress(plain, coding, charge).await?;
        self.coding = Some(coding);
        Ok(())
    }
}

impl IntoResponse for EncodedResponse {
    fn into_response(self) -> Response {
        let body = if self.rest.is_empty() {
            Body::from(self.body)
        } else {
            Body::new(Pieces::new(Bytes::from(self.body), self.rest))
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        let content = match self.header_length {
            None => HeaderValue::from_static("application/json"),
            Some(length) => {
                headers.insert(HEADER_LENGTH, HeaderValue::from(length));
                HeaderValue::from_static("application/octet-stream")
            }
        };
        headers.insert(header::CONTENT_TYPE, content);
        if let Some(coding) = self.coding {
            headers.insert(header::CONTENT_ENCODING, coding.header_value());
        }
        response
    }
}

/// Bytes of tensor data that travel as JSON.
pub(super) fn json_data_bytes(answer: &InferResponse, wanted: &OutputEncoding) -> usize {
    let outputs = answer.outputs.iter();
    outputs
        .filter(|output| matches!(wanted.form(output), OutputForm::Json))
        .map(|output| output.tensor.data().len())
        .sum()
}

/// Encodes an answer: members in Triton's order, binary data in the outputs' order. Memory is added to `charge` before
/// it is allocated.
pub(super) fn encode(
    answer: &InferResponse,
    id: &str,
    wanted: &OutputEncoding,
    charge: &Charge,
) -> Result<EncodedResponse, ApiError> {
    let mut json: Vec<u8> = Vec::with_capacity(256);
    json.push(b'{');
    if !id.is_empty() {
        json.extend_from_slice(b"\"id\":");
        put(&mut json, id);
        json.push(b',');
    }
    json.extend_from_slice(b"\"model_name\":");
    put(&mut json, answer.model.as_str());
    json.extend_from_slice(b",\"model_version\":\"");
    put(&mut json, &answer.version.get());
    json.push(b'"');
    parameters::encode(&answer.parameters, &mut json);
    json.extend_from_slice(b",\"outputs\":[");
    let mut binary_bytes = 0usize;
    for (index, output) in answer.outputs.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        encode_output(output, wanted.form(output), &mut json, charge)?;
        if wanted.is_binary(output) {
            binary_bytes += output.tensor.data().len();
        }
    }
    json.extend_from_slice(b"]}");
    let mut encoded = EncodedResponse {
        // As on Triton: without binary data the body is only JSON, even if outputs without elements were requested as
        // binary.
        header_length: (binary_bytes > 0).then_some(json.len()),
        body: json,
        rest: Vec::new(),
        coding: None,
    };
    let binary = answer
        .outputs
        .iter()
        .filter(|output| wanted.is_binary(output));
    let binary = binary.map(|output| output.tensor.data());
    if binary_bytes > MAX_COPIED_BYTES {
        encoded.rest = binary.cloned().collect();
    } else {
        make_room(&mut encoded.body, binary_bytes, charge)?;
        binary.for_each(|data| encoded.body.extend_from_slice(data));
    }
    Ok(encoded)
}

/// Appends a number or a text as JSON.
fn put<T: Serialize + ?Sized>(json: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(json, value)
        .expect("numbers and texts have a JSON form, and a vector takes all");
}

fn encode_output(
    output: &NamedTensor,
    form: OutputForm,
    json: &mut Vec<u8>,
    charge: &Charge,
) -> Result<(), ApiError> {
    let tensor = &output.tensor;
    json.extend_from_slice(b"{\"name\":");
    put(json, &*output.name);
    json.extend_from_slice(b",\"datatype\":\"");
    json.extend_from_slice(tensor.datatype().protocol_name().as_bytes());
    json.extend_from_slice(b"\",\"shape\":");
    put(json, tensor.shape().dims());
    match form {
        OutputForm::Binary => {
            json.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
            put(json, &tensor.data().len());
            json.push(b'}');
        }
        // No parameters: Triton's C++ client refuses any without `binary_data_size`.
        OutputForm::Region => {}
        OutputForm::Json => {
            json.extend_from_slice(b",\"data\":");
            encode_data(output, json, charge)?;
        }
    }
    json.push(b'}');
    Ok(())
}

/// Appends an output's elements as a flat array; memory is charged before it is allocated.
pub(super) fn encode_data(
    output: &NamedTensor,
    json: &mut Vec<u8>,
    charge: &Charge,
) -> Result<(), ApiError> {
    let mut refused = None;
    let mut room = |json: &mut Vec<u8>, more: usize| {
        make_room(json, more, charge).map_err(|over| {
            refused = Some(over);
            WireError::NoRoom
        })
    };
    let written = skep_wire::json::write_within(output.tensor.view(), json, &mut room);
    if let Some(over) = refused {
        return Err(over.into());
    }
    written.map_err(|error| {
        let name = &output.name;
        ApiError::invalid(match error {
            WireError::NoJsonForm(datatype) => format!(
                "sending {datatype} data via JSON is not supported. Please use the binary data format for output {name}"
            ),
            other => format!("output '{name}' {other}, ask for it as binary data"),
        })
    })
}

/// A body of separate pieces.
struct Pieces {
    /// The remaining pieces, the next one last.
    left: Vec<Bytes>,
    /// Their total size in bytes.
    bytes: u64,
}

impl Pieces {
    fn new(first: Bytes, mut rest: Vec<Bytes>) -> Self {
        rest.reverse();
        rest.push(first);
        let bytes = rest.iter().map(|piece| piece.len() as u64).sum();
        Self { left: rest, bytes }
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.left.pop();
        self.bytes -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::StatusCode;
    use skep_tensor::Tensor;
    use skep_types::{DataType, ModelName, ModelVersion, Shape};

    async fn encoded(datatype: DataType, binary: bool) -> (StatusCode, Option<HeaderValue>, Bytes) {
        let size = datatype.element_size().expect("sized");
        encoded_data(datatype, Bytes::from(vec![0; 2 * size]), binary).await
    }

    /// Of an answer with one output of shape `[1,2]`.
    async fn encoded_data(
        datatype: DataType,
        data: Bytes,
        binary: bool,
    ) -> (StatusCode, Option<HeaderValue>, Bytes) {
        let tensor = Tensor::new(datatype, Shape::new(&[1, 2]).expect("shape"), data);
        let answer = InferResponse {
            model: ModelName::new("m").expect("name"),
            version: ModelVersion::ONE,
            outputs: vec![NamedTensor {
                name: "y".into(),
                tensor: tensor.expect("tensor"),
                owns_memory: true,
            }],
            timing: None,
            parameters: Vec::new(),
            charge: None,
        };
        let response = encode(
            &answer,
            "i\"d",
            &OutputEncoding {
                all_binary: binary,
                ..Default::default()
            },
            &Charge::unbounded(),
        )
        .into_response();
        let (status, header) = (
            response.status(),
            response.headers().get(HEADER_LENGTH).cloned(),
        );
        (
            status,
            header,
            axum::body::to_bytes(response.into_body(), 1 << 20)
                .await
                .expect("body"),
        )
    }

    #[tokio::test]
    async fn members_come_in_tritons_order() {
        let (_, header, body) = encoded(DataType::Int32, false).await;
        assert_eq!(header, None);
        assert_eq!(
            body,
            r#"{"id":"i\"d","model_name":"m","model_version":"1","outputs":[{"name":"y","datatype":"INT32","shape":[1,2],"data":[0,0]}]}"#
        );
    }

    #[tokio::test]
    async fn binary_data_follows_the_json_part() {
        let (_, header, body) = encoded(DataType::Bf16, true).await;
        let length: usize = header
            .and_then(|h| h.to_str().ok()?.parse().ok())
            .expect("header");
        assert_eq!(&body[length..], [0; 4]);
        assert!(body[..length].ends_with(br#""parameters":{"binary_data_size":4}}]}"#));
    }

    #[tokio::test]
    async fn half_precision_has_no_json_form() {
        let (status, _, body) = encoded(DataType::Fp16, false).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(
            body,
            r#"{"error":"sending FP16 data via JSON is not supported. Please use the binary data format for output y"}"#
        );
    }

    #[tokio::test]
    async fn bytes_that_are_not_utf_8_are_refused() {
        let data = Bytes::from(skep_tensor::encode_strings([b"a".as_slice(), b"\xff"]));
        let (status, _, body) = encoded_data(DataType::Bytes, data.clone(), false).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(
            body,
            r#"{"error":"output 'y' holds bytes that are not UTF-8, ask for it as binary data"}"#
        );
        let (status, _, body) = encoded_data(DataType::Bytes, data.clone(), true).await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.ends_with(&data));
    }
}
