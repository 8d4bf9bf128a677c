//! The model repository: readiness, failed loads, failed polls.

use skep_runtime::Runtime;

use crate::metrics::{
    options::MetricsPortOptions,
    text::{MetricLabels, MetricsText},
};

/// Whether the node is ready, and how many loads of its models failed.
pub(super) fn loads(text: &mut MetricsText, runtime: &Runtime, options: &MetricsPortOptions) {
    text.family(
        "skep_ready",
        "Whether the server is ready, as /v2/health/ready says: 1 or 0",
        "gauge",
    )
    .line(&MetricLabels::default(), u8::from(runtime.is_ready()));
    let mut family = text.family(
        "skep_model_load_failures_total",
        "Failed loads of the model, initial ones and reloads; after a failed reload the model keeps serving what it had",
        "counter",
    );
    let failures = runtime.load_failures().into_iter();
    for (namespace, name, failures) in failures.filter(|(_, name, _)| options.shows(name.as_str()))
    {
        let mut labels = MetricLabels::default().with("model", name.as_str());
        if let Some(namespace) = namespace {
            labels = labels.with("namespace", &namespace);
        }
        family.line(&labels, failures);
    }
}

/// Writes how many polls of each repository failed; nothing if polling is off.
pub(super) fn polls(text: &mut MetricsText, runtime: &Runtime) {
    let name = "skep_repository_poll_failures_total";
    let help =
        "Polls that could not read the repository or something in it; its models stayed unchanged";
    let mut family = text.family(name, help, "counter");
    for (repository, failures) in runtime.poll_failures() {
        let labels = MetricLabels::default().with("repository", &repository);
        family.line(&labels, failures);
    }
}
