//! What is typed, what is refused, what has no effect.

use skep_types::{DataType, Dims, ModelName, ModelSignature, Shape, TensorSpec};

use super::*;
use crate::{
    ConfigContext, ControlKind, FlagValues, InitialData, ModelConfig, SchedulerConfig, parse_pbtxt,
};

fn config(max_batch_size: usize, text: &str) -> Result<ModelConfig, ConfigError> {
    let text = format!(
        "backend: 'mock' max_batch_size: {max_batch_size}
         input {{ name: 'x' data_type: TYPE_FP32 dims: 3 }} output {{ name: 'y' data_type: TYPE_FP32 dims: 3 }} {text}"
    );
    let name = ModelName::new("m").expect("name");
    let proto = parse_pbtxt(text.as_bytes(), "c").unwrap_or_else(|error| panic!("{error}"));
    ModelConfig::from_proto(proto, &ConfigContext::new(&name))
}

fn sequences(text: &str) -> Result<SequenceBatching, String> {
    let config = config(4, &format!("sequence_batching {{ {text} }}"));
    let config = config.map_err(|error| error.to_string())?;
    match config.scheduler() {
        SchedulerConfig::Sequence(batching) => Ok(batching.clone()),
        other => panic!("{other:?}"),
    }
}

fn notices(config: &ModelConfig) -> Vec<String> {
    config.notices().iter().map(ToString::to_string).collect()
}

fn control(name: &str, kind: &str, rest: &str) -> String {
    format!(
        "control_input {{ name: '{name}' control {{ kind: CONTROL_SEQUENCE_{kind} {rest} }} }} "
    )
}

#[test]
fn the_strategy_is_direct_unless_it_is_chosen() {
    let default = sequences("").expect("valid");
    let expected = SequenceBatching {
        strategy: SlotStrategy::Direct {
            max_queue_delay: Duration::ZERO,
            least_ready: 0,
        },
        max_idle: Duration::from_secs(1),
        controls: Vec::new(),
        states: Vec::new(),
        max_waiting: None,
        max_wait: None,
    };
    assert_eq!(default, expected);
    let direct = "direct { max_queue_delay_microseconds: 500 minimum_slot_utilization: 0.6 }";
    let direct = sequences(&format!("max_sequence_idle_microseconds: 7 {direct}")).expect("valid");
    assert_eq!(direct.max_idle, Duration::from_micros(7));
    let strategy = SlotStrategy::Direct {
        max_queue_delay: Duration::from_micros(500),
        least_ready: 3,
    };
    assert_eq!(direct.strategy, strategy);
    let oldest = "oldest { max_candidate_sequences: 9 preferred_batch_size: [ 4, 2 ] max_queue_delay_microseconds: 5 preserve_ordering: true }";
    let strategy = SlotStrategy::Oldest {
        max_candidates: 9,
        preferred_batch_sizes: vec![2, 4],
        max_queue_delay: Duration::from_micros(5),
        preserve_ordering: true,
    };
    assert_eq!(sequences(oldest).expect("valid").strategy, strategy);
}

#[test]
fn defaults_are_shown_as_triton_shows_them() {
    let shown = |text: &str| {
        let config = config(4, &format!("sequence_batching {{ {text} }}")).expect("valid");
        let again =
            ModelConfig::from_proto(config.proto().clone(), &ConfigContext::new(config.name()));
        assert_eq!(again.expect("valid").scheduler(), config.scheduler());
        format!("{:?}", config.proto().scheduling_choice)
    };
    assert!(shown("").contains("max_sequence_idle_microseconds: 1000000"));
    let oldest = shown("oldest { max_candidate_sequences: 9 }");
    assert!(oldest.contains("preferred_batch_size: [4]"), "{oldest}");
}

#[test]
fn limits_come_from_parameters() {
    let limits = "parameters { key: 'max_waiting_sequences' value { string_value: '0' } }
                  parameters { key: 'max_sequence_wait_ms' value { string_value: '20' } }";
    let with = config(4, &format!("sequence_batching {{ }} {limits}")).expect("valid");
    let SchedulerConfig::Sequence(batching) = with.scheduler() else {
        panic!("it has sequences");
    };
    assert_eq!(batching.max_waiting, Some(0));
    assert_eq!(batching.max_wait, Some(Duration::from_millis(20)));
    assert!(notices(&with).is_empty());
    let without = config(4, limits).expect("valid");
    let expected = ["max_waiting_sequences", "max_sequence_wait_ms"];
    let expected =
        expected.map(|key| format!("`parameters.{key}`: no effect without `sequence_batching`"));
    assert_eq!(notices(&without), expected);
}

#[test]
fn controls_are_typed() {
    let text = control("s", "START", "int32_false_true: [ 0, 7 ]")
        + &control("e", "END", "fp32_false_true: [ -1, 0.5 ]")
        + &control("r", "READY", "bool_false_true: [ true, false ]")
        + &control("i", "CORRID", "data_type: TYPE_STRING");
    let read = sequences(&text).expect("valid").controls;
    let typed: Vec<_> = read
        .iter()
        .map(|c| (&*c.name, c.datatype, c.kind))
        .collect();
    let values = |no, yes| FlagValues { no, yes };
    let start = values(0_i32.to_le_bytes(), 7_i32.to_le_bytes());
    let end = values((-1_f32).to_le_bytes(), 0.5_f32.to_le_bytes());
    let expected = [
        ("s", DataType::Int32, ControlKind::Start(start)),
        ("e", DataType::Fp32, ControlKind::End(end)),
        (
            "r",
            DataType::Bool,
            ControlKind::Ready(values([1, 0, 0, 0], [0; 4])),
        ),
        ("i", DataType::Bytes, ControlKind::CorrelationId),
    ];
    assert_eq!(typed, expected);
}

#[test]
fn states_are_typed() {
    let state =
        "state { input_name: 'in' output_name: 'out' data_type: TYPE_INT32 dims: [ -1, 2 ] ";
    let plain = sequences(&format!("{state} }}")).expect("valid").states;
    let [plain] = plain.as_slice() else {
        panic!("one state")
    };
    assert_eq!((&*plain.input.name, &*plain.output.name), ("in", "out"));
    assert_eq!(
        plain.input.full_dims(),
        Dims::new(&[-1, -1, 2]).expect("dims")
    );
    assert_eq!(plain.initial_shape, Shape::new(&[1, 2]).expect("a shape"));
    assert_eq!(plain.initial_data, InitialData::Zero);
    let file =
        "initial_state { name: 'i' data_type: TYPE_INT32 dims: [ 0, 2 ] data_file: 'd/f' } }";
    let file = sequences(&format!("{state} {file}")).expect("valid").states;
    assert_eq!(file[0].initial_shape, Shape::new(&[0, 2]).expect("a shape"));
    assert_eq!(file[0].initial_data, InitialData::File("d/f".to_owned()));
    let cuda = format!("sequence_batching {{ {state} use_growable_memory: true }} }}");
    let expected = "`sequence_batching.state[0].use_growable_memory`: no effect: states are in the host's memory";
    assert_eq!(notices(&config(4, &cuda).expect("valid")), [expected]);
}

#[test]
fn resources_need_instances_that_can_be_exchanged() {
    let limited = "instance_group { rate_limiter { resources { name: 'r' count: 1 } } }";
    let with = |strategy: &str| config(4, &format!("sequence_batching {{ {strategy} }} {limited}"));
    let refusal = with("direct { }").expect_err("bound to instances");
    assert_eq!(refusal.field(), "instance_group[0].rate_limiter.resources");
    assert!(with("").is_err(), "the default is direct");
    assert!(with("oldest { max_candidate_sequences: 2 }").is_ok());
}

#[test]
fn wrong_settings_are_refused() {
    let start = control("s", "START", "int32_false_true: [ 0, 1 ]");
    let state = |rest: &str| {
        format!(
            "state {{ input_name: 'in' output_name: 'out' data_type: TYPE_FP32 dims: [ 3 ] {rest} }}"
        )
    };
    let initial = |rest: &str| state(&format!("initial_state {{ name: 'i' {rest} }}"));
    for (text, rule) in [
        (
            control("", "START", "int32_false_true: [ 0, 1 ]"),
            "control tensor must have a name for m",
        ),
        (
            start.clone() + &control("s", "END", "int32_false_true: [ 0, 1 ]"),
            "control tensor 's' is specified for multiple control kinds for m",
        ),
        (
            start.clone() + &control("t", "START", "int32_false_true: [ 0, 1 ]"),
            "specifies multiple CONTROL_SEQUENCE_START tensors for m",
        ),
        (
            control("s", "START", ""),
            "must specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' for CONTROL_SEQUENCE_START for m",
        ),
        (
            control(
                "s",
                "END",
                "int32_false_true: [ 0, 1 ] bool_false_true: [ false, true ]",
            ),
            "specifies more than one from 'int32_false_true', 'fp32_false_true' and 'bool_false_true' for CONTROL_SEQUENCE_END for m",
        ),
        (
            control("s", "READY", "fp32_false_true: 0"),
            "control 'fp32_false_true' must have exactly 2 entries for CONTROL_SEQUENCE_READY for m",
        ),
        (
            control("i", "CORRID", ""),
            "expected TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32, or TYPE_STRING for CONTROL_SEQUENCE_CORRID for m",
        ),
        (
            control("i", "CORRID", "data_type: TYPE_FP32"),
            "unexpected control data type",
        ),
        (
            control(
                "i",
                "CORRID",
                "data_type: TYPE_INT32 int32_false_true: [ 0, 1 ]",
            ),
            "must not specify either",
        ),
        (
            "control_input { name: 's' }".to_owned(),
            "control tensor 's' must have one control for m",
        ),
        (
            control("x", "START", "int32_false_true: [ 0, 1 ]"),
            "tensor 'x' is set by the server and cannot be another input for m",
        ),
        (
            "oldest { }".to_owned(),
            "must specify maximum candidate sequences > 0 for m",
        ),
        (
            "oldest { max_candidate_sequences: 1 preferred_batch_size: 0 }".to_owned(),
            "preferred batch size must be positive for m",
        ),
        (
            "oldest { max_candidate_sequences: 1 preferred_batch_size: 5 }".to_owned(),
            "preferred batch size must be <= max batch size for m",
        ),
        (
            "direct { minimum_slot_utilization: 1.5 }".to_owned(),
            "minimum slot utilization must be in range [0.0, 1.0] for m",
        ),
        (
            "direct { minimum_slot_utilization: nan }".to_owned(),
            "minimum slot utilization must be in range [0.0, 1.0] for m",
        ),
        (
            "iterative_sequence: true".to_owned(),
            "`sequence_batching.iterative_sequence` of model `m` is not supported yet",
        ),
        (
            "state { output_name: 'out' data_type: TYPE_FP32 dims: 1 }".to_owned(),
            "state must specify 'input_name' for m",
        ),
        (
            "state { input_name: 'in' output_name: 'out' dims: 1 }".to_owned(),
            "state 'in' must specify 'data_type' for m",
        ),
        (
            "state { input_name: 'in' output_name: 'out' data_type: TYPE_FP32 }".to_owned(),
            "state 'in' must specify 'dims', each >= 1, or -1 if it varies for m",
        ),
        (
            state("") + &state(""),
            "state output 'out' can only be specified once for m",
        ),
        (
            "state { input_name: 'in' output_name: 'y' data_type: TYPE_FP32 dims: 4 }".to_owned(),
            "state output 'y' has data_type TYPE_FP32 and dims [4], but output 'y' has TYPE_FP32 and [3] for m",
        ),
        (
            initial("data_type: TYPE_INT32 dims: 3 zero_data: true"),
            "initial state of 'in' must have the state's data_type for m",
        ),
        (
            initial("data_type: TYPE_FP32 dims: 4 zero_data: true"),
            "initial state of 'in' must fit the state's dims [3] for m",
        ),
        (
            initial("data_type: TYPE_FP32 dims: -1 zero_data: true"),
            "initial state of 'in' must have no variable dims for m",
        ),
        (
            initial("data_type: TYPE_FP32 dims: 3"),
            "initial state of 'in' must specify its data for m",
        ),
        (
            initial("data_type: TYPE_FP32 dims: 3 data_file: '../f'"),
            "must be a relative path without '..' for m",
        ),
    ] {
        let error = sequences(&text).expect_err(&text);
        assert!(error.contains(rule), "{text}: {error}");
    }
    let objective = "parameters { key: 'slo_latency_ms' value { string_value: '9' } }";
    let objective = config(4, &format!("sequence_batching {{ }} {objective}"));
    let error = objective.expect_err("refused").to_string();
    assert!(
        error.contains("`slo_latency_ms` of model `m` forms batches"),
        "{error}"
    );
}

#[test]
fn the_models_file_must_have_controls_and_states() {
    let text = control("s", "START", "int32_false_true: [ 0, 1 ]")
        + "state { input_name: 'in' output_name: 'out' data_type: TYPE_INT32 dims: 2 }";
    let spec = |name: &str, datatype, dims: &[i64]| TensorSpec {
        name: name.to_owned(),
        datatype,
        dims: Some(Dims::new(dims).expect("dims")),
    };
    let check = |start: TensorSpec, input: TensorSpec, output: TensorSpec| {
        let config = config(4, &format!("sequence_batching {{ {text} }}")).expect("valid");
        let signature = ModelSignature {
            inputs: vec![input, spec("x", DataType::Fp32, &[-1, 3]), start],
            outputs: vec![spec("y", DataType::Fp32, &[-1, 3]), output],
        };
        let checked = config.with_signature(&signature);
        checked.map(drop).map_err(|error| error.to_string())
    };
    let start = spec("s", DataType::Int32, &[-1, 1]);
    let input = spec("in", DataType::Int32, &[-1, 2]);
    let fits = spec("out", DataType::Int32, &[-1, 2]);
    assert_eq!(check(start.clone(), input.clone(), fits.clone()), Ok(()));
    for (start, input, output, expected) in [
        (
            spec("t", DataType::Int32, &[-1, 1]),
            input.clone(),
            fits.clone(),
            "unexpected inference input 's'",
        ),
        (
            spec("s", DataType::Fp32, &[-1, 1]),
            input.clone(),
            fits.clone(),
            "expects datatype TYPE_INT32 for input 's', model provides TYPE_FP32",
        ),
        (
            spec("s", DataType::Int32, &[-1]),
            input.clone(),
            fits.clone(),
            "tensor 's': the model expects 1 dimensions",
        ),
        (
            start.clone(),
            spec("in", DataType::Int32, &[-1, 3]),
            fits,
            "tensor 'in'",
        ),
        (
            start,
            input,
            spec("state", DataType::Int32, &[-1, 2]),
            "unexpected inference output 'out'",
        ),
    ] {
        let error = check(start, input, output).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
}
