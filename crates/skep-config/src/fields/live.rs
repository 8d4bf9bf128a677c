//! `live_configuration`: what the server chooses must not be configured as well.

use skep_proto::inference::{self, model_config::SchedulingChoice, model_instance_group::Kind};

use crate::{error::ConfigError, parameters::value::boolean};

const KEY: &str = "live_configuration";

/// Keys of `parameters` that fix what the server chooses.
const FIXED: [&str; 4] = [
    "max_instances",
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
];

/// Whether a configuration asks for it. Values that are refused later count as absent.
pub(crate) fn is_wanted(proto: &inference::ModelConfig) -> bool {
    let value = proto.parameters.get(KEY);
    value.is_some_and(|value| boolean(value.string_value.trim()).unwrap_or_default())
}

/// Refuses settings that fix instances, threads or batches.
///
/// # Errors
/// [`ConfigError::Invalid`], which names the setting.
pub(crate) fn check(proto: &inference::ModelConfig) -> Result<(), ConfigError> {
    if !is_wanted(proto) {
        return Ok(());
    }
    let refuse = |field: String, what: &str| {
        let reason = format!("`{KEY}` chooses {what}: remove one of the two");
        Err(ConfigError::invalid(&proto.name, field, reason))
    };
    for (index, group) in proto.instance_group.iter().enumerate() {
        let field = |name: &str| format!("instance_group[{index}].{name}");
        if index > 0 {
            return refuse(
                format!("instance_group[{index}]"),
                "the instances of one group",
            );
        }
        if group.count != 0 {
            return refuse(field("count"), "the number of instances");
        }
        if group.passive {
            return refuse(field("passive"), "instances that take requests");
        }
        if group.kind == Kind::Model as i32 {
            return refuse(field("kind"), "instances on the CPU");
        }
    }
    for key in FIXED {
        if proto.parameters.contains_key(key) {
            let what = if key == "max_instances" {
                "the number of instances"
            } else {
                "the threads of an instance"
            };
            return refuse(format!("parameters.{key}"), what);
        }
    }
    let least = proto.parameters.get("min_instances");
    let least = least.and_then(|value| value.string_value.trim().parse::<u32>().ok());
    if least.is_some_and(|least| least > 1) {
        return refuse(
            "parameters.min_instances".to_owned(),
            "the number of instances",
        );
    }
    match &proto.scheduling_choice {
        Some(SchedulingChoice::DynamicBatching(batching))
            if !batching.preferred_batch_size.is_empty() =>
        {
            let field = "dynamic_batching.preferred_batch_size";
            refuse(field.to_owned(), "the size of batches")
        }
        Some(SchedulingChoice::SequenceBatching(_)) => {
            refuse("sequence_batching".to_owned(), "the size of batches")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse_pbtxt;

    fn checked(text: &str) -> Result<(), String> {
        let wanted = "parameters { key: 'live_configuration' value { string_value: '1' } }";
        let text = format!("name: 'm' backend: 'mock' {wanted} {text}");
        let proto = parse_pbtxt(text.as_bytes(), "c").expect("parses");
        check(&proto).map_err(|error| format!("{error:?}"))
    }

    fn parameter(key: &str, value: &str) -> String {
        format!("parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}")
    }

    #[test]
    fn what_fixes_the_same_is_refused() {
        for text in [
            "",
            "instance_group { }",
            "instance_group { kind: KIND_CPU name: 'g' }",
            "dynamic_batching { max_queue_delay_microseconds: 100 }",
            &parameter("min_instances", "1"),
            &parameter("slo_latency_ms", "20"),
        ] {
            assert_eq!(checked(text), Ok(()), "{text}");
        }
        for (text, field) in [
            ("instance_group { count: 1 }", "instance_group[0].count"),
            ("instance_group [ { }, { } ]", "instance_group[1]"),
            (
                "instance_group { passive: true }",
                "instance_group[0].passive",
            ),
            (
                "instance_group { kind: KIND_MODEL }",
                "instance_group[0].kind",
            ),
            (&parameter("max_instances", "4"), "parameters.max_instances"),
            (&parameter("min_instances", "2"), "parameters.min_instances"),
            (
                &parameter("intra_op_thread_count", "1"),
                "parameters.intra_op_thread_count",
            ),
            (
                "dynamic_batching { preferred_batch_size: [ 4 ] }",
                "dynamic_batching.preferred_batch_size",
            ),
        ] {
            let error = checked(text).expect_err(text);
            assert!(error.contains(field), "{error}");
            assert!(error.contains("`live_configuration` chooses "), "{error}");
        }
        // Off, it forbids nothing.
        let off = "name: 'm' parameters { key: 'live_configuration' value { string_value: '0' } } instance_group { count: 2 }";
        assert_eq!(
            check(&parse_pbtxt(off.as_bytes(), "c").expect("parses")),
            Ok(())
        );
    }
}
