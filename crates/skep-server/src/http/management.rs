//! Health, metadata, configuration, statistics.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use skep_runtime::{BatchStatistics, DurationStatistic, LoadedVersion, StatisticsSnapshot};

use super::{extract::ModelPath, json_response, plain};
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

pub(super) fn ok(value: &Value) -> Response {
    json_response(StatusCode::OK, value.to_string())
}

pub(super) async fn live() -> Response {
    health(StatusCode::OK)
}

/// Triton answers 400 where nothing is ready.
pub(super) async fn server_ready(State(shared): State<Arc<Shared>>) -> Response {
    health(if shared.runtime.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::BAD_REQUEST
    })
}

/// A state of health is all in its status.
fn health(status: StatusCode) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain")]).into_response()
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
    if healthy {
        health(StatusCode::OK)
    } else {
        plain(StatusCode::BAD_REQUEST, "Model version not ready")
    }
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
    let chosen = shared
        .runtime
        .resolve(&path.model, path.version.as_deref())
        .map_err(|error| api::no_statistics(&shared.runtime, &path.model, error))?;
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

/// Shared memory is not served; the body of a call about it is not read.
pub(super) async fn no_shared_memory() -> ApiError {
    ApiError::unsupported("shared memory")
}

/// Nor are traces.
pub(super) async fn no_traces() -> ApiError {
    ApiError::unsupported("tracing")
}

fn statistics(loaded: &LoadedVersion) -> Value {
    let figures = loaded.statistics();
    let mut statistics = json!({
        "name": loaded.name().as_str(),
        "version": loaded.version().to_string(),
        "last_inference": figures.last_inference_ms,
        "inference_count": figures.inference_count,
        "execution_count": figures.execution_count,
        "inference_stats": inference_statistics(&figures),
        "response_stats": {},
        "batch_stats": figures.batches.iter().map(|(size, b)| batch_statistics(*size, b)).collect::<Vec<_>>(),
        "memory_usage": [],
    });
    if let Some(slo) = figures.slo {
        // Skep's own member: Triton's clients pass over it.
        statistics["slo_stats"] = json!({
            "objective_ns": slo.objective_ns(),
            "in_time": slo.in_time,
            "late": slo.late,
            "given_up": slo.given_up,
        });
    }
    statistics
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
