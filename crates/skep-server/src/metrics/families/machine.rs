//! The machine, under Triton's names.

use crate::metrics::{
    sampler::MetricsSample,
    text::{MetricLabels, MetricsText},
};

/// What Triton shows for its pool of pinned memory on a machine without GPUs, which has no such pool: the default size,
/// unused.
const PINNED_POOL_BYTES: u64 = 256 << 20;

pub(super) fn machine(text: &mut MetricsText, sample: &MetricsSample) {
    gauge(
        text,
        "nv_pinned_memory_pool_total_bytes",
        "Pinned memory pool total memory size, in bytes",
        PINNED_POOL_BYTES as f64,
    );
    gauge(
        text,
        "nv_pinned_memory_pool_used_bytes",
        "Pinned memory pool used memory size, in bytes",
        0.0,
    );
    if let Some(host) = sample.host {
        gauge(
            text,
            "nv_cpu_utilization",
            "CPU utilization rate [0.0 - 1.0]",
            host.utilization,
        );
        gauge(
            text,
            "nv_cpu_memory_total_bytes",
            "CPU total memory (RAM), in bytes",
            host.memory_total as f64,
        );
        gauge(
            text,
            "nv_cpu_memory_used_bytes",
            "CPU used memory (RAM), in bytes",
            host.memory_used as f64,
        );
    }
}

fn gauge(text: &mut MetricsText, name: &str, help: &str, value: f64) {
    text.family(name, help, "gauge")
        .line(&MetricLabels::default(), value);
}
