//! `/v2/systemsharedmemory` and `/v2/cudasharedmemory`.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Path, State},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use skep_wire::documents::SystemRegion;

use super::{
    extract::SmallJsonBody,
    fault::json_error,
    lean,
    reply::{document, json},
};
use crate::{error::ApiError, management::shared_memory as management, state::ServerState};

/// `{region}`; empty where the route has none, which means all regions.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RegionPath {
    #[serde(default)]
    region: String,
}

impl FromRequestParts<Arc<ServerState>> for RegionPath {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<ServerState>,
    ) -> Result<Self, Response> {
        let path = Path::from_request_parts(parts, state).await;
        let Path(path) =
            path.map_err(|error| ApiError::invalid(error.body_text()).into_response())?;
        Ok(path)
    }
}

pub(super) async fn system_status(
    State(state): State<Arc<ServerState>>,
    path: RegionPath,
) -> Result<Response, ApiError> {
    Ok(document(&management::system_status(&state, &path.region)?))
}

pub(super) async fn system_register(
    State(state): State<Arc<ServerState>>,
    path: RegionPath,
    SmallJsonBody(body): SmallJsonBody,
) -> Result<Response, ApiError> {
    // Before anything about the body: it is the same for every body.
    state.regions()?;
    let body = lean::parse(&body, 1).map_err(|error| json_error(&error))?;
    let Value::Object(members) = body else {
        return Err(ApiError::invalid(
            "the body of a shared-memory register request must be a JSON object",
        ));
    };
    let region = SystemRegion {
        name: path.region,
        key: key(&members)?,
        offset: bytes(&members, "offset")?.unwrap_or(0),
        byte_size: bytes(&members, "byte_size")?.ok_or_else(|| absent("byte_size"))?,
    };
    management::system_register(&state, &region)?;
    Ok(done())
}

fn key(members: &Map<String, Value>) -> Result<String, ApiError> {
    let key = members.get("key").ok_or_else(|| absent("key"))?;
    let text = key.as_str().map(str::to_owned);
    text.ok_or_else(|| mismatch("non-string as string"))
}

/// A member that is a number of bytes.
fn bytes(members: &Map<String, Value>, name: &str) -> Result<Option<u64>, ApiError> {
    let Some(value) = members.get(name) else {
        return Ok(None);
    };
    let bytes = value.as_u64();
    bytes
        .map(Some)
        .ok_or_else(|| mismatch("non-unsigned-integer as unsigned-integer"))
}

fn absent(member: &str) -> ApiError {
    ApiError::invalid(format!(
        "attempt to access non-existing object member '{member}'"
    ))
}

fn mismatch(what: &str) -> ApiError {
    ApiError::invalid(format!("attempt to access JSON {what}"))
}

pub(super) async fn system_unregister(
    State(state): State<Arc<ServerState>>,
    path: RegionPath,
) -> Result<Response, ApiError> {
    management::system_unregister(&state, &path.region)?;
    Ok(done())
}

pub(super) async fn cuda_status(
    State(state): State<Arc<ServerState>>,
    path: RegionPath,
) -> Result<Response, ApiError> {
    management::cuda_status(&state, &path.region)?;
    let none: [SystemRegion; 0] = [];
    Ok(document(&none))
}

pub(super) async fn cuda_register(
    State(state): State<Arc<ServerState>>,
    path: RegionPath,
) -> ApiError {
    management::cuda_register(&state, &path.region)
}

pub(super) async fn cuda_unregister(
    State(state): State<Arc<ServerState>>,
) -> Result<Response, ApiError> {
    management::cuda_unregister(&state)?;
    Ok(done())
}

/// Success, as Triton says it.
fn done() -> Response {
    json(StatusCode::OK, "")
}
