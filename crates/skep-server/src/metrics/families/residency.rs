//! Which models are in memory: bytes, models in each state, decisions. Their number does not depend on that of models.

use skep_runtime::Runtime;

use crate::metrics::text::{MetricLabels, MetricsText};

/// Sums over all models. `left_out` is the number of loaded models without series of their own.
pub(super) fn render(text: &mut MetricsText, runtime: &Runtime, left_out: usize) {
    let sums = runtime.residency_sums();
    let figures = sums.figures;
    let none = MetricLabels::default();
    if let Some(budget) = sums.budget {
        let help = "Memory that all models together may hold, in bytes";
        text.family("skep_residency_budget_bytes", help, "gauge")
            .line(&none, budget);
    }
    let help = "Memory of models, in bytes: used counts towards the budget; held by models in memory, each shared tensor once; shared, the tensors among it; unshared, if no model shared anything; leaving, about to be free; kept in the store for no model";
    let mut family = text.family("skep_residency_memory_bytes", help, "gauge");
    for (kind, bytes) in [
        ("used", figures.used),
        ("held", figures.held),
        ("shared", figures.shared),
        ("unshared", figures.unshared),
        ("leaving", figures.leaving),
        ("kept", figures.kept),
    ] {
        family.line(&none.with("kind", kind), bytes);
    }
    let mut family = text.family("skep_residency_models", "Models in each state", "gauge");
    for (state, count) in sums.states {
        family.line(&none.with("state", state.name()), count);
    }
    let help = "Decisions about models: loads, departures for others (evict) and of idle models (expire), refusals, failed loads, changes of instances (scale), of live configurations (configure)";
    let mut family = text.family("skep_residency_decisions_total", help, "counter");
    for (kind, count) in sums.counts {
        family.line(&none.with("kind", kind.name()), count);
    }
    devices(text, runtime);
    let help = "Loaded models without series of their own, by --metrics-models";
    text.family("skep_metrics_models_left_out", help, "gauge")
        .line(&none, left_out);
}

/// The node's devices, if it has some.
fn devices(text: &mut MetricsText, runtime: &Runtime) {
    let reports = runtime.device_reports();
    if reports.is_empty() {
        return;
    }
    let labels: Vec<MetricLabels> = reports
        .iter()
        .map(|report| MetricLabels::default().with("device", &report.device.name))
        .collect();
    let help =
        "Memory of a device, in bytes: total, what its models may hold; used, what they take";
    let mut family = text.family("skep_device_memory_bytes", help, "gauge");
    for (report, labels) in reports.iter().zip(&labels) {
        let total = report.device.memory_bytes;
        for (kind, bytes) in [("total", total), ("used", report.memory_used)] {
            family.line(&labels.with("kind", kind), bytes);
        }
    }
    let help = "Cores of a device: total; used, if all of its instances compute at once";
    let mut family = text.family("skep_device_cores", help, "gauge");
    for (report, labels) in reports.iter().zip(&labels) {
        let total = f64::from(report.device.cpus.count());
        let used = report.millicores_used as f64 / 1e3;
        for (kind, cores) in [("total", total), ("used", used)] {
            family.line(&labels.with("kind", kind), cores);
        }
    }
    let help = "Instances on a device";
    let mut family = text.family("skep_device_instances", help, "gauge");
    for (report, labels) in reports.iter().zip(&labels) {
        family.line(labels, report.instances);
    }
}
