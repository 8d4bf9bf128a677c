//! The model repository: its index, load and unload.
//!
//! Texts and statuses are Triton's, which answers 500 to a body that it cannot read here.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode, response::Response};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value};
use skep_runtime::{ErrorKind, LoadOverrides};

use super::{
    extract::{HeldMemory, JsonBody, ModelPath, SmallJsonBody},
    lean,
    reply::{document, json},
};
use crate::{
    error::ApiError,
    management::repository::{self as management, FILE_PREFIX, UnloadTerms},
    off_reactor::off_reactor,
    state::ServerState,
};

type JsonObject = Map<String, Value>;

/// The depth of a body: an object, with `parameters` as an object in it.
const BODY_DEPTH: usize = 2;

/// A body that cannot be read.
fn unreadable(text: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Internal, text)
}

/// The members of a repository call's body other than `parameters`, and the parameters; an empty body has neither.
pub(super) fn parameters(body: &Bytes, what: &str) -> Result<(JsonObject, JsonObject), ApiError> {
    if body.is_empty() {
        return Ok((JsonObject::new(), JsonObject::new()));
    }
    let parsed = lean::parse(body, BODY_DEPTH)
        .map_err(|error| unreadable(format!("failed to parse the request JSON buffer: {error}")))?;
    let Value::Object(mut top) = parsed else {
        return Err(unreadable(format!(
            "the body of {what} must be a JSON object"
        )));
    };
    match top.remove("parameters") {
        None => Ok((top, Map::new())),
        Some(Value::Object(parameters)) => Ok((top, parameters)),
        Some(_) => Err(unreadable("attempt to get members for non-object")),
    }
}

pub(super) async fn index(
    State(state): State<Arc<ServerState>>,
    SmallJsonBody(body): SmallJsonBody,
) -> Result<Response, ApiError> {
    let (top, _) = parameters(&body, "a repository index request")?;
    let ready_only = match top.get("ready") {
        None => false,
        Some(Value::Bool(ready)) => *ready,
        Some(_) => {
            return Err(unreadable("attempt to access JSON non-boolean as boolean"));
        }
    };
    let index = management::index(&state.runtime, ready_only).await?;
    Ok(document(&index))
}

pub(super) async fn load(
    State(state): State<Arc<ServerState>>,
    path: ModelPath,
    HeldMemory(charge): HeldMemory,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    // For the texts, and for the files decoded from them.
    charge.add(body.len().saturating_mul(2))?;
    let read = move || {
        let (_, parameters) = parameters(&body, "a load request")?;
        overrides(parameters)
    };
    let overrides = LoadOverrides {
        charge: Some(charge),
        ..off_reactor(read).await??
    };
    state.runtime.request_load(&path.model, overrides).await?;
    Ok(json(StatusCode::OK, ""))
}

/// The overrides in a load request's parameters. Files are in base64.
pub(super) fn overrides(parameters: JsonObject) -> Result<LoadOverrides, ApiError> {
    let mut overrides = LoadOverrides::default();
    for (key, value) in parameters {
        let Value::String(text) = value else {
            return Err(unreadable("attempt to access JSON non-string as string"));
        };
        if key == management::CONFIG {
            overrides.config = Some(text);
        } else if let Some(path) = key.strip_prefix(FILE_PREFIX) {
            let data = BASE64_STANDARD.decode(text).map_err(|error| {
                ApiError::invalid(format!("load parameter '{key}' is not base64: {error}"))
            })?;
            overrides.files.push((path.to_owned(), Bytes::from(data)));
        } else {
            return Err(management::unrecognized_load_parameter(&key));
        }
    }
    Ok(overrides)
}

pub(super) async fn unload(
    State(state): State<Arc<ServerState>>,
    path: ModelPath,
    SmallJsonBody(body): SmallJsonBody,
) -> Result<Response, ApiError> {
    let (_, parameters) = parameters(&body, "an unload request")?;
    let mut terms = UnloadTerms::default();
    for (key, value) in &parameters {
        terms.read(key, value.as_bool())?;
    }
    let unloading = state.runtime.request_unload(&path.model, terms.dependents);
    unloading.await?;
    Ok(json(StatusCode::OK, ""))
}

pub(super) async fn named_repository() -> ApiError {
    management::named_repository()
}
