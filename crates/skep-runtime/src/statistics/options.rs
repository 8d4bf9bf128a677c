//! What a version records about its requests beyond counts and sums: the node's options and the model's buckets.

use std::{sync::Arc, time::Duration};

use skep_config::{HistogramFamily, ModelConfig};

use crate::statistics::latency::Phase;

/// What is recorded about requests beyond counts and sums.
#[derive(Debug, Clone, Copy, Default)]
pub struct MetricsOptions {
    /// Quantiles of latency over the last minute.
    pub quantiles: bool,
    /// Latencies counted in the configuration's buckets, or else in bounds from 0.1 ms to 5 s.
    pub histograms: bool,
}

/// Bounds of latency histograms in milliseconds, unless the configuration gives others: from an execution of a tiny
/// model to a request that most clients have given up.
const DEFAULT_BOUNDS_MS: [f64; 14] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 5000.0,
];

/// What one version records.
#[derive(Debug, Clone, Default)]
pub(crate) struct RecorderOptions {
    /// Whether quantiles of the last minute are recorded.
    pub(crate) quantiles: bool,
    /// The phases that have a histogram, each with its ascending bounds in nanoseconds.
    pub(crate) histograms: Vec<(Phase, Arc<[u64]>)>,
    /// How long an answer may take, if the model has an objective.
    pub(crate) objective: Option<Duration>,
}

impl RecorderOptions {
    pub(crate) fn new(options: MetricsOptions, config: &ModelConfig) -> Self {
        let histograms = HistogramFamily::ALL
            .into_iter()
            .filter(|_| options.histograms);
        Self {
            quantiles: options.quantiles,
            histograms: histograms
                .map(|family| (phase(family), bounds_ns(config, family)))
                .collect(),
            objective: config.latency_objective(),
        }
    }
}

/// The bounds of a family's buckets.
fn bounds_ns(config: &ModelConfig, family: HistogramFamily) -> Arc<[u64]> {
    let bounds = config.histogram_bounds_ms(family);
    let bounds = bounds.unwrap_or(&DEFAULT_BOUNDS_MS).iter();
    bounds.map(|ms| nanoseconds(*ms)).collect()
}

const fn phase(family: HistogramFamily) -> Phase {
    match family {
        HistogramFamily::Request => Phase::Request,
        HistogramFamily::Queue => Phase::Queue,
        HistogramFamily::ComputeInfer => Phase::ComputeInfer,
    }
}

/// Saturates, far above any latency.
fn nanoseconds(ms: f64) -> u64 {
    Duration::try_from_secs_f64(ms / 1e3)
        .ok()
        .and_then(|duration| u64::try_from(duration.as_nanos()).ok())
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_exact_in_nanoseconds() {
        let bounds = DEFAULT_BOUNDS_MS.map(nanoseconds);
        assert_eq!(bounds[..4], [100_000, 250_000, 500_000, 1_000_000]);
        assert_eq!(bounds[13], 5_000_000_000);
        assert_eq!(nanoseconds(f64::MAX), u64::MAX);
    }
}
