//! Spellings that must parse, errors with their positions, and hostile input.

use proptest::prelude::*;
use skep_proto::inference::{
    self, model_config::SchedulingChoice, model_warmup::input::InputDataType,
};

use super::{FieldPositions, MAX_CONFIG_BYTES, parse_pbtxt, parser::Parser};
use crate::error::ConfigError;

fn parse(text: &str) -> inference::ModelConfig {
    parse_pbtxt(text.as_bytes(), "config.pbtxt")
        .unwrap_or_else(|error| panic!("{error}\nin {text}"))
}

fn error(text: &str) -> String {
    parse_pbtxt(text.as_bytes(), "config.pbtxt")
        .expect_err(text)
        .to_string()
}

/// A configuration with every kind of value.
const FULL: &str = r#"
name: "full" # a comment
platform: 'onnxruntime' "_onnx"
max_batch_size: 8;
input [
  { name: "a" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, -1, 0x20 ] reshape { shape: [ ] } },
  { name: "b", data_type: 9, dims: [ 010 ] optional: true }
]
output { name: "c" data_type: TYPE_STRING dims: 1 dims: 2 label_filename: "l\303\244bels.txt" }
output: < name: "d" data_type: TYPE_BF16 dims: [1] >
version_policy: { specific { versions: [1, 3] } }
instance_group [ { count: 2 kind: KIND_CPU } ]
dynamic_batching { priority_queue_policy { key: 1 value { timeout_action: DELAY max_queue_size: 7 } } }
parameters: { key: "k" value: { string_value: "v" } }
parameters { key: "l" value { string_value: "w" } }
optimization { graph : { level : -1 } input_pinned_memory { enable: False } }
model_warmup [ { name: "w" batch_size: 1 inputs { key: "a" value { data_type: TYPE_FP32 dims: [1] zero_data: t } } } ]
model_metrics { metric_control [ { histogram_options { buckets: [ 1, 2.5, 1e3, .5f, -inf, nan ] } } ] }
"#;

#[test]
fn every_kind_of_value_is_read() {
    let config = parse(FULL);
    assert_eq!(config.platform, "onnxruntime_onnx");
    assert_eq!(config.max_batch_size, 8);
    assert_eq!(config.input[0].dims, [3, -1, 32]);
    assert_eq!(
        config.input[0].reshape,
        Some(inference::ModelTensorReshape { shape: vec![] })
    );
    assert_eq!(
        (config.input[1].data_type(), &config.input[1].dims[..]),
        (inference::DataType::TypeInt64, &[8][..])
    );
    assert!(config.input[1].optional);
    assert_eq!(config.output[0].dims, [1, 2]);
    assert_eq!(config.output[0].label_filename, "läbels.txt");
    assert_eq!(config.output[1].data_type(), inference::DataType::TypeBf16);
    let Some(SchedulingChoice::DynamicBatching(batching)) = &config.scheduling_choice else {
        panic!("{config:?}")
    };
    assert_eq!(batching.priority_queue_policy[&1].max_queue_size, 7);
    assert_eq!(config.parameters["k"].string_value, "v");
    assert_eq!(config.parameters["l"].string_value, "w");
    let optimization = config.optimization.expect("optimization");
    assert_eq!(optimization.graph.map(|g| g.level), Some(-1));
    assert_eq!(
        optimization.input_pinned_memory.map(|p| p.enable),
        Some(false)
    );
    assert_eq!(
        config.model_warmup[0].inputs["a"].input_data_type,
        Some(InputDataType::ZeroData(true))
    );
    let metrics = config.model_metrics.expect("metrics");
    let Some(inference::model_metrics::metric_control::MetricOptions::HistogramOptions(histogram)) =
        &metrics.metric_control[0].metric_options
    else {
        panic!("{metrics:?}")
    };
    assert_eq!(
        &histogram.buckets[..5],
        &[1.0, 2.5, 1000.0, 0.5, f64::NEG_INFINITY]
    );
    assert!(histogram.buckets[5].is_nan());
}

#[test]
fn spellings_of_one_value_are_equal() {
    let expected = parse("input { name: \"x\" dims: 3 dims: 4 } input { name: \"y\" }");
    for text in [
        "input [ { name: 'x' dims: [3,4] }, { name: 'y' } ]",
        "input: [ { name: 'x', dims: [3,4], }, { name: 'y'; } ]",
        "input: { name: 'x' dims: [3] dims: 4 }; input <name:'y'>,",
        "input [ < name: 'x' dims: [ 0x3, 04 ] > ] input [] input : [{name:'y'}]",
        "\u{feff}input\r\n{\r\n name: # note\r\n 'x' dims:[3\r\n,4]}input{name:\"\"'y'}\r\n",
    ] {
        assert_eq!(parse(text), expected, "{text}");
    }
    for yes in ["true", "True", "TRUE", "t", "1", "0x1"] {
        assert!(
            parse(&format!("response_cache {{ enable: {yes} }}"))
                .response_cache
                .is_some_and(|c| c.enable),
            "{yes}"
        );
    }
    for no in ["false", "False", "FALSE", "f", "0"] {
        assert!(
            parse(&format!("response_cache {{ enable: {no} }}"))
                .response_cache
                .is_some_and(|c| !c.enable),
            "{no}"
        );
    }
    assert_eq!(parse(""), inference::ModelConfig::default());
    assert_eq!(parse("parameters { key: 'k' value {} } parameters { key: 'k' value { string_value: 'last' } }").parameters["k"].string_value, "last");
}

#[test]
fn errors_say_where_and_what() {
    for (text, expected) in [
        (
            "name: \"m\"\n\nmax_batchsize: 8",
            "config.pbtxt:3:1: unknown field `max_batchsize` in `ModelConfig`\ndid you mean `max_batch_size`?",
        ),
        (
            "input { dim: [1] }",
            "config.pbtxt:1:9: unknown field `dim` in `ModelInput`\ndid you mean `dims`?",
        ),
        (
            "quatsch: 1",
            "config.pbtxt:1:1: unknown field `quatsch` in `ModelConfig`",
        ),
        (
            "max_batch_size: \"8\"",
            "config.pbtxt:1:17: field `max_batch_size`: expected an integer from -2147483648 to 2147483647, got the string \"8\"",
        ),
        (
            "max_batch_size: 3000000000",
            "config.pbtxt:1:17: field `max_batch_size`: expected an integer from -2147483648 to 2147483647, got `3000000000`",
        ),
        (
            "input [ {}, { dims: [ 1, 2.5 ] } ]",
            "config.pbtxt:1:26: field `input[1].dims[1]`: expected an integer from -9223372036854775808 to 9223372036854775807, got `2.5`",
        ),
        (
            "instance_group { kind: KIND_CPUS }",
            "config.pbtxt:1:24: field `instance_group[0].kind`: expected one of KIND_AUTO, KIND_GPU, KIND_CPU, KIND_MODEL, got `KIND_CPUS`\ndid you mean `KIND_CPU`?",
        ),
        (
            "instance_group { count: -x }",
            "config.pbtxt:1:25: field `instance_group[0].count`: expected an integer from -2147483648 to 2147483647, got `-x`",
        ),
        (
            "name \"m\"",
            "config.pbtxt:1:6: field `name`: expected `:`, got the string \"m\"",
        ),
        (
            "name: m",
            "config.pbtxt:1:7: field `name`: expected a string in quotes, got `m`",
        ),
        (
            "name: \"m",
            "config.pbtxt:1:7: field `name`: expected a closing quote, got the end of the file",
        ),
        (
            "name: \"a\\q\"",
            "config.pbtxt:1:9: field `name`: expected an escape sequence such as \\n, \\\", \\x41, \\101 or \\u00e9, got `\\q`",
        ),
        (
            "name: '\\xff'",
            "config.pbtxt:1:7: field `name`: expected a string in UTF-8, got bytes that are not UTF-8",
        ),
        (
            "input {",
            "config.pbtxt:1:8: field `input[0]`: expected a field name or `}`, got the end of the file",
        ),
        (
            "input < name: 'x' }",
            "config.pbtxt:1:19: field `input[0]`: expected a field name or `>`, got `}`",
        ),
        (
            "input 5",
            "config.pbtxt:1:7: field `input[0]`: expected `{`, got `5`",
        ),
        (
            "input [ {} {} ]",
            "config.pbtxt:1:12: field `input`: expected `,` or `]`, got `{`",
        ),
        ("}", "config.pbtxt:1:1: expected a field name, got `}`"),
        (
            "[ext.x]: 1",
            "config.pbtxt:1:1: expected a field name, got `[`",
        ),
        (
            "max_batch_size: 1\nmax_batch_size: 1",
            "config.pbtxt:2:1: non-repeated field `max_batch_size` is specified multiple times",
        ),
        (
            "version_policy { latest {}\nall {} }",
            "config.pbtxt:2:1: field `all` is specified along with field `latest`, another member of oneof `policy_choice`",
        ),
        (
            "max_batch_size: [1]",
            "config.pbtxt:1:17: field `max_batch_size`: expected an integer from -2147483648 to 2147483647, got `[`",
        ),
    ] {
        assert_eq!(error(text), expected, "{text}");
    }
}

#[test]
fn a_text_has_16_mib_at_most() {
    let text = vec![b' '; MAX_CONFIG_BYTES];
    assert!(parse_pbtxt(&text, "c").is_ok());
    let error = parse_pbtxt(&vec![b' '; MAX_CONFIG_BYTES + 1], "c").expect_err("too long");
    let expected = "c:1:1: expected at most 16777216 bytes, got 16777217 bytes";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn invalid_utf8_has_a_position() {
    let error = parse_pbtxt(b"name: \"m\"\nx\xff", "c").expect_err("invalid");
    assert_eq!(
        error.to_string(),
        "c:2:2: expected text in UTF-8, got the byte 0xff"
    );
}

#[test]
fn malformed_numbers_are_refused() {
    for bad in [
        "08",
        "1_000",
        "0x",
        "1e3",
        "1f",
        "--1",
        "+1",
        "1a",
        "9999999999999999999999",
        "inf",
    ] {
        assert!(
            matches!(
                parse_pbtxt(format!("max_batch_size: {bad}").as_bytes(), "c"),
                Err(ConfigError::Syntax { .. })
            ),
            "{bad}"
        );
    }
    assert!(parse_pbtxt(b"instance_group { kind: -KIND_CPU }", "c").is_err());
    for bad in ["1.2.3", "0x10", "1e", "e5", "."] {
        let text = format!("sequence_batching {{ direct {{ minimum_slot_utilization: {bad} }} }}");
        assert!(parse_pbtxt(text.as_bytes(), "c").is_err(), "{bad}");
    }
}

/// The messages of a model configuration do not contain themselves. A schema that does must not overflow the stack.
#[test]
fn nesting_is_bounded() {
    let pool = prost_reflect::DescriptorPool::global();
    let value = pool
        .get_message_by_name("google.protobuf.Value")
        .expect("well-known type");
    let parse = |levels: usize, inner: &str| {
        let text = format!(
            "{}{inner}{}",
            "list_value { values { ".repeat(levels),
            "} }".repeat(levels)
        );
        Parser::new(&text, "c")
            .and_then(|parser| parser.parse(&value))
            .map_err(|error| error.to_string())
    };
    assert!(parse(16, "").is_ok());
    assert!(parse(16, "list_value { }").is_err());
    let error = parse(100_000, "").expect_err("too deep");
    assert!(
        error.ends_with("expected at most 32 nested messages, got `{`"),
        "{}",
        &error[error.len() - 80..]
    );
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse_pbtxt(&bytes, "c");
    }

    #[test]
    fn random_tokens_never_panic(words in proptest::collection::vec(prop::sample::select(vec![
        "input", "name", "dims", "{", "}", "[", "]", "<", ">", ":", ",", ";", "'a'", "\"", "\\", "-", "1", "0x", "1e",
        "parameters", "key", "value", "string_value", "#", "\n", "TYPE_FP32", "data_type", "version_policy", "latest", "\u{e9}",
    ]), 0..60)) {
        let _ = parse_pbtxt(words.join(" ").as_bytes(), "c");
    }

    #[test]
    fn mutated_configurations_never_panic(at in 0..FULL.len(), byte in any::<u8>(), cut in 0..FULL.len(), length in 0usize..40) {
        let mut bytes = FULL.as_bytes().to_vec();
        bytes[at] = byte;
        let end = (cut + length).min(bytes.len());
        bytes.drain(cut..end);
        if let Err(error) = parse_pbtxt(&bytes, "c") {
            prop_assert!(error.to_string().starts_with("c:"));
        }
    }

    #[test]
    fn strings_survive_quoting(text in any::<String>()) {
        let quoted: String = text.bytes().map(|b| format!("\\{b:03o}")).collect();
        let config = parse_pbtxt(format!("name: '{quoted}'").as_bytes(), "c").expect("quoted");
        prop_assert_eq!(config.name, text);
    }

    #[test]
    fn integers_read_back(number in any::<i64>()) {
        let config = parse_pbtxt(format!("input {{ dims: {number} }}").as_bytes(), "c").expect("number");
        prop_assert_eq!(&config.input[0].dims, &[number]);
    }
}

#[test]
fn fields_are_found_by_path() {
    let text = "name: 'm'\ninput [\n  { name: 'a' dims: [ 1,\n 2 ] },\n  { name: 'b' }\n]\ninput { name: 'c' }\nparameters [ { key: 'b.c' } ]";
    let places = FieldPositions::read(text.as_bytes(), "c");
    for (path, expected) in [
        ("name", Some("c:1:1")),
        ("input[0]", Some("c:3:3")),
        ("input[0].name", Some("c:3:5")),
        ("input[0].dims[1]", Some("c:4:2")),
        ("input[1].name", Some("c:5:5")),
        // Absent fields: the field around them.
        ("input[1].data_type", Some("c:5:3")),
        ("input[2].reshape.shape", Some("c:7:7")),
        ("output[0].name", None),
        // Map entries by their keys.
        ("parameters.b.c", Some("c:8:14")),
        ("parameters.other", Some("c:8:1")),
    ] {
        assert_eq!(
            places.find(path).map(|at| at.to_string()).as_deref(),
            expected,
            "{path}"
        );
    }
    assert_eq!(FieldPositions::read(b"input {", "c").find("input"), None);
}

#[test]
fn parameters_written_as_fields_get_a_hint() {
    let form = |key, value| {
        format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}")
    };
    for spec in crate::PARAMETERS {
        let error = error(&format!("{}: 30", spec.key));
        let hint = format!(
            "\n`{}` is a parameter of the model, not a field: write `{}`",
            spec.key,
            form(spec.key, "30")
        );
        assert!(error.ends_with(&hint), "{error}");
    }
    for (written, key, value) in [
        ("slo_latency_ms: 30", "slo_latency_ms", "30"),
        (
            "name: 'x'\nslo_latency_ms :\n # note\n -2.5f",
            "slo_latency_ms",
            "-2.5f",
        ),
        ("batching_policy: \"auto\"", "batching_policy", "auto"),
        (
            "batching_policy: 'a\"b\\\\c'",
            "batching_policy",
            "a\\\"b\\\\c",
        ),
        ("thread_spinning: true", "thread_spinning", "true"),
        (
            "dynamic_batching { slo_latency_ms: 30 }",
            "slo_latency_ms",
            "30",
        ),
        (
            "parameters { slo_latency_ms: '30' }",
            "slo_latency_ms",
            "30",
        ),
        ("latency_slo: 30", "slo_latency_ms", "30"),
        // Another unit needs another value. Anything but one short value is left to the user.
        ("slo_latency_us: 30000", "slo_latency_ms", "..."),
        ("slo_latency_ms { value: 30 }", "slo_latency_ms", "..."),
        ("slo_latency_ms: [ 30 ]", "slo_latency_ms", "..."),
        ("slo_latency_ms", "slo_latency_ms", "..."),
        ("slo_latency_ms: 'a\\nb'", "slo_latency_ms", "..."),
        ("mock.latency_ms: 3", "mock.latency_us", "..."),
    ] {
        let error = error(written);
        let hint = format!("write `{}`", form(key, value));
        assert!(error.ends_with(&hint), "{written}: {error}");
    }
    // A field of the message is preferred to a parameter, and a user's own word is near to nothing.
    assert!(error("max_batch: 8").ends_with("did you mean `max_batch_size`?"));
    assert_eq!(error("tenants_of_ours: 8").lines().count(), 1);
}

#[test]
fn a_scalar_instead_of_a_message_gets_a_hint() {
    for (written, hint) in [
        (
            "parameters { key: 'k' value: \"30\" }",
            "write `value { string_value: \"30\" }`",
        ),
        (
            "parameters { key: 'k' value: 30 }",
            "write `value { string_value: \"30\" }`",
        ),
        (
            "version_policy { latest: 2 }",
            "write `latest { num_versions: 2 }`",
        ),
        (
            "response_cache: true",
            "write `response_cache { enable: true }`",
        ),
    ] {
        let error = error(written);
        assert_eq!(error.lines().nth(1), Some(hint), "{error}");
    }
    for written in [
        "input: 'x'",
        "parameters: 'x'",
        "parameters { value: [ 1 ] }",
        "version_policy: 2",
        // Its one field is a message as well.
        "model_repository_agents: 2",
    ] {
        assert_eq!(error(written).lines().count(), 1, "{written}");
    }
}
