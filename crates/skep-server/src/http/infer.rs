//! `POST /v2/models/{model}[/versions/{version}]/infer`.

use std::sync::Arc;

use axum::{body::Body, extract::State, http::HeaderMap, response::Response};

use super::{
    extract::{ModelPath, read_body},
    request, response,
};
use crate::{api, error::ApiError, server::Shared};

/// The largest body that is taken in, in bytes; tensors of 2 GiB and more travel no sane network in one request.
const MAX_BODY_BYTES: usize = 2 << 30;

/// Where the JSON part of a body ends and the binary tensor data begins.
const HEADER_LENGTH: &str = "inference-header-content-length";

pub(super) async fn infer(
    State(shared): State<Arc<Shared>>,
    path: ModelPath,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    if let Some(encoding) = headers
        .get(::http::header::CONTENT_ENCODING)
        .filter(|e| *e != "identity")
    {
        let what = format!(
            "content encoding `{}`",
            String::from_utf8_lossy(encoding.as_bytes())
        );
        return Err(ApiError::unsupported(&what));
    }
    let header_length = header_length(&headers)?;
    let body = read_body(body, MAX_BODY_BYTES).await?;
    let json_bytes = header_length.unwrap_or(body.len());
    if json_bytes > shared.max_json_bytes {
        return Err(ApiError::invalid(format!(
            "Request JSON size of {json_bytes} bytes exceeds the maximum allowed value of {} bytes. Use --http-max-input-size to increase the limit.",
            shared.max_json_bytes
        )));
    }
    // After the body: a version is held only while a request runs, never while a slow client sends.
    let loaded = shared
        .runtime
        .resolve(&path.model, path.version.as_deref())?;
    let decoded = request::decode(&body, header_length, &path.model)?;
    let wanted = decoded.wanted;
    let id = decoded.request.id.clone();
    let answer = loaded.infer(decoded.request).await;
    let answer = answer.inspect_err(|error| api::log_failure(&id, error))?;
    Ok(response::encode(&answer, &id, &wanted))
}

fn header_length(headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
    let Some(value) = headers.get(HEADER_LENGTH) else {
        return Ok(None);
    };
    let length = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok());
    match length {
        Some(0) => Err(ApiError::unsupported(
            "a raw binary request (Inference-Header-Content-Length: 0)",
        )),
        Some(length) => Ok(Some(length)),
        None => Err(ApiError::invalid(format!(
            "Unable to parse Inference-Header-Content-Length, got: {}",
            String::from_utf8_lossy(value.as_bytes())
        ))),
    }
}
