//! Traces of requests: what became of them.

use skep_tracing::Tracer;

use crate::metrics::text::{MetricLabels, MetricsText};

/// Counts of traces, if they have somewhere to go.
pub(super) fn render(text: &mut MetricsText, tracer: &Tracer) {
    let Some(counts) = tracer.counts() else {
        return;
    };
    let help = "Traces of requests that were written to the trace file, or sent to the collector";
    let mut family = text.family("skep_traces_written_total", help, "counter");
    family.line(&MetricLabels::default(), counts.written);
    let help = "Traces of requests that were dropped: queue, they came faster than they could be written; output, the file or the collector did not take them";
    let mut family = text.family("skep_traces_dropped_total", help, "counter");
    for (reason, count) in [("queue", counts.queue_full), ("output", counts.failed)] {
        family.line(&MetricLabels::default().with("reason", reason), count);
    }
}
