//! The response cache: Triton's counts and durations by model, Skep's bytes and entries.

use skep_runtime::{DropReason, Runtime, StatisticsSnapshot};

use super::version::{NS_PER_US, VersionFigures};
use crate::metrics::text::{MetricLabels, MetricsText};

/// A metric of Triton's: its name and help, its figure, whether it is a duration.
type CacheFamily = (
    &'static str,
    &'static str,
    fn(&StatisticsSnapshot) -> u64,
    bool,
);

const FAMILIES: [CacheFamily; 4] = [
    (
        "nv_cache_num_hits_per_model",
        "Number of cache hits per model",
        |s| s.cache_hit.count,
        false,
    ),
    (
        "nv_cache_hit_duration_per_model",
        "Total cache hit duration per model, in microseconds",
        |s| s.cache_hit.ns / NS_PER_US,
        true,
    ),
    (
        "nv_cache_num_misses_per_model",
        "Number of cache misses per model",
        |s| s.cache_miss.count,
        false,
    ),
    (
        "nv_cache_miss_duration_per_model",
        "Total cache miss (insert+lookup) duration per model, in microseconds",
        |s| s.cache_miss.ns / NS_PER_US,
        true,
    ),
];

/// Triton's metrics of the models whose responses are cached.
pub(super) fn lookups(text: &mut MetricsText, rows: &[VersionFigures], with_durations: bool) {
    for (name, help, figure, is_duration) in FAMILIES {
        if is_duration && !with_durations {
            continue;
        }
        let mut family = text.family(name, help, "counter");
        for row in rows.iter().filter(|row| row.cached.is_some()) {
            family.line(&row.labels, figure(&row.figures));
        }
    }
}

/// What the cache holds, in all and of each model, and what it did not keep.
pub(super) fn contents(text: &mut MetricsText, rows: &[VersionFigures], runtime: &Runtime) {
    let Some(cache) = runtime.response_cache() else {
        return;
    };
    let help = "Memory of cached responses over all models, in bytes: used; limit, what they may take (--cache-config)";
    let mut family = text.family("skep_response_cache_memory_bytes", help, "gauge");
    for (kind, bytes) in [("used", cache.used_bytes), ("limit", cache.limit_bytes)] {
        family.line(&MetricLabels::default().with("kind", kind), bytes);
    }
    let cached = || rows.iter().filter_map(|row| Some((row, row.cached?)));
    let help = "Memory of the model's cached responses, in bytes";
    let mut family = text.family("skep_response_cache_bytes", help, "gauge");
    for (row, report) in cached() {
        family.line(&row.labels, report.bytes);
    }
    let help = "Cached responses of the model";
    let mut family = text.family("skep_response_cache_entries", help, "gauge");
    for (row, report) in cached() {
        family.line(&row.labels, report.entries);
    }
    let help = "Responses that left the cache or did not enter it: size, for others of any model; model_size, for others of the model; expired; too_large to be kept";
    let mut family = text.family("skep_response_cache_dropped_total", help, "counter");
    for (row, report) in cached() {
        for (reason, count) in DropReason::ALL.iter().zip(report.dropped) {
            family.line(&row.labels.with("reason", reason.label()), count);
        }
    }
}
