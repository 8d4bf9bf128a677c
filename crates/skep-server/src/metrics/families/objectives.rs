//! How models keep their latency objectives.

use skep_runtime::SloStatistics;

use super::version::VersionFigures;
use crate::metrics::text::MetricsText;

/// The outcome of requests, and how many had it.
type ObjectiveOutcome = (&'static str, fn(&SloStatistics) -> u64);

const OUTCOMES: [ObjectiveOutcome; 3] = [
    ("in_time", |slo| slo.in_time),
    ("late", |slo| slo.late),
    ("given_up", |slo| slo.given_up),
];

pub(super) fn render(text: &mut MetricsText, rows: &[VersionFigures]) {
    let mut family = text.family(
        "skep_slo_objective_us",
        "The latency objective that the model sets by `slo_latency_ms`, in microseconds",
        "gauge",
    );
    for (row, slo) in with_objective(rows) {
        family.line(&row.labels, slo.objective.as_nanos() as f64 / 1e3);
    }
    let mut family = text.family(
        "skep_slo_requests_total",
        "Requests to models with a latency objective: answered in time, answered late, given up",
        "counter",
    );
    for (row, slo) in with_objective(rows) {
        for (outcome, count) in OUTCOMES {
            family.line(&row.labels.with("outcome", outcome), count(&slo));
        }
    }
}

fn with_objective(
    rows: &[VersionFigures],
) -> impl Iterator<Item = (&VersionFigures, SloStatistics)> {
    rows.iter().filter_map(|row| Some((row, row.figures.slo?)))
}
