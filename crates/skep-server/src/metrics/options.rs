//! Which metrics the port shows.

use std::time::Duration;

/// Which metrics are shown.
#[derive(Debug, Clone)]
pub struct MetricsPortOptions {
    /// Cumulative durations, `nv_inference_*_duration_us`.
    pub counters: bool,
    /// The quantiles of `nv_inference_*_summary_us`; without any there are no summaries. The runtime must record
    /// quantiles.
    pub quantiles: Vec<f64>,
    /// Use of processors and memory, `nv_cpu_*`.
    pub cpu: bool,
    /// How often utilization and busy fractions are sampled; each covers one interval.
    pub interval: Duration,
}

/// Triton's quantiles of summaries.
pub const DEFAULT_QUANTILES: [f64; 5] = [0.5, 0.9, 0.95, 0.99, 0.999];

/// Triton's `--metrics-interval-ms`.
pub const DEFAULT_INTERVAL: Duration = Duration::from_millis(2000);

impl Default for MetricsPortOptions {
    fn default() -> Self {
        Self {
            counters: true,
            quantiles: Vec::new(),
            cpu: true,
            interval: DEFAULT_INTERVAL,
        }
    }
}
