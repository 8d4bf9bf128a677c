//! Every metric: its name, its help, where its figures come from.

use std::sync::Arc;

use skep_config::HistogramFamily;
use skep_runtime::{
    FailureReason, HistogramStatistics, Latencies, LoadedVersion, Phase, PolicySnapshot, RunMemory,
    Runtime, StatisticsSnapshot,
};
use skep_tensor::MemoryBudget;

use super::{
    MetricsPortOptions,
    sampler::MetricsSample,
    text::{MetricLabels, MetricsText},
};

/// Nanoseconds in a microsecond.
const NS_PER_US: u64 = 1_000;

/// Nanoseconds in a millisecond.
const NS_PER_MS: f64 = 1e6;

/// What Triton shows for its pool of pinned memory on a machine without GPUs, where there is no such pool: the size that
/// it would have by default, none of it used.
const PINNED_POOL_BYTES: u64 = 256 << 20;

/// Upper bounds of the batch size histogram.
const BATCH_BOUNDS: [usize; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// A metric's figure out of a version's statistics.
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

/// A metric's figure out of what a policy is doing.
type PolicyFigure = fn(&PolicySnapshot) -> Option<f64>;

/// Gauges of a batching policy: name, help, figure; none where the policy has no such figure.
const POLICY_GAUGES: [(&str, &str, PolicyFigure); 4] = [
    (
        "skep_batching_cap",
        "Inferences in the largest batch that the policy forms now",
        |policy| Some(policy.cap as f64),
    ),
    (
        "skep_batching_target",
        "Inferences up to which an idle instance waits for more now; 1 where it does not wait",
        |policy| Some(policy.target as f64),
    ),
    (
        "skep_batching_objective_us",
        "How long an answer may take, in microseconds",
        |policy| Some(policy.objective?.as_nanos() as f64 / NS_PER_US as f64),
    ),
    (
        "skep_batching_arrival_rate",
        "Inferences that arrive a second, as the policy has measured",
        |policy| policy.arrivals_per_s,
    ),
];

/// What Triton shows of a phase: its cumulative duration, and a summary under another name and help.
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

/// A version and its figures, read once so that all metrics of one answer agree.
pub(super) struct VersionFigures {
    loaded: Arc<LoadedVersion>,
    pub(super) figures: StatisticsSnapshot,
    latencies: Option<Latencies>,
    policy: PolicySnapshot,
    pub(super) labels: MetricLabels,
}

impl VersionFigures {
    fn new(loaded: Arc<LoadedVersion>) -> Self {
        let mut labels = MetricLabels::default()
            .with("model", loaded.name().as_str())
            .with("version", &loaded.version().to_string());
        if let Some(namespace) = loaded.namespace() {
            labels = labels.with("namespace", namespace);
        }
        for (key, value) in loaded.config().metric_tags() {
            labels = labels.with(&format!("_{key}"), value);
        }
        Self {
            figures: loaded.statistics(),
            latencies: loaded.latencies(),
            policy: loaded.policy(),
            labels,
            loaded,
        }
    }
}

/// All metrics of a node, Triton's in Triton's order.
pub(super) fn render(
    runtime: &Runtime,
    options: &MetricsPortOptions,
    sample: &MetricsSample,
    request_memory: &MemoryBudget,
) -> String {
    let rows: Vec<VersionFigures> = runtime
        .loaded()
        .into_iter()
        .map(VersionFigures::new)
        .collect();
    let mut text = MetricsText::default();
    requests(&mut text, &rows);
    if options.counters {
        durations(&mut text, &rows);
    }
    state(&mut text, &rows);
    machine(&mut text, sample);
    summaries(&mut text, &rows, &options.quantiles);
    histograms(&mut text, &rows);
    batch_ends(&mut text, &rows);
    policies(&mut text, &rows);
    super::slo::render(&mut text, &rows);
    busy(&mut text, &rows, sample);
    requests_memory(&mut text, request_memory);
    memory(&mut text, &rows);
    super::store::render(&mut text, runtime);
    super::store::render_polls(&mut text, runtime);
    loads(&mut text, runtime);
    text.finish()
}

/// Whether the node is ready, and how many loads of its models failed.
fn loads(text: &mut MetricsText, runtime: &Runtime) {
    text.family(
        "skep_ready",
        "Whether the server is ready, as /v2/health/ready says: 1 or 0",
        "gauge",
    )
    .line(&MetricLabels::default(), u8::from(runtime.is_ready()));
    let mut family = text.family(
        "skep_model_load_failures_total",
        "Loads of the model that failed, first ones and later ones; a model may serve on with what it had before",
        "counter",
    );
    for (namespace, name, failures) in runtime.load_failures() {
        let mut labels = MetricLabels::default().with("model", name.as_str());
        if let Some(namespace) = namespace {
            labels = labels.with("namespace", &namespace);
        }
        family.line(&labels, failures);
    }
}

fn requests(text: &mut MetricsText, rows: &[VersionFigures]) {
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

fn durations(text: &mut MetricsText, rows: &[VersionFigures]) {
    for phase in &PHASES {
        let name = format!("nv_inference_{}_duration_us", phase.name);
        let mut family = text.family(&name, phase.help, "counter");
        for row in rows {
            family.line(&row.labels, (phase.ns)(&row.figures) / NS_PER_US);
        }
    }
}

fn state(text: &mut MetricsText, rows: &[VersionFigures]) {
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

fn machine(text: &mut MetricsText, sample: &MetricsSample) {
    let mut gauge = |name, help, value: f64| {
        text.family(name, help, "gauge")
            .line(&MetricLabels::default(), value);
    };
    gauge(
        "nv_pinned_memory_pool_total_bytes",
        "Pinned memory pool total memory size, in bytes",
        PINNED_POOL_BYTES as f64,
    );
    gauge(
        "nv_pinned_memory_pool_used_bytes",
        "Pinned memory pool used memory size, in bytes",
        0.0,
    );
    if let Some(host) = sample.host {
        gauge(
            "nv_cpu_utilization",
            "CPU utilization rate [0.0 - 1.0]",
            host.utilization,
        );
        gauge(
            "nv_cpu_memory_total_bytes",
            "CPU total memory (RAM), in bytes",
            host.memory_total as f64,
        );
        gauge(
            "nv_cpu_memory_used_bytes",
            "CPU used memory (RAM), in bytes",
            host.memory_used as f64,
        );
    }
}

fn summaries(text: &mut MetricsText, rows: &[VersionFigures], quantiles: &[f64]) {
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
                // Triton's spelling of a quantile of nothing; readers take it in any case of letters.
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

fn histograms(text: &mut MetricsText, rows: &[VersionFigures]) {
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

fn batch_ends(text: &mut MetricsText, rows: &[VersionFigures]) {
    let mut family = text.family(
        "skep_batch_end_total",
        "Executions by the reason why their batch was not larger",
        "counter",
    );
    for row in rows {
        for (reason, count) in row.figures.batch_ends.iter() {
            family.line(&row.labels.with("reason", reason), count);
        }
    }
}

/// What the batching policies are doing, and why.
fn policies(text: &mut MetricsText, rows: &[VersionFigures]) {
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
        "Inferences in the last batch, by the reason why it was not larger",
        "gauge",
    );
    for row in rows {
        if let Some((size, end)) = row.policy.last_batch {
            family.line(&row.labels.with("reason", end.name()), size);
        }
    }
    let mut family = text.family(
        "skep_batching_given_up_total",
        "Requests that waited too long or would have been late, by what was done with them",
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
        "What the policy expects an execution to take (80th percentile), in microseconds, by batch size",
        "gauge",
    );
    for row in rows {
        for (size, took) in &row.policy.latencies {
            let us = took.as_nanos() as f64 / NS_PER_US as f64;
            family.line(&row.labels.with("batch_size", &size.to_string()), us);
        }
    }
}

/// A figure out of what an instance's runs take.
type MemoryFigure = fn(&RunMemory) -> u64;

/// What intermediate tensors take, in bytes: kind, figure.
const RUN_MEMORY: [(&str, MemoryFigure); 3] = [
    ("planned", |memory| memory.planned_bytes),
    ("saved", |memory| memory.saved_bytes),
    ("used", |memory| memory.used_bytes),
];

/// How runs went: outcome, figure.
const RUNS: [(&str, MemoryFigure); 4] = [
    ("planned", |memory| memory.planned_runs),
    ("recorded", |memory| memory.recorded_runs),
    ("deviated", |memory| memory.deviated_runs),
    ("unplanned", |memory| memory.unplanned_runs),
];

fn requests_memory(text: &mut MetricsText, memory: &MemoryBudget) {
    let mut family = text.family(
        "skep_request_memory_bytes",
        "Memory of all requests and answers, in bytes: what is charged now, and the bound",
        "gauge",
    );
    for (kind, bytes) in [("used", memory.used()), ("limit", memory.limit())] {
        family.line(&MetricLabels::default().with("kind", kind), bytes);
    }
}

fn memory(text: &mut MetricsText, rows: &[VersionFigures]) {
    text.family(
        "skep_run_memory_reserved_bytes",
        "Address space that is held for the planned intermediate tensors of all models' runs",
        "gauge",
    )
    .line(&MetricLabels::default(), skep_alloc::reserved_bytes());
    let families = [
        (
            "skep_run_memory_bytes",
            "Intermediate tensors of an instance's last run, in bytes: what its plan needs, what the plan saves, the most that was in use",
            "gauge",
            "kind",
            &RUN_MEMORY[..],
        ),
        (
            "skep_runs_total",
            "Runs of an instance by where their intermediate tensors came from",
            "counter",
            "memory",
            &RUNS[..],
        ),
    ];
    for (name, help, kind, label, figures) in families {
        let mut family = text.family(name, help, kind);
        for row in rows {
            for instance in &row.figures.instances {
                let Some(memory) = &instance.memory else {
                    continue;
                };
                let labels = row.labels.with("instance", &instance.name);
                for (value, figure) in figures {
                    family.line(&labels.with(label, value), figure(memory));
                }
            }
        }
    }
}

fn busy(text: &mut MetricsText, rows: &[VersionFigures], sample: &MetricsSample) {
    let mut family = text.family(
        "skep_instance_busy_us",
        "Cumulative time in which an instance held a batch, in microseconds",
        "counter",
    );
    for row in rows {
        for instance in &row.figures.instances {
            let labels = row.labels.with("instance", &instance.name);
            family.line(&labels, instance.busy_ns / NS_PER_US);
        }
    }
    let mut family = text.family(
        "skep_instance_restarts_total",
        "Number of times an instance was made again, after a panic or the end of its process",
        "counter",
    );
    for row in rows {
        for instance in &row.figures.instances {
            let labels = row.labels.with("instance", &instance.name);
            family.line(&labels, instance.restarts);
        }
    }
    let mut family = text.family(
        "skep_instance_busy_fraction",
        "Share of the last interval in which an instance held a batch [0.0 - 1.0]",
        "gauge",
    );
    for row in rows {
        for instance in &row.figures.instances {
            let labels = row.labels.with("instance", &instance.name);
            family.line(&labels, sample.busy(&row.loaded, &instance.name));
        }
    }
    text.family(
        "skep_device_busy_fraction",
        "Share of the last interval in which the device's slots held a batch [0.0 - 1.0]",
        "gauge",
    )
    .line(
        &MetricLabels::default().with("device", "cpu"),
        sample.device_busy,
    );
}
