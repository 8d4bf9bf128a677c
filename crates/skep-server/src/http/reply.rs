//! Answers of HTTP handlers, apart from those to inference.

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

/// An error with the text of Triton's HTTP library for a status. Its label is plain text: Triton labels requests so
/// that it refuses before it reads them.
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
