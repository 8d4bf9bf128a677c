//! Which models are in memory, and why.

use skep_runtime::{
    DecisionReport, DeviceReport, LoadPolicy, ModelReport, ResidencyReport, ResidencyState,
    RunReport, Runtime,
};
use skep_store::Digest;
use skep_wire::documents::{
    ConfigurationRow, DecisionRow, DeviceRow, ModelStatus, ResidencyMemory, ResidencyStatus,
    TensorRow,
};

use crate::error::ApiError;

/// Residency now, with the models in the states that `wanted` names, separated by commas; all models if it is empty.
pub(crate) fn status(
    runtime: &Runtime,
    wanted: &str,
    with_tensors: bool,
) -> Result<ResidencyStatus, ApiError> {
    let names = wanted.split(',').filter(|name| !name.is_empty());
    let states: Result<Vec<ResidencyState>, ApiError> = names.map(state).collect();
    Ok(document(runtime.residency(&states?, with_tensors)))
}

fn state(name: &str) -> Result<ResidencyState, ApiError> {
    let mut states = ResidencyState::ALL.into_iter();
    states.find(|state| state.name() == name).ok_or_else(|| {
        let names = ResidencyState::ALL.map(ResidencyState::name);
        let names = names.join(", ");
        ApiError::invalid(format!("unknown state '{name}', expected one of {names}"))
    })
}

fn document(report: ResidencyReport) -> ResidencyStatus {
    let settings = report.settings;
    let sums = report.sums;
    let figures = sums.figures;
    let load_policy = match settings.load_policy {
        LoadPolicy::Eager => "eager",
        LoadPolicy::Lazy => "lazy",
    };
    let counts = sums.counts.into_iter();
    let states = sums.states.into_iter();
    ResidencyStatus {
        load_policy: load_policy.to_owned(),
        eviction_policy: settings.policy.name().to_owned(),
        memory: ResidencyMemory {
            budget: sums.budget,
            used: figures.used,
            held: figures.held,
            shared: figures.shared,
            unshared: figures.unshared,
            leaving: figures.leaving,
            kept: figures.kept,
        },
        states: states
            .map(|(state, count)| (state.name().to_owned(), count))
            .collect(),
        decision_counts: counts
            .map(|(kind, count)| (kind.name().to_owned(), count))
            .collect(),
        devices: report.devices.into_iter().map(device).collect(),
        models: report.models.into_iter().map(model).collect(),
        decisions: report.decisions.into_iter().map(decision).collect(),
    }
}

fn model(report: ModelReport) -> ModelStatus {
    let figures = report.figures;
    let (least, most) = report.instance_bounds.unzip();
    ModelStatus {
        name: report.name.to_string(),
        namespace: report.namespace.map(|namespace| namespace.to_string()),
        state: figures.state.name().to_owned(),
        versions: report.versions.iter().map(ToString::to_string).collect(),
        instances: report.instances,
        devices: report.devices.into_iter().collect(),
        min_instances: least,
        max_instances: most,
        configuration: report.run.as_ref().map(configuration),
        pinned: figures.is_pinned,
        private_bytes: figures.private_bytes,
        shared_bytes: figures.shared_bytes,
        tensors: report.tensors.into_iter().map(tensor).collect(),
        measured: figures.is_measured,
        load_ms: rounded(figures.load_time.as_secs_f64() * 1e3),
        rate: rounded(report.rate),
        idle_seconds: rounded(figures.idle.as_secs_f64()),
        requests: report.requests,
        loads: report.loads,
        waiting: report.waiting,
        pending: report.pending,
        failure: report.failure,
        decision: report.decision.map(decision),
    }
}

fn configuration(report: &RunReport) -> ConfigurationRow {
    let decision = &report.decision;
    let prediction = decision.prediction;
    let late = rounded(prediction.late.as_secs_f64() * 1e3);
    ConfigurationRow {
        instances: report.configuration.instances,
        threads: report.configuration.threads,
        batch: report.configuration.batch,
        seconds: rounded(report.age.as_secs_f64()),
        rate: rounded(report.rate),
        predicted_p95_ms: prediction.serves.then_some(late),
        predicted_rate: rounded(prediction.throughput),
        why: decision.why.clone(),
    }
}

fn device(report: DeviceReport) -> DeviceRow {
    let DeviceReport {
        device,
        memory_used,
        millicores_used,
        instances,
    } = report;
    DeviceRow {
        name: device.name,
        cpus: device.cpus.to_string(),
        memory: device.memory_bytes,
        memory_used,
        cores: device.cpus.count(),
        cores_used: millicores_used as f64 / 1e3,
        instances,
    }
}

fn tensor((digest, bytes): (Digest, u64)) -> TensorRow {
    TensorRow {
        digest: digest.to_string(),
        bytes,
    }
}

fn decision(report: DecisionReport) -> DecisionRow {
    DecisionRow {
        model: report.name.to_string(),
        what: report.kind.name().to_owned(),
        why: report.why,
        seconds_ago: rounded(report.ago.as_secs_f64()),
    }
}

/// To three digits after the point.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
