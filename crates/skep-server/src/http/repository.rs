//! The model repository: its index, load and unload.
//!
//! Source of the texts and statuses: Triton answers 500 to a body that it cannot read here.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode, response::Response};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use skep_runtime::{ErrorKind, LoadOverrides};

use super::{
    extract::{Held, JsonBody, ModelPath, SmallJsonBody},
    json_response, lean,
};
use crate::{
    api::{self, FILE_PREFIX},
    error::ApiError,
    server::Shared,
};

type Object = Map<String, Value>;

/// A body is an object, and so are its parameters; nothing else in it is.
const BODY_DEPTH: usize = 2;

/// A body that cannot be read.
fn unreadable(text: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Internal, text)
}

/// The members of a repository call's body other than `parameters`, and the parameters: an empty body means none.
pub(super) fn parameters(body: &Bytes, what: &str) -> Result<(Object, Object), ApiError> {
    if body.is_empty() {
        return Ok((Object::new(), Object::new()));
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
    State(shared): State<Arc<Shared>>,
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
    let rows = shared.runtime.request_index(ready_only).await?;
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            let mut entry = Map::new();
            entry.insert("name".to_owned(), json!(row.name.as_str()));
            if let Some(version) = row.version {
                entry.insert("version".to_owned(), json!(version.to_string()));
            }
            if let Some(state) = row.state {
                entry.insert("state".to_owned(), json!(state.name()));
            }
            if !row.reason.is_empty() {
                entry.insert("reason".to_owned(), json!(row.reason));
            }
            Value::Object(entry)
        })
        .collect();
    Ok(json_response(
        StatusCode::OK,
        Value::Array(rows).to_string(),
    ))
}

pub(super) async fn load(
    State(shared): State<Arc<Shared>>,
    path: ModelPath,
    Held(charge): Held,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    // Its texts, and the files in them.
    charge.add(body.len().saturating_mul(2))?;
    let read = move || {
        let (_, parameters) = parameters(&body, "a load request")?;
        overrides(parameters)
    };
    let overrides = LoadOverrides {
        charge: Some(charge),
        ..api::off_reactor(read).await??
    };
    shared.runtime.request_load(&path.model, overrides).await?;
    Ok(json_response(StatusCode::OK, ""))
}

/// What a load request's parameters say. Files come in base64.
pub(super) fn overrides(parameters: Object) -> Result<LoadOverrides, ApiError> {
    let mut overrides = LoadOverrides::default();
    for (key, value) in parameters {
        let Value::String(text) = value else {
            return Err(unreadable("attempt to access JSON non-string as string"));
        };
        if key == api::CONFIG {
            overrides.config = Some(text);
        } else if let Some(path) = key.strip_prefix(FILE_PREFIX) {
            let data = BASE64_STANDARD.decode(text).map_err(|error| {
                ApiError::invalid(format!("load parameter '{key}' is not base64: {error}"))
            })?;
            overrides.files.push((path.to_owned(), Bytes::from(data)));
        } else {
            return Err(api::unrecognized_load_parameter(&key));
        }
    }
    Ok(overrides)
}

pub(super) async fn unload(
    State(shared): State<Arc<Shared>>,
    path: ModelPath,
    SmallJsonBody(body): SmallJsonBody,
) -> Result<Response, ApiError> {
    let (_, parameters) = parameters(&body, "an unload request")?;
    for (key, value) in &parameters {
        api::check_unload_parameter(key, value.is_boolean())?;
    }
    shared.runtime.request_unload(&path.model).await?;
    Ok(json_response(StatusCode::OK, ""))
}

pub(super) async fn named_repository() -> ApiError {
    ApiError::new(
        ErrorKind::Unsupported,
        "'repository_name' specification is not supported",
    )
}
