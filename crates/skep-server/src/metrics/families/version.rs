//! A model version and its figures, as its metrics show them.

use std::sync::Arc;

use skep_runtime::{
    Latencies, LoadedVersion, PolicySnapshot, StatisticsSnapshot, VersionCacheReport,
};

use crate::metrics::text::MetricLabels;

/// Nanoseconds in a microsecond.
pub(super) const NS_PER_US: u64 = 1_000;

/// A version and its figures, read once so that all metrics of one answer agree.
pub(super) struct VersionFigures {
    pub(super) loaded: Arc<LoadedVersion>,
    pub(super) figures: StatisticsSnapshot,
    pub(super) latencies: Option<Latencies>,
    pub(super) policy: PolicySnapshot,
    /// `None` if its responses are not cached.
    pub(super) cached: Option<VersionCacheReport>,
    pub(super) labels: MetricLabels,
}

impl VersionFigures {
    pub(super) fn new(loaded: Arc<LoadedVersion>) -> Self {
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
            cached: loaded.cached(),
            labels,
            loaded,
        }
    }
}
