//! Requests and executions: Triton's counts, durations and summaries, and Skep's histograms.

use skep_config::HistogramFamily;
use skep_runtime::{FailureReason, HistogramStatistics, Phase, StatisticsSnapshot};

use super::version::{NS_PER_US, VersionFigures};
use crate::metrics::text::MetricsText;

/// Nanoseconds in a millisecond.
const NS_PER_MS: f64 = 1e6;

/// Upper bounds of the batch size histogram.
const BATCH_BOUNDS: [usize; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// A metric's figure, from a version's statistics.
type StatisticsFigure = fn(&StatisticsSnapshot) -> u64;

/// Triton's counters of requests: name, help, figure.
const COUNTERS: [(&str, &str, StatisticsFigure); 2] = [
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
];

/// Triton's metrics of a phase: its cumulative duration, and a summary with its own name and help.
struct PhaseFamily {
    phase: Phase,
    /// Between `nv_inference_` and `_duration_us` or `_summary_us`.
    name: &'static str,
    help: &'static str,
    summary_help: &'static str,
    ns: StatisticsFigure,
    count: StatisticsFigure,
}

const PHASES: [PhaseFamily; 5] = [
    PhaseFamily {
        phase: Phase::Request,
        name: "request",
        help: "Cumulative inference request duration in microseconds (includes cached requests)",
        summary_help: "Summary of inference request duration in microseconds (includes cached requests)",
        ns: |s| s.success.ns,
        count: |s| s.success.count,
    },
    PhaseFamily {
        phase: Phase::Queue,
        name: "queue",
        help: "Cumulative inference queuing duration in microseconds (includes cached requests)",
        summary_help: "Summary of inference queuing duration in microseconds (includes cached requests)",
        ns: |s| s.queue.ns,
        count: |s| s.queue.count,
    },
    PhaseFamily {
        phase: Phase::ComputeInput,
        name: "compute_input",
        help: COMPUTE_INPUT_HELP,
        summary_help: COMPUTE_INPUT_HELP,
        ns: |s| s.compute_input.ns,
        count: |s| s.compute_input.count,
    },
    PhaseFamily {
        phase: Phase::ComputeInfer,
        name: "compute_infer",
        help: COMPUTE_INFER_HELP,
        summary_help: COMPUTE_INFER_HELP,
        ns: |s| s.compute_infer.ns,
        count: |s| s.compute_infer.count,
    },
    PhaseFamily {
        phase: Phase::ComputeOutput,
        name: "compute_output",
        help: COMPUTE_OUTPUT_HELP,
        summary_help: COMPUTE_OUTPUT_HELP,
        ns: |s| s.compute_output.ns,
        count: |s| s.compute_output.count,
    },
];

const COMPUTE_INPUT_HELP: &str =
    "Cumulative compute input duration in microseconds (does not include cached requests)";
const COMPUTE_INFER_HELP: &str =
    "Cumulative compute inference duration in microseconds (does not include cached requests)";
const COMPUTE_OUTPUT_HELP: &str = "Cumulative inference compute output duration in microseconds (does not include cached requests)";

pub(super) fn requests(text: &mut MetricsText, rows: &[VersionFigures]) {
    let mut family = text.family(
        "nv_inference_request_success",
        "Number of successful inference requests, all batch sizes",
        "counter",
    );
    for row in rows {
        family.line(&row.labels, row.figures.success.count);
    }
    let mut family = text.family(
        "nv_inference_request_failure",
        "Number of failed inference requests, all batch sizes",
        "counter",
    );
    for row in rows {
        for (reason, count) in FailureReason::ALL.iter().zip(row.figures.failures) {
            family.line(&row.labels.with("reason", reason.label()), count);
        }
    }
    for (name, help, figure) in COUNTERS {
        let mut family = text.family(name, help, "counter");
        for row in rows {
            family.line(&row.labels, figure(&row.figures));
        }
    }
}

pub(super) fn durations(text: &mut MetricsText, rows: &[VersionFigures]) {
    for phase in &PHASES {
        let name = format!("nv_inference_{}_duration_us", phase.name);
        let mut family = text.family(&name, phase.help, "counter");
        for row in rows {
            family.line(&row.labels, (phase.ns)(&row.figures) / NS_PER_US);
        }
    }
}

pub(super) fn state(text: &mut MetricsText, rows: &[VersionFigures]) {
    let mut family = text.family(
        "nv_inference_pending_request_count",
        "Instantaneous number of pending requests awaiting execution per-model.",
        "gauge",
    );
    for row in rows {
        family.line(&row.labels, row.loaded.pending());
    }
    let mut family = text.family(
        "nv_model_load_duration_secs",
        "Model load time in seconds",
        "gauge",
    );
    for row in rows {
        family.line(&row.labels, row.loaded.load_duration().as_secs_f64());
    }
}

pub(super) fn summaries(text: &mut MetricsText, rows: &[VersionFigures], quantiles: &[f64]) {
    if quantiles.is_empty() {
        return;
    }
    for phase in &PHASES {
        let name = format!("nv_inference_{}_summary_us", phase.name);
        let mut family = text.family(&name, phase.summary_help, "summary");
        for row in rows {
            let (count, ns) = ((phase.count)(&row.figures), (phase.ns)(&row.figures));
            family.entry("_count", &row.labels, None, count);
            family.entry("_sum", &row.labels, None, ns / NS_PER_US);
            for quantile in quantiles {
                let latencies = row.latencies.as_ref();
                let us = latencies.and_then(|l| l.quantile_us(phase.phase, *quantile));
                // Triton's spelling of the quantile of no values; readers ignore case.
                let value = us.map_or_else(|| "Nan".to_owned(), |us| us.to_string());
                family.entry("", &row.labels, Some(("quantile", quantile)), value);
            }
        }
    }
}

/// Skep's histogram of a phase, and its help.
const fn histogram_family(phase: Phase) -> Option<(HistogramFamily, &'static str)> {
    match phase {
        Phase::Request => Some((
            HistogramFamily::Request,
            "Successful requests by duration from arrival to answer, in milliseconds",
        )),
        Phase::Queue => Some((
            HistogramFamily::Queue,
            "Successful requests by time in the queue, in milliseconds",
        )),
        Phase::ComputeInfer => Some((
            HistogramFamily::ComputeInfer,
            "Successful requests by duration of the model's execution, in milliseconds",
        )),
        Phase::ComputeInput | Phase::ComputeOutput => None,
    }
}

pub(super) fn histograms(text: &mut MetricsText, rows: &[VersionFigures]) {
    for of in &PHASES {
        let Some((kind, help)) = histogram_family(of.phase) else {
            continue;
        };
        let mut family = text.family(kind.metric_name(), help, "histogram");
        for row in rows {
            let mut histograms = row.figures.histograms.iter();
            let Some(HistogramStatistics {
                bounds_ns, counts, ..
            }) = histograms.find(|histogram| histogram.phase == of.phase)
            else {
                continue;
            };
            let mut below = 0;
            for (bound, count) in bounds_ns.iter().zip(counts) {
                below += count;
                let bound = *bound as f64 / NS_PER_MS;
                family.entry("_bucket", &row.labels, Some(("le", &bound)), below);
            }
            let count = (of.count)(&row.figures);
            let sum = (of.ns)(&row.figures) as f64 / NS_PER_MS;
            family.entry("_bucket", &row.labels, Some(("le", &"+Inf")), count);
            family.entry("_sum", &row.labels, None, sum);
            family.entry("_count", &row.labels, None, count);
        }
    }
    let mut family = text.family(
        "skep_inference_batch_size",
        "Executions by batch size",
        "histogram",
    );
    for row in rows {
        for bound in BATCH_BOUNDS {
            let below = row.figures.batches.range(..=bound);
            let count: u64 = below.map(|(_, batch)| batch.compute_infer.count).sum();
            family.entry("_bucket", &row.labels, Some(("le", &bound)), count);
        }
        let (count, sum) = (row.figures.execution_count, row.figures.inference_count);
        family.entry("_bucket", &row.labels, Some(("le", &"+Inf")), count);
        family.entry("_sum", &row.labels, None, sum);
        family.entry("_count", &row.labels, None, count);
    }
}
