//! What handlers extract from a request, with errors in the protocol's form.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::request::Parts,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Deserialize;
use skep_runtime::ErrorKind;
use skep_tensor::Charge;

use crate::{
    access::AccessNote,
    bounds::MAX_MANAGEMENT_BYTES,
    edge::{self, UnreadBody},
    error::{self, ApiError, BodyError},
    state::ServerState,
};

/// `{model}` and, if the route has it, `{version}`.
#[derive(Debug, Deserialize)]
pub(super) struct ModelPath {
    pub(super) model: String,
    pub(super) version: Option<String>,
}

impl FromRequestParts<Arc<ServerState>> for ModelPath {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<ServerState>,
    ) -> Result<Self, Response> {
        let Path(path): Path<Self> = Path::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::invalid(error.body_text()).into_response())?;
        match &path.version {
            // Triton does not know a path whose version is not a number.
            Some(version) if !version.bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(super::reply::not_found())
            }
            _ => Ok(path),
        }
    }
}

impl FromRequestParts<Arc<ServerState>> for AccessNote {
    type Rejection = Infallible;

    async fn from_request_parts(
        parts: &mut Parts,
        _: &Arc<ServerState>,
    ) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}

/// Reads a whole body of at most `limit` bytes into one piece.
pub(super) async fn read_body(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    read_split_body(body, limit, None).await
}

/// As [`read_body`]. Byte `split`, where the JSON part ends and binary data begins, is aligned if that costs nothing.
pub(super) async fn read_split_body(
    body: Body,
    limit: usize,
    split: Option<usize>,
) -> Result<Bytes, ApiError> {
    let whole = edge::read_body(body, limit, |_| split).await;
    whole.map_err(|unread| match unread {
        UnreadBody::TooLong => ApiError::invalid(error::unreadable(format_args!(
            "it is longer than {limit} bytes"
        ))),
        UnreadBody::NoMemory => ApiError::new(
            ErrorKind::Unavailable,
            error::unreadable("the system is out of memory, try again later"),
        ),
        UnreadBody::Failed(error) => body_error(error),
    })
}

/// The connection's reason why a body could not be read, or any other failure.
fn body_error(error: axum::Error) -> ApiError {
    let error = error.into_inner();
    match error.downcast_ref::<BodyError>() {
        Some(error) => error.into(),
        None => ApiError::invalid(error::unreadable(error)),
    }
}

/// The charge of a request.
pub(super) struct HeldMemory(pub(super) Arc<Charge>);

impl<S: Sync> FromRequestParts<S> for HeldMemory {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let charge = parts.extensions.get().cloned();
        Ok(Self(
            charge.unwrap_or_else(|| Arc::new(Charge::unbounded())),
        ))
    }
}

/// A body that is JSON as a whole, with the same limit as the JSON part of an inference request.
pub(super) struct JsonBody(pub(super) Bytes);

impl FromRequest<Arc<ServerState>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<ServerState>) -> Result<Self, ApiError> {
        let body = read_body(request.into_body(), state.max_json_bytes).await?;
        Ok(Self(body))
    }
}

/// The JSON body of a management call without files.
pub(super) struct SmallJsonBody(pub(super) Bytes);

impl FromRequest<Arc<ServerState>> for SmallJsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<ServerState>) -> Result<Self, ApiError> {
        let limit = state.max_json_bytes.min(MAX_MANAGEMENT_BYTES);
        let body = read_body(request.into_body(), limit).await?;
        Ok(Self(body))
    }
}
