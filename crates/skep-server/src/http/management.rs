//! Everything but inference: health, metadata, configuration, statistics, repository.

use std::sync::Arc;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use skep_runtime::{BatchStatistics, DurationStatistic, LoadedVersion, StatisticsSnapshot};

use super::{
    extract::{JsonBody, ModelPath},
    json_response,
};
use crate::{
    api::{self, TensorMetadata},
    error::ApiError,
    server::Shared,
};

fn resolve(shared: &Shared, path: &ModelPath) -> Result<Arc<LoadedVersion>, ApiError> {
    Ok(shared
        .runtime
        .resolve(&path.model, path.version.as_deref())?)
}

fn ok(value: &Value) -> Response {
    json_response(StatusCode::OK, value.to_string())
}

pub(super) async fn server_ready(State(shared): State<Arc<Shared>>) -> StatusCode {
    ready(shared.runtime.is_ready())
}

/// Triton answers 400 where nothing is ready.
fn ready(is_ready: bool) -> StatusCode {
    if is_ready {
        StatusCode::OK
    } else {
        StatusCode::BAD_REQUEST
    }
}

pub(super) async fn server_metadata(State(shared): State<Arc<Shared>>) -> Response {
    ok(&json!({
        "name": shared.server_name,
        "version": api::PROTOCOL_VERSION,
        "extensions": api::EXTENSIONS,
    }))
}

pub(super) async fn model_ready(State(shared): State<Arc<Shared>>, path: ModelPath) -> Response {
    let healthy = resolve(&shared, &path).is_ok_and(|loaded| loaded.is_healthy());
    ready(healthy).into_response()
}

pub(super) async fn model_metadata(
    State(shared): State<Arc<Shared>>,
    path: ModelPath,
) -> Result<Response, ApiError> {
    let loaded = resolve(&shared, &path)?;
    let metadata = api::metadata(&shared.runtime, &loaded, path.version.as_deref());
    let tensors = |tensors: &[TensorMetadata]| -> Vec<Value> {
        tensors
            .iter()
            .map(|t| json!({ "name": t.name, "datatype": t.datatype.protocol_name(), "shape": t.shape }))
            .collect()
    };
    Ok(ok(&json!({
        "name": metadata.name,
        "versions": metadata.versions,
        "platform": metadata.platform,
        "inputs": tensors(&metadata.inputs),
        "outputs": tensors(&metadata.outputs),
    })))
}

pub(super) async fn model_config(
    State(shared): State<Arc<Shared>>,
    path: ModelPath,
) -> Result<Response, ApiError> {
    let loaded = resolve(&shared, &path)?;
    let body = skep_wire::config::to_json(loaded.config().proto());
    Ok(json_response(StatusCode::OK, body))
}

pub(super) async fn all_statistics(State(shared): State<Arc<Shared>>) -> Response {
    let all: Vec<Value> = shared
        .runtime
        .loaded()
        .iter()
        .map(|loaded| statistics(loaded))
        .collect();
    ok(&json!({ "model_stats": all }))
}

pub(super) async fn model_statistics(
    State(shared): State<Arc<Shared>>,
    path: ModelPath,
) -> Result<Response, ApiError> {
    let chosen = resolve(&shared, &path)?;
    let all: Vec<Value> = match path.version {
        Some(_) => vec![statistics(&chosen)],
        None => {
            let loaded = shared.runtime.loaded();
            loaded
                .iter()
                .filter(|loaded| loaded.name() == chosen.name())
                .map(|loaded| statistics(loaded))
                .collect()
        }
    };
    Ok(ok(&json!({ "model_stats": all })))
}

fn statistics(loaded: &LoadedVersion) -> Value {
    let figures = loaded.statistics();
    json!({
        "name": loaded.name().as_str(),
        "version": loaded.version().to_string(),
        "last_inference": figures.last_inference_ms,
        "inference_count": figures.inference_count,
        "execution_count": figures.execution_count,
        "inference_stats": inference_statistics(&figures),
        "response_stats": {},
        "batch_stats": figures.batches.iter().map(|(size, b)| batch_statistics(*size, b)).collect::<Vec<_>>(),
        "memory_usage": [],
    })
}

fn inference_statistics(figures: &StatisticsSnapshot) -> Value {
    json!({
        "success": duration(figures.success),
        "fail": duration(figures.fail),
        "queue": duration(figures.queue),
        "compute_input": duration(figures.compute_input),
        "compute_infer": duration(figures.compute_infer),
        "compute_output": duration(figures.compute_output),
        "cache_hit": duration(DurationStatistic::default()),
        "cache_miss": duration(DurationStatistic::default()),
    })
}

fn batch_statistics(size: usize, batch: &BatchStatistics) -> Value {
    json!({
        "batch_size": size,
        "compute_input": duration(batch.compute_input),
        "compute_infer": duration(batch.compute_infer),
        "compute_output": duration(batch.compute_output),
    })
}

fn duration(statistic: DurationStatistic) -> Value {
    json!({ "count": statistic.count, "ns": statistic.ns })
}

type Object = Map<String, Value>;

/// The members of a repository call's body other than `parameters`, and the parameters: an empty body means none.
fn parameters(body: &Bytes, what: &str) -> Result<(Object, Object), ApiError> {
    if body.is_empty() {
        return Ok((Object::new(), Object::new()));
    }
    let parsed: Value = serde_json::from_slice(body).map_err(|error| {
        ApiError::invalid(format!("failed to parse the request JSON buffer: {error}"))
    })?;
    let Value::Object(mut top) = parsed else {
        return Err(ApiError::invalid(format!(
            "the body of {what} must be a JSON object"
        )));
    };
    match top.remove("parameters") {
        None => Ok((top, Map::new())),
        Some(Value::Object(parameters)) => Ok((top, parameters)),
        Some(_) => Err(ApiError::invalid(
            "Unable to parse 'parameters': attempt to access JSON non-object as object",
        )),
    }
}

pub(super) async fn index(
    State(shared): State<Arc<Shared>>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let (top, _) = parameters(&body, "a repository index request")?;
    let ready_only = match top.get("ready") {
        None => false,
        Some(Value::Bool(ready)) => *ready,
        Some(other) => {
            return Err(ApiError::invalid(format!(
                "`ready` must be true or false, got {other}"
            )));
        }
    };
    let runtime = Arc::clone(&shared.runtime);
    let rows = api::blocking(move || Ok(runtime.index(ready_only))).await?;
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
    Ok(ok(&Value::Array(rows)))
}

pub(super) async fn load(
    State(shared): State<Arc<Shared>>,
    path: ModelPath,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let (_, parameters) = parameters(&body, "a load request")?;
    if let Some(key) = parameters.keys().next() {
        return Err(api::refused_load_parameter(key));
    }
    let runtime = Arc::clone(&shared.runtime);
    api::blocking(move || runtime.load(&path.model)).await?;
    Ok(json_response(StatusCode::OK, ""))
}

pub(super) async fn unload(
    State(shared): State<Arc<Shared>>,
    path: ModelPath,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let (_, parameters) = parameters(&body, "an unload request")?;
    for (key, value) in &parameters {
        // Without ensembles a model has no dependents: true and false mean the same.
        if key != "unload_dependents" || !value.is_boolean() {
            return Err(ApiError::invalid(format!(
                "unexpected unload parameter `{key}` of value {value}, expected `unload_dependents` of true or false"
            )));
        }
    }
    let runtime = Arc::clone(&shared.runtime);
    api::blocking(move || runtime.unload(&path.model)).await?;
    Ok(json_response(StatusCode::OK, ""))
}

pub(super) async fn named_repository() -> ApiError {
    ApiError::new(
        skep_runtime::ErrorKind::Unsupported,
        "'repository_name' specification is not supported",
    )
}
