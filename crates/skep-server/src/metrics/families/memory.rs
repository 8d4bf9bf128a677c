//! Memory of requests, and of runs' intermediate tensors.

use skep_runtime::RunMemory;
use skep_tensor::MemoryBudget;

use super::version::VersionFigures;
use crate::metrics::text::{MetricLabels, MetricsText};

/// A metric's figure, from the memory of an instance's runs.
type MemoryFigure = fn(&RunMemory) -> u64;

/// Memory of intermediate tensors, in bytes: kind, figure.
const RUN_MEMORY: [(&str, MemoryFigure); 4] = [
    ("planned", |memory| memory.planned_bytes),
    ("reserved", |memory| memory.reserved_bytes),
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

pub(super) fn of_requests(text: &mut MetricsText, memory: &MemoryBudget) {
    let mut family = text.family(
        "skep_request_memory_bytes",
        "Memory of all requests and answers, in bytes: used now, and the limit",
        "gauge",
    );
    for (kind, bytes) in [("used", memory.used()), ("limit", memory.limit())] {
        family.line(&MetricLabels::default().with("kind", kind), bytes);
    }
}

pub(super) fn of_runs(text: &mut MetricsText, rows: &[VersionFigures]) {
    text.family(
        "skep_run_memory_reserved_bytes",
        "Address space reserved for the planned intermediate tensors of all models' runs, in bytes",
        "gauge",
    )
    .line(&MetricLabels::default(), skep_alloc::reserved_bytes());
    text.family(
        "skep_allocator_reserved_bytes",
        "Memory that instances' own allocators have from the system, in bytes, without those of worker processes",
        "gauge",
    )
    .line(&MetricLabels::default(), skep_alloc::allocator_bytes());
    let families = [
        (
            "skep_run_memory_bytes",
            "Intermediate tensors of an instance's last run, in bytes: needed by its plan, saved by the plan, used at most, reserved at most by the instance's own allocator",
            "gauge",
            "kind",
            &RUN_MEMORY[..],
        ),
        (
            "skep_runs_total",
            "Runs of an instance by the source of their intermediate tensors",
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
