//! `response_cache`: responses that are kept for equal requests.

use std::{collections::BTreeMap, time::Duration};

use skep_proto::inference::{self, model_config::SchedulingChoice};

use super::{options::ParameterValues, review::Review};
use crate::{error::ConfigError, parameters::value::bytes, vocabulary::notice::Notice};

const FIELD: &str = "response_cache.enable";
const BYTES: &str = "response_cache_bytes";
const TIME_TO_LIVE: &str = "response_cache_ttl_ms";

/// How the responses of a model are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResponseCaching {
    /// Bytes that they take together at most (`response_cache_bytes`); `None` for as many as the server's cache has.
    pub max_bytes: Option<u64>,
    /// How long each is kept (`response_cache_ttl_ms`); `None` until others need its room.
    pub time_to_live: Option<Duration>,
}

/// Refuses models whose responses depend on more than one request. Triton's words.
pub(super) fn review(
    review: &Review<'_>,
    proto: &inference::ModelConfig,
) -> Result<(), ConfigError> {
    if !is_enabled(proto) {
        return Ok(());
    }
    let policy = proto.model_transaction_policy;
    let is_decoupled = policy.is_some_and(|policy| policy.decoupled);
    let what = match &proto.scheduling_choice {
        _ if is_decoupled => "'Decoupled' transaction policy",
        Some(SchedulingChoice::SequenceBatching(_)) => "sequence batching",
        _ => return Ok(()),
    };
    let model = review.model;
    let text = format!(
        "Response Cache does not currently support model {model} with {what}. Please disable the response cache."
    );
    Err(ConfigError::invalid(model, FIELD, text))
}

/// How responses are kept; `None` if they are not. Keys of `parameters` about it then get a notice.
pub(crate) fn read(
    proto: &inference::ModelConfig,
    parameters: &BTreeMap<String, String>,
    notices: &mut Vec<Notice>,
) -> Option<ResponseCaching> {
    if is_enabled(proto) {
        return Some(ParameterValues(parameters).response_caching());
    }
    let keys = [BYTES, TIME_TO_LIVE].into_iter();
    let without_effect = keys.filter(|key| parameters.contains_key(*key));
    notices.extend(without_effect.map(|key| {
        let text = "no effect without `response_cache { enable: true }`";
        Notice::new(format!("parameters.{key}"), text)
    }));
    None
}

fn is_enabled(proto: &inference::ModelConfig) -> bool {
    let cache = proto.response_cache;
    cache.is_some_and(|inference::ModelResponseCache { enable }| enable)
}

impl ParameterValues<'_> {
    fn response_caching(&self) -> ResponseCaching {
        let time_to_live = self.0.contains_key(TIME_TO_LIVE);
        ResponseCaching {
            max_bytes: self.0.get(BYTES).and_then(|value| bytes(value)),
            time_to_live: time_to_live.then(|| Duration::from_millis(self.integer(TIME_TO_LIVE))),
        }
    }
}

#[cfg(test)]
mod tests {
    use skep_types::ModelName;

    use super::*;
    use crate::{ConfigContext, ModelConfig, parse_pbtxt};

    const ENABLED: &str = "response_cache { enable: true }";

    fn config(text: &str) -> Result<ModelConfig, ConfigError> {
        let text = format!(
            "backend: 'mock' input {{ name: 'x' data_type: TYPE_FP32 dims: 4 }}
             output {{ name: 'y' data_type: TYPE_FP32 dims: 4 }} {text}"
        );
        let name = ModelName::new("m").expect("name");
        let proto = parse_pbtxt(text.as_bytes(), "c").expect("parses");
        ModelConfig::from_proto(proto, &ConfigContext::new(&name))
    }

    fn parameter(key: &str, value: &str) -> String {
        format!("parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}")
    }

    #[test]
    fn bounds_are_read_where_the_cache_is_on() {
        let on = config(ENABLED).expect("valid");
        assert_eq!(on.response_cache(), Some(&ResponseCaching::default()));
        let bounds = parameter(BYTES, "2MiB") + &parameter(TIME_TO_LIVE, " 1500 ");
        let bounded = config(&format!("{ENABLED} {bounds}")).expect("valid");
        let expected = ResponseCaching {
            max_bytes: Some(2 << 20),
            time_to_live: Some(Duration::from_millis(1500)),
        };
        assert_eq!(bounded.response_cache(), Some(&expected));
        assert!(bounded.notices().is_empty());
        for off in ["", "response_cache { }", "response_cache { enable: false }"] {
            let off = config(&format!("{off} {bounds}")).expect("valid");
            assert_eq!(off.response_cache(), None);
            let notices: Vec<String> = off.notices().iter().map(ToString::to_string).collect();
            let text = "no effect without `response_cache { enable: true }`";
            let expected = [BYTES, TIME_TO_LIVE].map(|key| format!("`parameters.{key}`: {text}"));
            assert_eq!(notices, expected);
        }
        for wrong in [parameter(BYTES, "0"), parameter(TIME_TO_LIVE, "0")] {
            assert!(config(&format!("{ENABLED} {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn models_whose_responses_depend_on_more_than_a_request_are_refused() {
        for (text, what) in [
            (
                "model_transaction_policy { decoupled: true }",
                "'Decoupled' transaction policy",
            ),
            ("sequence_batching { }", "sequence batching"),
        ] {
            let error = config(&format!("{ENABLED} {text}")).expect_err(text);
            let expected = format!(
                "Response Cache does not currently support model m with {what}. Please disable the response cache."
            );
            assert_eq!(error.to_string(), expected);
            assert_eq!(error.field(), FIELD);
        }
        let decoupled = config("model_transaction_policy { decoupled: true }");
        assert!(decoupled.is_ok());
    }
}
