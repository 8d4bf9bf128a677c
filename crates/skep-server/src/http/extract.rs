//! What handlers take out of a request, with errors in the protocol's form.

use std::sync::Arc;

use axum::{
    body::to_bytes,
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::request::Parts,
};
use bytes::Bytes;
use serde::Deserialize;

use crate::{error::ApiError, server::Shared};

/// `{model}` and, if the route has it, `{version}`.
#[derive(Debug, Deserialize)]
pub(super) struct ModelPath {
    pub(super) model: String,
    pub(super) version: Option<String>,
}

impl FromRequestParts<Arc<Shared>> for ModelPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        let Path(path) = Path::from_request_parts(parts, shared)
            .await
            .map_err(|error| ApiError::invalid(error.body_text()))?;
        Ok(path)
    }
}

/// A body that is JSON as a whole: bounded as the JSON part of an inference request is.
pub(super) struct JsonBody(pub(super) Bytes);

impl FromRequest<Arc<Shared>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        let limit = shared.max_json_bytes;
        let body = to_bytes(request.into_body(), limit)
            .await
            .map_err(|error| {
                ApiError::invalid(format!(
                    "the request's body could not be read, or is longer than {limit} bytes: {error}"
                ))
            })?;
        Ok(Self(body))
    }
}
