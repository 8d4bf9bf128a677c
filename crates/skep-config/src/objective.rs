//! A latency objective: the parameters `slo_latency_ms`, `batching_policy` and `slo_miss_action`.
//!
//! They are Skep's own and not fields, so that Triton passes over them and a repository stays good for both.

use std::{collections::BTreeMap, time::Duration};

use crate::{batching::TimeoutAction, error::ConfigError, model::Notice};

/// How long requests may take, and how that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Objective {
    /// How long after its arrival a request should be answered.
    pub latency: Duration,
    /// How batches are formed.
    pub policy: ObjectivePolicy,
    /// What happens to a request that cannot be answered in time any more.
    pub miss_action: TimeoutAction,
}

/// How batches are formed under an objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ObjectivePolicy {
    /// The batch size grows until the objective breaks.
    Aimd,
    /// The batch size whose 99th percentile keeps the objective.
    Quantile,
    /// Earliest deadline first, at once.
    Edf,
    /// As late as deadlines allow.
    Deferred,
    /// Whichever of these the load asks for.
    #[default]
    Auto,
}

impl ObjectivePolicy {
    /// Its name in configurations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aimd => "aimd",
            Self::Quantile => "quantile",
            Self::Edf => "edf",
            Self::Deferred => "deferred",
            Self::Auto => "auto",
        }
    }

    const ALL: [Self; 5] = [
        Self::Aimd,
        Self::Quantile,
        Self::Edf,
        Self::Deferred,
        Self::Auto,
    ];
}

/// What `batching_policy` may say, in the order in which it is documented.
pub(crate) const POLICIES: &[&str] = &["auto", "triton", "aimd", "quantile", "edf", "deferred"];

/// The longest objective: an hour, as for other times that are a mistake in units beyond it.
pub(crate) const MAX_LATENCY_MS: f64 = 3_600_000.0;

/// The policy of a name; none for Triton's batcher.
fn policy(name: &str) -> Option<ObjectivePolicy> {
    let mut all = ObjectivePolicy::ALL.into_iter();
    all.find(|policy| policy.name() == name)
}

/// A number of milliseconds as a time above 0.
pub(crate) fn milliseconds(text: &str) -> Option<Duration> {
    let ms: f64 = text.trim().parse().ok()?;
    let valid = ms > 0.0 && ms <= MAX_LATENCY_MS;
    let time = Duration::try_from_secs_f64(ms / 1e3).ok()?;
    Some(time).filter(|time| valid && !time.is_zero())
}

/// Reads the objective out of checked parameters; none means Triton's batcher.
pub(crate) fn read(
    model: &str,
    parameters: &BTreeMap<String, String>,
    notices: &mut Vec<Notice>,
) -> Result<Option<Objective>, ConfigError> {
    let value = |key: &str| parameters.get(key).map(|text| text.trim());
    let named = value("batching_policy");
    let latency = value("slo_latency_ms").and_then(milliseconds);
    let chosen = named.map_or(Some(ObjectivePolicy::default()), policy);
    let objective = match (latency, named, chosen) {
        (None, Some(name), Some(_)) => {
            return Err(ConfigError::Invalid {
                model: model.to_owned(),
                field: "parameters.batching_policy".to_owned(),
                reason: format!(
                    "parameter `batching_policy` of model `{model}` is `{name}`, which keeps a latency objective, and there \
                     is none"
                ),
                hint: Some(
                    "write `parameters { key: \"slo_latency_ms\" value { string_value: \"50\" } }` with the milliseconds that \
                     an answer may take"
                        .to_owned(),
                ),
            });
        }
        (Some(latency), _, Some(policy)) => Some(Objective {
            latency,
            policy,
            miss_action: match value("slo_miss_action") {
                Some("DELAY") => TimeoutAction::Delay,
                _ => TimeoutAction::Reject,
            },
        }),
        _ => None,
    };
    if objective.is_none() {
        let mut notice = |key: &str, why: &str| {
            if value(key).is_some() {
                notices.push(Notice::new(format!("parameters.{key}"), why));
            }
        };
        if latency.is_some() {
            notice(
                "slo_latency_ms",
                "answers are counted against it, and it forms no batches: `batching_policy` is `triton`",
            );
            notice(
                "slo_miss_action",
                "no effect: `batching_policy` is `triton`",
            );
        } else {
            notice("slo_miss_action", "no effect: there is no `slo_latency_ms`");
        }
    }
    Ok(objective)
}
