//! Health, metadata, configuration, statistics.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

use super::{
    extract::ModelPath,
    reply::{document, json, plain},
};
use crate::{
    error::{self, ApiError},
    management::{metadata, residency, statistics},
    off_reactor::off_reactor,
    state::ServerState,
};

pub(super) async fn live() -> Response {
    health(StatusCode::OK)
}

/// Triton answers 400 where nothing is ready.
pub(super) async fn server_ready(State(state): State<Arc<ServerState>>) -> Response {
    health(if state.runtime.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::BAD_REQUEST
    })
}

/// The status says it all.
fn health(status: StatusCode) -> Response {
    (status, [(header::CONTENT_TYPE, error::PLAIN)]).into_response()
}

pub(super) async fn server_metadata(State(state): State<Arc<ServerState>>) -> Response {
    document(&metadata::of_server(&state))
}

pub(super) async fn model_ready(
    State(state): State<Arc<ServerState>>,
    path: ModelPath,
) -> Response {
    let runtime = &state.runtime;
    let ready = runtime.is_model_ready(&path.model, path.version.as_deref());
    if ready.unwrap_or(false) {
        health(StatusCode::OK)
    } else {
        plain(StatusCode::BAD_REQUEST, "Model version not ready")
    }
}

pub(super) async fn model_metadata(
    State(state): State<Arc<ServerState>>,
    path: ModelPath,
) -> Result<Response, ApiError> {
    let metadata = metadata::of_model(&state.runtime, &path.model, path.version.as_deref()).await?;
    Ok(document(&metadata))
}

pub(super) async fn model_config(
    State(state): State<Arc<ServerState>>,
    path: ModelPath,
) -> Result<Response, ApiError> {
    let runtime = &state.runtime;
    let loaded = runtime
        .acquire(&path.model, path.version.as_deref(), None)
        .await?;
    let body = skep_wire::config::to_json(loaded.config().proto());
    Ok(json(StatusCode::OK, body))
}

pub(super) async fn all_statistics(State(state): State<Arc<ServerState>>) -> Response {
    document(&statistics::of_all(&state.runtime))
}

/// All models, or those in the states of the query: `?state=resident,loading`; with `tensors=true` the tensors that they
/// use.
pub(super) async fn residency_status(
    State(state): State<Arc<ServerState>>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let query = uri.query().unwrap_or_default();
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
    let states = value("state=").unwrap_or_default().to_owned();
    let with_tensors = match value("tensors=") {
        Some("true") => true,
        None | Some("false") => false,
        Some(other) => {
            let text = format!("unknown value '{other}' of `tensors`, expected true or false");
            return Err(ApiError::invalid(text));
        }
    };
    let runtime = Arc::clone(&state.runtime);
    // Ten thousand models take some milliseconds.
    let status = off_reactor(move || {
        let status = residency::status(&runtime, &states, with_tensors)?;
        Ok(document(&status))
    });
    status.await?
}

pub(super) async fn model_statistics(
    State(state): State<Arc<ServerState>>,
    path: ModelPath,
) -> Result<Response, ApiError> {
    let report = statistics::of_model(&state.runtime, &path.model, path.version.as_deref())?;
    Ok(document(&report))
}
