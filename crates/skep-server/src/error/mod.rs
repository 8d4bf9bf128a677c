//! The only table from kinds of failure to HTTP statuses and gRPC codes, and the answer to a failed request.

use std::fmt;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use skep_regions::{RegionError, RegionErrorKind};
use skep_runtime::{ErrorKind, RuntimeError};
use skep_tensor::OverBudget;

mod body;

pub(crate) use self::body::{BodyError, MIN_PROGRESS_BYTES};
use crate::access::RefusalText;

/// The kind of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FailureKind {
    /// A kind of the runtime's.
    Runtime(ErrorKind),
    /// The client did not send its request in time.
    TooSlow,
    /// The memory of requests is full; a later request may succeed.
    NoMemory,
    /// What the client makes exists already.
    AlreadyExists,
}

/// A failure at the edge, and what the client is told.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    kind: FailureKind,
    message: String,
    /// Whether its body is labelled plain text instead of JSON; it is JSON in either case.
    plain: bool,
}

impl ApiError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Runtime(kind),
            message: message.into(),
            plain: false,
        }
    }

    /// A request does not fit into the memory of requests.
    fn no_memory(over: OverBudget) -> Self {
        Self {
            kind: FailureKind::NoMemory,
            ..Self::invalid(BodyError::NoMemory(over).to_string())
        }
    }

    /// The same failure with the label that Triton uses for failures before an inference request is read, and after its
    /// model has run.
    pub(crate) fn plain(self) -> Self {
        Self {
            plain: true,
            ..self
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// The same failure with more text in front.
    pub(crate) fn prefixed(self, prefix: &str) -> Self {
        Self {
            message: format!("{prefix}{}", self.message),
            ..self
        }
    }

    /// `{"error":"..."}`, as Triton answers.
    pub(crate) fn body(&self) -> String {
        skep_wire::error_body::write(&self.message)
    }

    /// Its text, for the access log.
    pub(crate) fn into_refusal(self) -> RefusalText {
        RefusalText(self.message)
    }

    pub(crate) fn http_status(&self) -> StatusCode {
        let kind = match self.kind {
            FailureKind::Runtime(kind) => kind,
            FailureKind::TooSlow => return StatusCode::REQUEST_TIMEOUT,
            FailureKind::NoMemory => return StatusCode::SERVICE_UNAVAILABLE,
            FailureKind::AlreadyExists => return StatusCode::BAD_REQUEST,
        };
        match kind {
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Unavailable | ErrorKind::Full => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            // Not 503, since trying again does not help.
            ErrorKind::Exhausted | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl From<RuntimeError> for ApiError {
    fn from(error: RuntimeError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl From<RegionError> for ApiError {
    fn from(error: RegionError) -> Self {
        let kind = match error.kind() {
            RegionErrorKind::NotFound => ErrorKind::NotFound,
            RegionErrorKind::Full => ErrorKind::Full,
            RegionErrorKind::Internal => ErrorKind::Internal,
            _ => ErrorKind::InvalidArgument,
        };
        let failure = Self::new(kind, error.to_string());
        match error.kind() {
            RegionErrorKind::AlreadyExists => Self {
                kind: FailureKind::AlreadyExists,
                ..failure
            },
            _ => failure,
        }
    }
}

impl From<&BodyError> for ApiError {
    fn from(error: &BodyError) -> Self {
        let kind = match error {
            BodyError::NoMemory(_) => FailureKind::NoMemory,
            BodyError::Stalled(_) => FailureKind::TooSlow,
            BodyError::TooLong { .. }
            | BodyError::CutShort
            | BodyError::Broken(_)
            | BodyError::Reset(_) => FailureKind::Runtime(ErrorKind::InvalidArgument),
        };
        Self {
            kind,
            ..Self::invalid(unreadable(error))
        }
    }
}

impl From<OverBudget> for ApiError {
    fn from(over: OverBudget) -> Self {
        Self::no_memory(over)
    }
}

/// The content type of an error from Triton's HTTP library, before a request is read.
pub(crate) const PLAIN: &str = "text/plain";

/// The content type of an error from Triton itself.
pub(crate) const JSON: &str = "application/json";

/// An error's answer with a content type, and its text for the access log.
pub(crate) fn error_response(
    status: StatusCode,
    label: &'static str,
    text: impl Into<String>,
) -> Response {
    let text = text.into();
    let body = skep_wire::error_body::write(&text);
    let mut response = (status, [(header::CONTENT_TYPE, label)], body).into_response();
    response.extensions_mut().insert(RefusalText(text));
    response
}

/// The text of an error about a body that could not be read.
pub(crate) fn unreadable(why: impl fmt::Display) -> String {
    format!("the request's body could not be read: {why}")
}

impl IntoResponse for ApiError {
    /// 503 says when to try again.
    fn into_response(self) -> Response {
        let status = self.http_status();
        let label = if self.plain { PLAIN } else { JSON };
        let mut response = error_response(status, label, self.message);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<ApiError> for tonic::Status {
    fn from(error: ApiError) -> Self {
        let code = match error.kind {
            FailureKind::TooSlow => tonic::Code::DeadlineExceeded,
            FailureKind::NoMemory => tonic::Code::ResourceExhausted,
            FailureKind::AlreadyExists => tonic::Code::AlreadyExists,
            FailureKind::Runtime(kind) => match kind {
                ErrorKind::NotFound => tonic::Code::NotFound,
                ErrorKind::Unavailable => tonic::Code::Unavailable,
                ErrorKind::Unsupported => tonic::Code::Unimplemented,
                ErrorKind::Exhausted | ErrorKind::Full => tonic::Code::ResourceExhausted,
                ErrorKind::Internal => tonic::Code::Internal,
                _ => tonic::Code::InvalidArgument,
            },
        };
        Self::new(code, error.message)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_slow_client_gets_a_timeout() {
        let error = ApiError::from(&BodyError::Stalled(Duration::from_secs(2)));
        assert_eq!(error.http_status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(
            tonic::Status::from(error).code(),
            tonic::Code::DeadlineExceeded
        );
    }

    #[test]
    fn kinds_map_as_on_triton() {
        for (kind, status, code) in [
            (
                ErrorKind::InvalidArgument,
                400,
                tonic::Code::InvalidArgument,
            ),
            (ErrorKind::NotFound, 404, tonic::Code::NotFound),
            (ErrorKind::Unavailable, 503, tonic::Code::Unavailable),
            (ErrorKind::Unsupported, 501, tonic::Code::Unimplemented),
            (ErrorKind::Exhausted, 500, tonic::Code::ResourceExhausted),
            (ErrorKind::Full, 503, tonic::Code::ResourceExhausted),
            (ErrorKind::Internal, 500, tonic::Code::Internal),
        ] {
            let error = ApiError::new(kind, "text");
            assert_eq!(error.http_status().as_u16(), status);
            assert_eq!(tonic::Status::from(error).code(), code);
        }
    }
}
