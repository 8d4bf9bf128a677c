//! How batches are formed, and why.

use skep_runtime::PolicySnapshot;

use super::version::{NS_PER_US, VersionFigures};
use crate::metrics::text::MetricsText;

/// A metric's figure, from the state of a policy.
type PolicyFigure = fn(&PolicySnapshot) -> Option<f64>;

/// Gauges of a batching policy: name, help, figure; `None` if the policy has no such figure.
const POLICY_GAUGES: [(&str, &str, PolicyFigure); 5] = [
    (
        "skep_batching_cap",
        "Inferences in the largest batch that the policy forms now",
        |policy| Some(policy.cap as f64),
    ),
    (
        "skep_batching_target",
        "Inferences that an idle instance now waits for before it starts a batch; 1 if it does not wait",
        |policy| Some(policy.target as f64),
    ),
    (
        "skep_batching_objective_us",
        "How long an answer may take, in microseconds",
        |policy| Some(policy.objective?.as_nanos() as f64 / NS_PER_US as f64),
    ),
    (
        "skep_batching_percentile",
        "The percentile of latency that the policy plans by, as set by `slo_percentile`",
        |policy| Some(policy.percentile?.percent()),
    ),
    (
        "skep_batching_arrival_rate",
        "Arrival rate that the policy has measured, in inferences per second",
        |policy| policy.arrivals_per_s,
    ),
];

pub(super) fn batch_ends(text: &mut MetricsText, rows: &[VersionFigures]) {
    let mut family = text.family(
        "skep_batch_end_total",
        "Executions by the reason their batch was not larger",
        "counter",
    );
    for row in rows {
        for (reason, count) in row.figures.batch_ends.iter() {
            family.line(&row.labels.with("reason", reason), count);
        }
    }
}

/// What the batching policies are doing, and why.
pub(super) fn policies(text: &mut MetricsText, rows: &[VersionFigures]) {
    let mut family = text.family(
        "skep_batching_policy_info",
        "The policy that forms batches; always 1",
        "gauge",
    );
    for row in rows {
        family.line(&row.labels.with("policy", row.policy.policy), 1);
    }
    let mut family = text.family(
        "skep_batching_last_batch_size",
        "Inferences in the last batch, by the reason it was not larger",
        "gauge",
    );
    for row in rows {
        if let Some((size, end)) = row.policy.last_batch {
            family.line(&row.labels.with("reason", end.name()), size);
        }
    }
    let mut family = text.family(
        "skep_batching_given_up_total",
        "Requests that waited too long or would have been late, by the action taken",
        "counter",
    );
    for row in rows {
        let PolicySnapshot {
            rejected, delayed, ..
        } = row.policy;
        for (action, count) in [("DELAY", delayed), ("REJECT", rejected)] {
            family.line(&row.labels.with("action", action), count);
        }
    }
    for (name, help, figure) in POLICY_GAUGES {
        let mut family = text.family(name, help, "gauge");
        for row in rows {
            if let Some(value) = figure(&row.policy) {
                family.line(&row.labels, value);
            }
        }
    }
    let mut family = text.family(
        "skep_batching_latency_us",
        "What an execution takes at the percentile that the policy plans by, in microseconds, by batch size",
        "gauge",
    );
    for row in rows {
        for (size, took) in &row.policy.latencies {
            let us = took.as_nanos() as f64 / NS_PER_US as f64;
            family.line(&row.labels.with("batch_size", &size.to_string()), us);
        }
    }
}

/// The slots of models whose requests belong to sequences, and the sequences that wait for one.
pub(super) fn sequences(text: &mut MetricsText, rows: &[VersionFigures]) {
    let counted = rows
        .iter()
        .filter_map(|row| Some((row, row.policy.sequences?)));
    let mut family = text.family(
        "skep_sequence_slots",
        "Slots of sequences, or candidates, that live sequences have (`used`) or further ones could get (`free`)",
        "gauge",
    );
    for (row, counts) in counted.clone() {
        for (state, count) in [("free", counts.free), ("used", counts.used)] {
            family.line(&row.labels.with("state", state), count);
        }
    }
    let mut family = text.family(
        "skep_sequences_waiting",
        "Sequences that have started and wait for a slot",
        "gauge",
    );
    for (row, counts) in counted {
        family.line(&row.labels, counts.waiting);
    }
}
