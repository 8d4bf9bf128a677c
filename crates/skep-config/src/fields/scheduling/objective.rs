//! A latency objective: the parameters `slo_latency_ms`, `slo_percentile`, `batching_policy` and `slo_miss_action`.
//!
//! They are Skep's own and not fields, so that Triton ignores them and one repository serves both.

use std::{collections::BTreeMap, time::Duration};

use skep_types::{ObjectivePolicy, Percentile, TimeoutAction};

use crate::{
    error::ConfigError,
    parameters::{
        table::TRITON_POLICY,
        value::{milliseconds, percentile},
    },
    vocabulary::notice::Notice,
};

/// How long requests may take, and how batches keep to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatencyObjective {
    /// How long after its arrival a request should be answered.
    pub latency: Duration,
    /// The percentile of latency that should keep to it.
    pub percentile: Percentile,
    /// How batches are formed.
    pub policy: ObjectivePolicy,
    /// What happens to a request that can no longer be answered in time.
    pub miss_action: TimeoutAction,
}

/// The latency in checked parameters, if they set it.
pub(crate) fn latency(parameters: &BTreeMap<String, String>) -> Option<Duration> {
    milliseconds(parameters.get("slo_latency_ms")?)
}

/// Reads the objective out of checked parameters; `None` means Triton's batcher.
pub(crate) fn read(
    model: &str,
    parameters: &BTreeMap<String, String>,
    notices: &mut Vec<Notice>,
) -> Result<Option<LatencyObjective>, ConfigError> {
    let policy = value(parameters, "batching_policy");
    let is_triton = policy == Some(TRITON_POLICY);
    let Some(latency) = latency(parameters) else {
        if let Some(policy) = policy.filter(|_| !is_triton) {
            return Err(no_latency(model, policy));
        }
        for key in ["slo_percentile", "slo_miss_action"] {
            let text = "no effect: `slo_latency_ms` is not set";
            note(parameters, key, text, notices);
        }
        return Ok(None);
    };
    if is_triton {
        note(
            parameters,
            "slo_latency_ms",
            "answers are counted against it, but it forms no batches: `batching_policy` is `triton`",
            notices,
        );
        for key in ["slo_percentile", "slo_miss_action"] {
            let text = "no effect: `batching_policy` is `triton`";
            note(parameters, key, text, notices);
        }
        return Ok(None);
    }
    let policy = policy
        .and_then(ObjectivePolicy::from_name)
        .unwrap_or_default();
    if policy == ObjectivePolicy::Aimd {
        let text =
            "no effect: `batching_policy` is `aimd`, which learns from late executions alone";
        note(parameters, "slo_percentile", text, notices);
    }
    Ok(Some(LatencyObjective {
        latency,
        percentile: value(parameters, "slo_percentile")
            .and_then(percentile)
            .unwrap_or_default(),
        policy,
        miss_action: match value(parameters, "slo_miss_action") {
            Some("DELAY") => TimeoutAction::Delay,
            _ => TimeoutAction::Reject,
        },
    }))
}

fn value<'a>(parameters: &'a BTreeMap<String, String>, key: &str) -> Option<&'a str> {
    parameters.get(key).map(|text| text.trim())
}

/// Adds a notice about a parameter, if it is set.
fn note(parameters: &BTreeMap<String, String>, key: &str, text: &str, notices: &mut Vec<Notice>) {
    if parameters.contains_key(key) {
        notices.push(Notice::new(format!("parameters.{key}"), text));
    }
}

fn no_latency(model: &str, policy: &str) -> ConfigError {
    ConfigError::Invalid {
        model: model.to_owned(),
        field: "parameters.batching_policy".to_owned(),
        reason: format!(
            "parameter `batching_policy` of model `{model}` is `{policy}`, which needs a latency objective"
        ),
        hint: Some(
            "write `parameters { key: \"slo_latency_ms\" value { string_value: \"50\" } }` with the milliseconds that an \
             answer may take"
                .to_owned(),
        ),
    }
}
