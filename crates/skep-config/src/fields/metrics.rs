//! `metric_tags` and `model_metrics`: extra labels of a model's metrics, and the buckets of its latency histograms.

use std::collections::BTreeMap;

use skep_proto::inference::{
    self, ModelMetrics,
    model_metrics::{
        MetricControl,
        metric_control::{HistogramOptions, MetricIdentifier, MetricOptions},
    },
};

use crate::{error::ConfigError, vocabulary::notice::Notice};

/// The latency histograms that a configuration may set buckets for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HistogramFamily {
    /// The time from arrival to answer.
    Request,
    /// The time in the queue.
    Queue,
    /// The time that the model runs.
    ComputeInfer,
}

impl HistogramFamily {
    /// All families.
    pub const ALL: [Self; 3] = [Self::Request, Self::Queue, Self::ComputeInfer];

    /// The metric's name.
    #[must_use]
    pub const fn metric_name(self) -> &'static str {
        match self {
            Self::Request => "skep_inference_request_histogram_ms",
            Self::Queue => "skep_inference_queue_histogram_ms",
            Self::ComputeInfer => "skep_inference_compute_infer_histogram_ms",
        }
    }
}

/// Triton's own latency histogram, for decoupled models only.
const FIRST_RESPONSE: &str = "nv_inference_first_response_histogram_ms";

/// The most buckets of a histogram. Each is a time series per model version, and every request searches them.
const MAX_BUCKETS: usize = 100;

/// The ascending bounds of histograms in milliseconds.
pub(crate) type HistogramBounds = BTreeMap<HistogramFamily, Vec<f64>>;

/// Checks `metric_tags` and reads `model_metrics`.
pub(crate) fn read(
    proto: &inference::ModelConfig,
    notices: &mut Vec<Notice>,
) -> Result<HistogramBounds, ConfigError> {
    for key in proto.metric_tags.keys() {
        // A label is `_<key>`. Prometheus reserves names with two leading underscores.
        let valid = key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if key.is_empty() || key.starts_with('_') || !valid {
            let reason = format!(
                "metric tag '{key}' of model {} cannot be a label: expected letters, digits and underscores, not starting with an underscore",
                proto.name
            );
            return Err(ConfigError::invalid(&proto.name, "metric_tags", reason));
        }
    }
    let mut bounds = BTreeMap::new();
    let metrics = proto.model_metrics.iter();
    let controls = metrics.flat_map(|ModelMetrics { metric_control }| metric_control);
    for (index, control) in controls.enumerate() {
        let MetricControl {
            metric_identifier,
            metric_options,
        } = control;
        let field = format!("model_metrics.metric_control[{index}]");
        let family = match metric_identifier {
            Some(MetricIdentifier { family }) => family.as_str(),
            None => "",
        };
        let Some(MetricOptions::HistogramOptions(HistogramOptions { buckets })) = metric_options
        else {
            notices.push(Notice::new(
                field,
                "no effect: it has no options".to_owned(),
            ));
            continue;
        };
        check(&proto.name, &field, buckets)?;
        match HistogramFamily::ALL
            .into_iter()
            .find(|known| known.metric_name() == family)
        {
            Some(known) => drop(bounds.insert(known, buckets.clone())),
            None => notices.push(Notice::new(field, without_effect(family))),
        }
    }
    Ok(bounds)
}

fn check(model: &str, field: &str, buckets: &[f64]) -> Result<(), ConfigError> {
    let ascending = buckets.windows(2).all(|pair| pair[0] < pair[1]);
    let usable = buckets
        .iter()
        .all(|bound| bound.is_finite() && *bound > 0.0);
    if !buckets.is_empty() && buckets.len() <= MAX_BUCKETS && ascending && usable {
        return Ok(());
    }
    // An error does not repeat the whole file.
    let (shown, more) = match buckets.split_at_checked(MAX_BUCKETS) {
        Some((shown, more)) if !more.is_empty() => (shown, format!(" and {} more", more.len())),
        _ => (buckets, String::new()),
    };
    let reason = format!(
        "buckets of {model} must be 1 to {MAX_BUCKETS} ascending numbers of milliseconds above 0, got {shown:?}{more}"
    );
    let field = format!("{field}.histogram_options.buckets");
    Err(ConfigError::invalid(model, field, reason))
}

fn without_effect(family: &str) -> String {
    if family == FIRST_RESPONSE {
        return "no effect: it is for decoupled models, and every backend answers a request exactly once".to_owned();
    }
    let known: Vec<String> = HistogramFamily::ALL
        .into_iter()
        .map(|family| format!("`{}`", family.metric_name()))
        .collect();
    format!(
        "no effect: unknown histogram `{family}`, expected one of {}",
        known.join(", ")
    )
}
