//! A model configuration as JSON and as text.

use prost::Message;
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, SerializeOptions,
    text_format::FormatOptions,
};
use serde_json::{Map, Value};
use skep_proto::inference::ModelConfig;

/// A configuration in protobuf's text format, as `config.pbtxt` has it; fields with their default are left out.
///
/// # Panics
/// Never in practice, as [`to_json`].
#[must_use]
pub fn to_pbtxt(config: &ModelConfig) -> String {
    let options = FormatOptions::new().pretty(true);
    message(config).to_text_format_with_options(&options)
}

fn message(config: &ModelConfig) -> DynamicMessage {
    let descriptor = skep_proto::descriptors()
        .get_message_by_name("inference.ModelConfig")
        .expect("the committed descriptors hold the configuration");
    DynamicMessage::decode(descriptor, config.encode_to_vec().as_slice())
        .expect("a message decodes by its own descriptor")
}

/// A configuration in the JSON form that Triton gives it: numbers as numbers, enums by name, members by the names of
/// the configuration file and in the order in which `model_config.proto` declares them, defaults present.
///
/// # Panics
/// Never in practice: descriptors and messages are generated from the same source.
#[must_use]
pub fn to_json(config: &ModelConfig) -> Vec<u8> {
    let options = SerializeOptions::new()
        .stringify_64_bit_integers(false)
        .use_proto_field_name(true)
        .skip_default_fields(false);
    let message = message(config);
    let mut json = Vec::new();
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut json), &options)
        .expect("numbers, texts and lists have a JSON form, and a vector takes all");
    let by_number = serde_json::from_slice(&json).expect("written a line above");
    declared(by_number, &message.descriptor())
        .to_string()
        .into_bytes()
}

/// Sorts the members of a message, which arrive by field number, into the order of declaration.
fn declared(value: Value, message: &MessageDescriptor) -> Value {
    let Value::Object(mut members) = value else {
        return value;
    };
    let mut ordered = Map::with_capacity(members.len());
    for declaration in &message.descriptor_proto().field {
        let name = declaration.name();
        let (Some(value), Some(field)) = (members.remove(name), message.get_field_by_name(name))
        else {
            continue;
        };
        ordered.insert(name.to_owned(), declared_field(value, &field));
    }
    Value::Object(ordered)
}

fn declared_field(value: Value, field: &FieldDescriptor) -> Value {
    let Kind::Message(message) = field.kind() else {
        return value;
    };
    match value {
        Value::Array(elements) => elements
            .into_iter()
            .map(|element| declared(element, &message))
            .collect(),
        Value::Object(entries) if field.is_map() => entries
            .into_iter()
            .map(|(key, value)| {
                let of_entry = message.map_entry_value_field();
                (key, declared_field(value, &of_entry))
            })
            .collect(),
        value => declared(value, &message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::inference::{
        DataType, ModelInput, ModelInstanceGroup, ModelParameter, ModelSequenceBatching,
        model_config::SchedulingChoice,
        model_instance_group::Kind,
        model_sequence_batching::{StrategyChoice, StrategyDirect},
    };

    #[test]
    fn configurations_take_tritons_json_form() {
        let direct = StrategyDirect {
            max_queue_delay_microseconds: 1 << 53,
            minimum_slot_utilization: 0.1,
        };
        let config = ModelConfig {
            name: "m\"".to_owned(),
            max_batch_size: 8,
            input: vec![ModelInput {
                name: "x".to_owned(),
                data_type: DataType::TypeFp32.into(),
                dims: vec![-1, 3],
                ..Default::default()
            }],
            instance_group: vec![ModelInstanceGroup {
                kind: Kind::Cpu.into(),
                ..Default::default()
            }],
            scheduling_choice: Some(SchedulingChoice::SequenceBatching(ModelSequenceBatching {
                strategy_choice: Some(StrategyChoice::Direct(direct)),
                ..Default::default()
            })),
            ..Default::default()
        };
        let json = String::from_utf8(to_json(&config)).expect("text");
        for part in [
            r#""name":"m\"""#,
            r#""platform":"""#,
            r#""max_batch_size":8"#,
            r#""data_type":"TYPE_FP32""#,
            r#""dims":[-1,3]"#,
            r#""kind":"KIND_CPU""#,
            r#""max_queue_delay_microseconds":9007199254740992"#,
            r#""minimum_slot_utilization":0.1}"#,
            r#""output":[]"#,
        ] {
            assert!(json.contains(part), "{part}: {json}");
        }
    }

    #[test]
    fn members_are_in_the_order_of_their_declaration() {
        let config = ModelConfig {
            backend: "b".to_owned(),
            instance_group: vec![ModelInstanceGroup {
                name: "g".to_owned(),
                ..Default::default()
            }],
            parameters: [("p".to_owned(), ModelParameter::default())].into(),
            ..Default::default()
        };
        let json = String::from_utf8(to_json(&config)).expect("text");
        for part in [
            r#"{"name":"","platform":"","backend":"b","runtime":"","max_batch_size":0,"input":[]"#,
            r#""batch_output":[],"instance_group":[{"name":"g","kind":"KIND_AUTO","count":0,"gpus":[]"#,
            r#""parameters":{"p":{"string_value":""}},"model_warmup":[]"#,
        ] {
            assert!(json.contains(part), "{part}: {json}");
        }
    }

    #[test]
    fn numbers_outside_of_their_enum_do_not_panic() {
        let config = ModelConfig {
            input: vec![ModelInput {
                data_type: 12_345,
                ..Default::default()
            }],
            ..Default::default()
        };
        let json = String::from_utf8(to_json(&config)).expect("text");
        assert!(json.contains(r#""data_type":12345"#), "{json}");
    }
}
