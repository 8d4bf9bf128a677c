//! Answers that handlers of HTTP give, other than those to inference.

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::error;

/// A document as JSON.
pub(super) fn document<T: Serialize>(document: &T) -> Response {
    let body = serde_json::to_vec(document).expect("numbers, texts and lists have a JSON form");
    json(StatusCode::OK, body)
}

pub(super) fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, error::JSON)], body.into()).into_response()
}

/// A status with its text as Triton's HTTP library words it, in the body of an error; as plain text, which is how Triton
/// labels what it refuses before it looks into a request.
pub(super) fn plain(status: StatusCode, text: &str) -> Response {
    error::error_response(status, error::PLAIN, text)
}

/// The answer to an unknown path.
pub(super) fn not_found() -> Response {
    plain(StatusCode::NOT_FOUND, "Not Found")
}

/// The answer to a method that a path does not have.
pub(super) async fn method_not_allowed() -> Response {
    plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
}
