//! The machine, under Triton's names.

use crate::metrics::{
    sampler::MetricsSample,
    text::{MetricLabels, MetricsText},
};

/// What Triton shows for its pool of pinned memory on a machine without GPUs, where there is no such pool: the size that
/// it would have by default, none of it used.
const PINNED_POOL_BYTES: u64 = 256 << 20;

pub(super) fn machine(text: &mut MetricsText, sample: &MetricsSample) {
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
