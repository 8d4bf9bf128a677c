//! Statistics of model versions.

use std::collections::BTreeMap;

use skep_runtime::{
    DurationStatistic, ErrorKind, LoadedVersion, Runtime, RuntimeError, StatisticsSnapshot,
};
use skep_wire::documents::{
    BatchSizeStatistics, CountedDuration, InferenceStatistics, ModelStatistics,
    ObjectiveStatistics, SequenceStatistics, StatisticsReport,
};

use crate::error::ApiError;

/// The statistics of all loaded versions.
pub(crate) fn of_all(runtime: &Runtime) -> StatisticsReport {
    let versions = runtime.loaded();
    StatisticsReport {
        versions: versions.iter().map(|loaded| of_version(loaded)).collect(),
    }
}

/// The statistics of a model's version, or of all its versions where `version` is empty or absent.
pub(crate) fn of_model(
    runtime: &Runtime,
    model: &str,
    version: Option<&str>,
) -> Result<StatisticsReport, ApiError> {
    if runtime.loads_on_request(model, version) {
        // It is known and not resident.
        let versions = Vec::new();
        return Ok(StatisticsReport { versions });
    }
    let chosen = runtime
        .resolve(model, version)
        .map_err(|error| no_statistics(runtime, model, error))?;
    let versions = match version.filter(|version| !version.is_empty()) {
        Some(_) => vec![of_version(&chosen)],
        None => {
            let versions = runtime.loaded();
            let of_model = versions
                .iter()
                .filter(|loaded| loaded.name() == chosen.name());
            of_model.map(|loaded| of_version(loaded)).collect()
        }
    };
    Ok(StatisticsReport { versions })
}

/// Why there are no statistics of a model or version. Unlike elsewhere, Triton calls a missing model an invalid
/// argument here.
fn no_statistics(runtime: &Runtime, model: &str, error: RuntimeError) -> ApiError {
    match error.kind() {
        ErrorKind::InvalidArgument => error.into(),
        _ if runtime.resolve(model, None).is_ok() => ApiError::invalid(format!(
            "requested model version is not available for model '{model}'"
        )),
        _ => ApiError::invalid(format!("requested model '{model}' is not available")),
    }
}

fn of_version(loaded: &LoadedVersion) -> ModelStatistics {
    let figures = loaded.statistics();
    ModelStatistics {
        name: loaded.name().to_string(),
        version: loaded.version().to_string(),
        last_inference_ms: figures.last_inference_ms,
        inference_count: figures.inference_count,
        execution_count: figures.execution_count,
        inference: inference(&figures),
        responses: BTreeMap::new(),
        batches: batches(&figures),
        memory: Vec::new(),
        objective: figures.slo.map(|slo| ObjectiveStatistics {
            objective_ns: slo.objective_ns(),
            in_time: slo.in_time,
            late: slo.late,
            given_up: slo.given_up,
        }),
        sequences: loaded.policy().sequences.map(|counts| SequenceStatistics {
            used_slots: counts.used as u64,
            free_slots: counts.free as u64,
            waiting_sequences: counts.waiting as u64,
        }),
    }
}

fn inference(figures: &StatisticsSnapshot) -> InferenceStatistics {
    InferenceStatistics {
        success: duration(figures.success),
        fail: duration(figures.fail),
        queue: duration(figures.queue),
        compute_input: duration(figures.compute_input),
        compute_infer: duration(figures.compute_infer),
        compute_output: duration(figures.compute_output),
        cache_hit: duration(figures.cache_hit),
        cache_miss: duration(figures.cache_miss),
    }
}

fn batches(figures: &StatisticsSnapshot) -> Vec<BatchSizeStatistics> {
    let batches = figures.batches.iter();
    batches
        .map(|(size, batch)| BatchSizeStatistics {
            batch_size: *size as u64,
            compute_input: duration(batch.compute_input),
            compute_infer: duration(batch.compute_infer),
            compute_output: duration(batch.compute_output),
        })
        .collect()
}

const fn duration(statistic: DurationStatistic) -> CountedDuration {
    CountedDuration {
        count: statistic.count,
        ns: statistic.ns,
    }
}
