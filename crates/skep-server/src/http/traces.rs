//! `/v2/trace/setting` and `/v2/models/{model}[/versions/{version}]/trace/setting`: trace settings, shown and changed.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde_json::{Map, Value};
use skep_tracing::TraceChange;

use super::{
    extract::{ModelPath, SmallJsonBody},
    fault::json_error,
    lean,
    reply::document,
};
use crate::{
    error::ApiError,
    management::traces::{self, GivenSetting, LEVEL, ShownSettings, TraceTarget},
    state::ServerState,
};

/// The depth of a body: an object, with lists in it.
const BODY_DEPTH: usize = 2;

pub(super) async fn show(State(state): State<Arc<ServerState>>) -> Result<Response, ApiError> {
    traces::show(&state, None).map(encode)
}

pub(super) async fn show_of_model(
    State(state): State<Arc<ServerState>>,
    path: ModelPath,
) -> Result<Response, ApiError> {
    traces::show(&state, target(&path)).map(encode)
}

pub(super) async fn change(
    State(state): State<Arc<ServerState>>,
    SmallJsonBody(body): SmallJsonBody,
) -> Result<Response, ApiError> {
    let change = decode(&state, &body)?;
    traces::change(&state, None, change).await.map(encode)
}

pub(super) async fn change_of_model(
    State(state): State<Arc<ServerState>>,
    path: ModelPath,
    SmallJsonBody(body): SmallJsonBody,
) -> Result<Response, ApiError> {
    let change = decode(&state, &body)?;
    let changed = traces::change(&state, target(&path), change).await;
    changed.map(encode)
}

fn target(path: &ModelPath) -> TraceTarget<'_> {
    Some((&path.model, path.version.as_deref()))
}

fn decode(state: &ServerState, body: &[u8]) -> Result<TraceChange, ApiError> {
    let body = lean::parse_with_arrays(body, BODY_DEPTH).map_err(|error| json_error(&error))?;
    let Value::Object(members) = body else {
        return Err(ApiError::invalid(
            "the body of a trace settings request must be a JSON object",
        ));
    };
    let mut change = TraceChange::default();
    for (name, value) in members {
        let given = match value {
            Value::Null => GivenSetting::Cleared,
            Value::Array(values) if name == LEVEL => {
                GivenSetting::Values(values.into_iter().map(text).collect::<Result<_, _>>()?)
            }
            _ if name == LEVEL => return Err(mismatch("non-array as array")),
            // Of a setting that does not exist, the value has no type.
            Value::String(value) => GivenSetting::Values(vec![value]),
            value if is_known(&name) => GivenSetting::Values(vec![text(value)?]),
            _ => continue,
        };
        traces::add(&mut change, state, &name, given)?;
    }
    Ok(change)
}

fn is_known(name: &str) -> bool {
    name.starts_with("trace_") || name == "log_frequency"
}

fn text(value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err(mismatch("non-string as string")),
    }
}

fn mismatch(what: &str) -> ApiError {
    ApiError::invalid(format!("attempt to access JSON {what}"))
}

/// Members in Triton's order; numbers are strings, as on Triton.
fn encode(shown: ShownSettings) -> Response {
    let members = shown.into_iter().map(|(name, mut values)| {
        let value = if name == LEVEL {
            values.into()
        } else {
            values.pop().unwrap_or_default().into()
        };
        (name.to_owned(), value)
    });
    document(&Value::Object(members.collect::<Map<_, _>>()))
}
