//! The metrics text, with Triton's names and meanings.
//!
//! Written out of the statistics themselves: a second set of counters beside them could only disagree.
//!
//! Source: Triton, user guide, "Metrics"; the Prometheus text exposition format 0.0.4.

use std::fmt::Write;

use skep_runtime::{FailureReason, LoadedVersion, Runtime, StatisticsSnapshot};

/// The content type of the text format.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A metric's figure out of a version's statistics.
type Figure = fn(&StatisticsSnapshot) -> u64;

/// Nanoseconds in a microsecond.
const NS_PER_US: u64 = 1_000;

/// Triton's counters of one value a model version: name, help, figure.
const COUNTERS: [(&str, &str, Figure); 8] = [
    (
        "nv_inference_count",
        "Number of inferences performed (does not include cached requests)",
        |s| s.inference_count,
    ),
    (
        "nv_inference_exec_count",
        "Number of model executions performed (does not include cached requests)",
        |s| s.execution_count,
    ),
    (
        "nv_inference_request_duration_us",
        "Cumulative inference request duration in microseconds (includes cached requests)",
        |s| s.success.ns / NS_PER_US,
    ),
    (
        "nv_inference_queue_duration_us",
        "Cumulative inference queuing duration in microseconds (includes cached requests)",
        |s| s.queue.ns / NS_PER_US,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        |s| s.compute_input.ns / NS_PER_US,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        |s| s.compute_infer.ns / NS_PER_US,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Cumulative inference compute output duration in microseconds (does not include cached requests)",
        |s| s.compute_output.ns / NS_PER_US,
    ),
    (
        "nv_inference_request_success",
        "Number of successful inference requests, all batch sizes",
        |s| s.success.count,
    ),
];

/// All metrics of a node.
pub(crate) fn render(runtime: &Runtime) -> String {
    let versions = runtime.loaded();
    let figures: Vec<StatisticsSnapshot> = versions
        .iter()
        .map(|version| version.statistics())
        .collect();
    let labels: Vec<String> = versions.iter().map(|version| labels(version)).collect();
    let mut text = String::new();
    for (name, help, figure) in COUNTERS {
        header(&mut text, name, help, "counter");
        for (figures, labels) in figures.iter().zip(&labels) {
            line(&mut text, name, labels, figure(figures));
        }
    }
    let name = "nv_inference_request_failure";
    header(
        &mut text,
        name,
        "Number of failed inference requests, all batch sizes",
        "counter",
    );
    for (figures, labels) in figures.iter().zip(&labels) {
        for (reason, count) in FailureReason::ALL.iter().zip(figures.failures) {
            line(
                &mut text,
                name,
                &format!("{labels},reason=\"{}\"", reason.label()),
                count,
            );
        }
    }
    let name = "nv_inference_pending_request_count";
    header(
        &mut text,
        name,
        "Instantaneous number of pending requests awaiting execution per-model.",
        "gauge",
    );
    for (version, labels) in versions.iter().zip(&labels) {
        line(&mut text, name, labels, version.pending() as u64);
    }
    text
}

fn labels(version: &LoadedVersion) -> String {
    format!(
        "model=\"{}\",version=\"{}\"",
        escape(version.name().as_str()),
        version.version()
    )
}

/// A label value: backslash, quote and line feed are escaped.
fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn header(text: &mut String, name: &str, help: &str, kind: &str) {
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a string takes all");
}

fn line(text: &mut String, name: &str, labels: &str, value: u64) {
    writeln!(text, "{name}{{{labels}}} {value}").expect("a string takes all");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(escape("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }

    #[test]
    fn a_family_is_a_header_and_lines() {
        let mut text = String::new();
        header(&mut text, "x", "what it is", "gauge");
        line(&mut text, "x", "model=\"m\"", 3);
        assert_eq!(
            text,
            "# HELP x what it is\n# TYPE x gauge\nx{model=\"m\"} 3\n"
        );
    }
}
