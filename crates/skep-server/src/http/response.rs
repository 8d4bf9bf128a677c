//! An answer as JSON, with binary tensor data behind it where that was asked for.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use skep_runtime::{InferResponse, NamedTensor};
use skep_wire::WireError;

use super::{
    compression::{self, Coding},
    json_response, parameters,
    request::Wanted,
};
use crate::error::ApiError;

/// Where the JSON part ends; the capitals are Triton's, HTTP does not mind.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// An answer as it travels.
#[derive(Debug)]
pub(super) struct Encoded {
    body: Vec<u8>,
    /// Where the JSON part ends, if binary data follows.
    header_length: Option<usize>,
    /// How the body is compressed.
    coding: Option<Coding>,
}

impl Encoded {
    pub(super) async fn compress(&mut self, coding: Coding) -> Result<(), ApiError> {
        self.body = compression::compress(std::mem::take(&mut self.body), coding).await?;
        self.coding = Some(coding);
        Ok(())
    }
}

impl IntoResponse for Encoded {
    fn into_response(self) -> Response {
        let mut response = match self.header_length {
            None => json_response(StatusCode::OK, self.body),
            Some(length) => {
                let headers = [
                    (
                        header::CONTENT_TYPE,
                        HeaderValue::from_static("application/octet-stream"),
                    ),
                    (HEADER_LENGTH, HeaderValue::from(length)),
                ];
                (StatusCode::OK, headers, Body::from(self.body)).into_response()
            }
        };
        if let Some(coding) = self.coding {
            response
                .headers_mut()
                .insert(header::CONTENT_ENCODING, coding.header_value());
        }
        response
    }
}

/// Encodes an answer: members in Triton's order, binary data in the outputs' order.
pub(super) fn encode(
    answer: &InferResponse,
    id: &str,
    wanted: &Wanted,
) -> Result<Encoded, ApiError> {
    let is_binary = |output: &NamedTensor| {
        wanted.all_binary || wanted.binary.iter().any(|name| **name == *output.name)
    };
    let mut json: Vec<u8> = Vec::with_capacity(256);
    json.push(b'{');
    if !id.is_empty() {
        json.extend_from_slice(format!("\"id\":{},", json!(id)).as_bytes());
    }
    json.extend_from_slice(
        format!(
            "\"model_name\":{},\"model_version\":\"{}\"",
            json!(answer.model.as_str()),
            answer.version
        )
        .as_bytes(),
    );
    parameters::encode(&answer.parameters, &mut json);
    json.extend_from_slice(b",\"outputs\":[");
    let mut binary_bytes = 0usize;
    for (index, output) in answer.outputs.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        encode_output(output, is_binary(output), &mut json)?;
        if is_binary(output) {
            binary_bytes += output.tensor.data().len();
        }
    }
    json.extend_from_slice(b"]}");
    // As on Triton: without binary data the JSON part is all there is, also where outputs without elements are said to
    // be binary.
    if binary_bytes == 0 {
        return Ok(Encoded {
            body: json,
            header_length: None,
            coding: None,
        });
    }
    let header_length = json.len();
    json.reserve_exact(binary_bytes);
    for output in answer.outputs.iter().filter(|output| is_binary(output)) {
        json.extend_from_slice(output.tensor.data());
    }
    Ok(Encoded {
        body: json,
        header_length: Some(header_length),
        coding: None,
    })
}

fn encode_output(output: &NamedTensor, binary: bool, json: &mut Vec<u8>) -> Result<(), ApiError> {
    let tensor = &output.tensor;
    json.extend_from_slice(
        format!(
            "{{\"name\":{},\"datatype\":\"{}\",\"shape\":{}",
            json!(&*output.name),
            tensor.datatype(),
            tensor.shape()
        )
        .as_bytes(),
    );
    if binary {
        json.extend_from_slice(
            format!(
                ",\"parameters\":{{\"binary_data_size\":{}}}}}",
                tensor.data().len()
            )
            .as_bytes(),
        );
        return Ok(());
    }
    json.extend_from_slice(b",\"data\":");
    encode_data(output, json)?;
    json.push(b'}');
    Ok(())
}

/// Appends an output's elements as a flat array.
pub(super) fn encode_data(output: &NamedTensor, json: &mut Vec<u8>) -> Result<(), ApiError> {
    skep_wire::json::write(output.tensor.view(), json).map_err(|error| {
        let name = &output.name;
        ApiError::invalid(match error {
            WireError::NoJsonForm(datatype) => format!(
                "sending {datatype} data via JSON is not supported. Please use the binary data format for output {name}"
            ),
            other => format!("output '{name}' {other}, ask for it as binary data"),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
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
            }],
            parameters: Vec::new(),
        };
        let response = encode(
            &answer,
            "i\"d",
            &Wanted {
                all_binary: binary,
                ..Default::default()
            },
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
    async fn bytes_that_are_no_text_are_not_made_one() {
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
