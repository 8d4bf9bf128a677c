//! A model configuration as JSON, which a client sends with a load request.
//!
//! The format is protobuf's JSON mapping over the same descriptors as `config.pbtxt`: member names as in the `.proto`
//! file or in camel case, enums by name or number, 64-bit integers as numbers or strings.

use prost_reflect::{DeserializeOptions, DynamicMessage};
use serde_json::Value;
use skep_proto::inference;

use crate::{error::ConfigError, hints::near_miss, parameters::table::parameter};

/// A hint is one line: it shows a longer value as three dots.
const SHOWN_BYTES: usize = 64;

/// Reads a model configuration in JSON. Errors call the text `source`.
///
/// # Errors
/// [`ConfigError::Json`], with the path of the wrong member.
pub fn parse_json(text: &str, source: &str) -> Result<inference::ModelConfig, ConfigError> {
    let descriptor = skep_proto::descriptors()
        .get_message_by_name("inference.ModelConfig")
        .ok_or_else(|| json_error(source, "", "the schema lacks `ModelConfig`"))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let mut track = serde_path_to_error::Track::new();
    let message = DynamicMessage::deserialize_with_options(
        descriptor,
        serde_path_to_error::Deserializer::new(&mut json, &mut track),
        &DeserializeOptions::new().deny_unknown_fields(true),
    )
    .map_err(|error| {
        let path = track.path().to_string();
        // The root's path is a dot.
        let field = if path == "." { "" } else { &path };
        let mut reason = error.to_string();
        if let Some(hint) = parameter_hint(&reason, text) {
            reason += &format!("\n{hint}");
        }
        json_error(source, field, reason)
    })?;
    json.end()
        .map_err(|error| json_error(source, "", error.to_string()))?;
    message
        .transcode_to()
        .map_err(|error| json_error(source, "", error.to_string()))
}

fn json_error(source: &str, field: &str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Json {
        source_name: source.to_owned(),
        field: field.to_owned(),
        reason: reason.into(),
    }
}

/// The hint for a key of `parameters` written as a member, with its value if it is at the top level.
fn parameter_hint(reason: &str, text: &str) -> Option<String> {
    let (_, name) = reason.split_once("unrecognized field name '")?;
    let (name, _) = name.split_once('\'')?;
    let key = match parameter(name) {
        Some(spec) => spec.key,
        None => near_miss::meant(name)?,
    };
    let value = short_value(text, name).filter(|_| !near_miss::changes_unit(name, key));
    let value = Value::from(value.unwrap_or_else(|| "...".to_owned()));
    Some(format!(
        "`{key}` is a parameter of the model: write `\"parameters\":{{\"{key}\":{{\"string_value\":{value}}}}}`"
    ))
}

/// The value of a member at the top level, if it is a short scalar.
fn short_value(text: &str, name: &str) -> Option<String> {
    match serde_json::from_str::<Value>(text).ok()?.get(name)? {
        Value::String(value) if value.len() <= SHOWN_BYTES => Some(value.clone()),
        value @ (Value::Number(_) | Value::Bool(_)) => Some(value.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::parse_json;
    use crate::parse_pbtxt;

    #[test]
    fn json_and_text_format_agree() {
        let text = r#"
            backend: "mock" max_batch_size: 8
            input { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] reshape { shape: 3 } }
            version_policy { specific { versions: [ 1, 3 ] } }
            parameters { key: "k" value { string_value: "v" } }"#;
        let expected = parse_pbtxt(text.as_bytes(), "c").expect("text format");
        for json in [
            r#"{"backend":"mock","max_batch_size":8,
                "input":[{"name":"x","data_type":"TYPE_FP32","dims":[-1,3],"reshape":{"shape":[3]}}],
                "version_policy":{"specific":{"versions":[1,3]}},"parameters":{"k":{"string_value":"v"}}}"#,
            r#"{"backend":"mock","maxBatchSize":"8",
                "input":[{"name":"x","dataType":11,"dims":["-1","3"],"reshape":{"shape":["3"]}}],
                "versionPolicy":{"specific":{"versions":[1,"3"]}},"parameters":{"k":{"stringValue":"v"}}}"#,
        ] {
            assert_eq!(parse_json(json, "c").as_ref(), Ok(&expected), "{json}");
        }
        assert_eq!(parse_json("{}", "c"), Ok(Default::default()));
    }

    #[test]
    fn errors_name_the_member() {
        for (json, parts) in [
            ("{", &["parameter `config`", "EOF"][..]),
            ("", &["parameter `config`", "EOF"]),
            ("[]", &["parameter `config`"]),
            ("{} {}", &["parameter `config`", "trailing"]),
            (
                r#"{"max_batchsize":3}"#,
                &["unrecognized field name 'max_batchsize'"],
            ),
            (r#"{"max_batch_size":"x"}"#, &["`max_batch_size`"]),
            (r#"{"max_batch_size":1.5}"#, &["`max_batch_size`"]),
            (r#"{"input":3}"#, &["`input`"]),
            (
                r#"{"input":[{"name":"x"},{"data_type":"TYPE_FLOAT"}]}"#,
                &["`input[1].data_type`", "TYPE_FLOAT"],
            ),
            (
                r#"{"instance_group":[{"count":"many"}]}"#,
                &["`instance_group[0].count`"],
            ),
        ] {
            let error = parse_json(json, "parameter `config`").map_err(|error| error.to_string());
            let error = error.expect_err(json);
            for part in parts {
                assert!(error.contains(part), "{json}: {error}");
            }
        }
    }

    #[test]
    fn parameters_written_as_members_get_a_hint() {
        let long = |letter: &str, times| format!(r#"{{"tenant":"{}"}}"#, letter.repeat(times));
        for (json, key, value) in [
            (r#"{"slo_latency_ms":30}"#, "slo_latency_ms", "30"),
            (r#"{"slo_latency":"2.5"}"#, "slo_latency_ms", "2.5"),
            (r#"{"slo_latency_us":30000}"#, "slo_latency_ms", "..."),
            (r#"{"slo_latency_ms":[30]}"#, "slo_latency_ms", "..."),
            (
                r#"{"dynamic_batching":{"slo_latency_ms":30}}"#,
                "slo_latency_ms",
                "...",
            ),
            (r#"{"thread_spinning":true}"#, "thread_spinning", "true"),
            (&long("x", 64), "tenant", &"x".repeat(64)),
            (&long("x", 65), "tenant", "..."),
        ] {
            let error = parse_json(json, "c").expect_err(json).to_string();
            let form = format!(r#"`"parameters":{{"{key}":{{"string_value":"{value}"}}}}`"#);
            assert!(error.ends_with(&format!("write {form}")), "{error}");
            let written = form.trim_matches('`');
            assert!(
                parse_json(&format!("{{{written}}}"), "c").is_ok(),
                "{written}"
            );
        }
        let error = parse_json(r#"{"quatsch":3}"#, "c").expect_err("unknown");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }
}
