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
    /// The models that have series of their own: names, in which `*` stands for any text. Empty for all models.
    pub models: Vec<String>,
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
            models: Vec::new(),
            interval: DEFAULT_INTERVAL,
        }
    }
}

impl MetricsPortOptions {
    /// Whether a model has series of its own.
    pub(super) fn shows(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|pattern| matches(pattern, model))
    }
}

/// Whether a name is one of a pattern, in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(name) = name.strip_prefix(start) else {
        return false;
    };
    // The shortest text for this star leaves the most to the others.
    let mut ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
    match rest.contains('*') {
        false => name.ends_with(rest),
        true => ends.any(|at| matches(rest, &name[at..])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("*", "a", true),
            ("a*", "a", true),
            ("a*", "ba", false),
            ("*-v2", "é-v2", true),
            ("*-v2", "é-v3", false),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abde", false),
            ("a*a", "a", false),
            ("*b*", "abc", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        let options = MetricsPortOptions::default();
        assert!(options.shows("any"));
        let options = MetricsPortOptions {
            models: vec!["a*".to_owned(), "b".to_owned()],
            ..options
        };
        let shown = ["a1", "b", "b1"].map(|name| options.shows(name));
        assert_eq!(shown, [true, true, false]);
    }
}
