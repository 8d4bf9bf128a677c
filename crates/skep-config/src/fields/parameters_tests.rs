//! The keys of the table: every value is checked, typed and documented.

use std::{collections::BTreeMap, path::Path, time::Duration};

use super::Parameters;
use crate::{
    ExecutionMode, ExecutionOptions, GraphOptimization, Isolation, MemoryPlanner, MockOptions,
    MockOutput, PARAMETERS, ParameterType, RunLimits, parameters_markdown,
};

fn read(backend: &str, pairs: &[(&str, &str)]) -> (Result<Parameters, String>, Vec<String>) {
    let map: BTreeMap<String, String> = pairs
        .iter()
        .map(|&(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    let mut notices = Vec::new();
    let read =
        Parameters::read("m", backend, &map, &mut notices).map_err(|error| error.to_string());
    (read, notices.iter().map(ToString::to_string).collect())
}

#[test]
fn the_table_is_consistent() {
    for (index, spec) in PARAMETERS.iter().enumerate() {
        assert!(
            PARAMETERS[..index]
                .iter()
                .all(|other| other.key != spec.key),
            "{} twice",
            spec.key
        );
        let says_what_absence_means = spec.meaning.contains("When absent");
        let empty = spec.default.is_empty()
            && (says_what_absence_means
                || matches!(
                    spec.value,
                    ParameterType::Text
                        | ParameterType::Name
                        | ParameterType::Devices
                        | ParameterType::Milliseconds
                        | ParameterType::Bytes
                ));
        assert!(empty || spec.value.accepts(spec.default), "{}", spec.key);
        assert!(
            !spec.meaning.is_empty() && !spec.meaning.contains('|'),
            "{}",
            spec.key
        );
    }
}

#[test]
fn without_keys_everything_has_its_default() {
    let (parameters, notices) = read("onnxruntime", &[]);
    let expected = ExecutionOptions {
        intra_op_threads: None,
        inter_op_threads: None,
        execution_mode: ExecutionMode::Sequential,
        graph_optimization: GraphOptimization::All,
        memory_planner: MemoryPlanner::Planned,
        allocator: None,
        memory_arena: false,
        memory_pattern: false,
        arena_shrinkage: false,
        device_allocator_for_initializers: false,
        spinning: false,
    };
    let parameters = parameters.expect("valid");
    assert_eq!(parameters.execution, expected);
    assert_eq!(parameters.mock, MockOptions::default());
    assert_eq!(parameters.max_queue_size, None);
    assert!(notices.is_empty());
}

#[test]
fn every_key_of_onnx_runtime_reaches_its_option() {
    let (parameters, notices) = read(
        "onnxruntime",
        &[
            ("intra_op_thread_count", " 4 "),
            ("inter_op_thread_count", "0"),
            ("execution_mode", "1"),
            ("enable_mem_arena", "0"),
            ("enable_mem_pattern", "False"),
            ("memory.enable_memory_arena_shrinkage", "cpu:0;gpu:0"),
            ("session.use_device_allocator_for_initializers", "1"),
            ("thread_spinning", "true"),
            ("max_queue_size", "1"),
            ("my_own_key", "anything"),
        ],
    );
    let expected = ExecutionOptions {
        intra_op_threads: Some(4),
        inter_op_threads: Some(0),
        execution_mode: ExecutionMode::Parallel,
        graph_optimization: GraphOptimization::All,
        memory_planner: MemoryPlanner::Runtime,
        allocator: None,
        memory_arena: false,
        memory_pattern: false,
        arena_shrinkage: true,
        device_allocator_for_initializers: true,
        spinning: true,
    };
    let parameters = parameters.expect("valid");
    assert_eq!(parameters.execution, expected);
    assert_eq!(parameters.max_queue_size, Some(1));
    let pattern = read("onnxruntime", &[("enable_mem_pattern", "0")])
        .0
        .expect("valid")
        .execution;
    assert_eq!(
        (pattern.memory_arena, pattern.memory_pattern),
        (true, false)
    );
    assert_eq!(
        notices,
        ["`parameters.memory.enable_memory_arena_shrinkage`: no effect on GPUs: GPUs are not used"]
    );
}

#[test]
fn every_key_of_the_mock_backend_reaches_its_option() {
    let (parameters, notices) = read(
        "mock",
        &[
            ("mock.latency_us", "1500"),
            ("mock.latency_us_per_item", "10"),
            ("mock.output", "ramp"),
            ("mock.fail_every", "3"),
            ("mock.panic_every", "5"),
            ("mock.load_latency_us", "700"),
            ("mock.load_error", "no such device"),
            ("mock.echo_parameters", "true"),
            ("mock.cpu_threads", "3"),
            ("mock.overlap_percent", "39"),
        ],
    );
    let expected = MockOptions {
        latency: Duration::from_micros(1500),
        latency_per_item: Duration::from_micros(10),
        output: MockOutput::Ramp,
        fail_every: 3,
        panic_every: 5,
        load_latency: Duration::from_micros(700),
        load_error: Some("no such device".to_owned()),
        echo_parameters: true,
        cpu_threads: 3,
        overlap_percent: 39,
    };
    assert_eq!(parameters.expect("valid").mock, expected);
    assert!(notices.is_empty());
    for (value, expected) in [("echo", MockOutput::Echo), ("zero", MockOutput::Zero)] {
        let (parameters, _) = read("mock", &[("mock.output", value)]);
        assert_eq!(parameters.expect("valid").mock.output, expected);
    }
}

#[test]
fn isolation_and_tenants_are_checked() {
    let (parameters, notices) = read("embedded", &[]);
    assert_eq!(parameters.expect("valid").isolation, Isolation::Thread);
    assert!(notices.is_empty());
    for backend in ["embedded", "onnxruntime", "mock"] {
        let (parameters, notices) = read(backend, &[("isolation", "process")]);
        assert_eq!(parameters.expect("valid").isolation, Isolation::Process);
        assert!(notices.is_empty());
    }
    let long = "a".repeat(64);
    for name in ["a", "Team-1_x.y", "..a", &long] {
        assert!(read("embedded", &[("tenant", name)]).0.is_ok(), "{name}");
    }
    for name in ["", "a/b", "\u{e9}", &format!("{long}a")] {
        let (refused, _) = read("embedded", &[("tenant", name)]);
        let error = refused.expect_err(name);
        assert!(error.ends_with("expected 1 to 64 letters, digits, `.`, `_` or `-`"));
    }
}

#[test]
fn run_limits_are_read() {
    let limits = |map: &[(&str, &str)]| read("mock", map).0.expect("valid").run_limits;
    let default = RunLimits {
        time: Duration::from_secs(600),
        memory_bytes: None,
    };
    assert_eq!((limits(&[]), RunLimits::default()), (default, default));
    let set = limits(&[("max_execution_ms", " 1500"), ("max_run_memory", "3 MiB")]);
    assert_eq!(set.time, Duration::from_millis(1500));
    assert_eq!(set.memory_bytes, Some(3 << 20));
    for (text, expected) in [("7", 7), ("2KiB", 2048), ("1GiB", 1 << 30)] {
        let read = limits(&[("max_run_memory", text)]).memory_bytes;
        assert_eq!(read, Some(expected), "{text}");
    }
    for bad in ["", "0", "-1", "1.5MiB", "3MB", "KiB", "99999999999GiB"] {
        assert!(read("mock", &[("max_run_memory", bad)]).0.is_err(), "{bad}");
    }
}

#[test]
fn bad_values_name_key_expected_and_got() {
    for (key, value, expected) in [
        (
            "max_queue_size",
            "0",
            "parameter `max_queue_size` of model `m` is `0`, expected an integer from 1 to 4294967296",
        ),
        (
            "intra_op_thread_count",
            "-1",
            "parameter `intra_op_thread_count` of model `m` is `-1`, expected an integer from 0 to 4096",
        ),
        (
            "execution_mode",
            "2",
            "parameter `execution_mode` of model `m` is `2`, expected one of `0`, `1`",
        ),
        (
            "enable_mem_arena",
            "yes",
            "parameter `enable_mem_arena` of model `m` is `yes`, expected `1`, `0`, `true` or `false`",
        ),
        (
            "mock.output",
            "one",
            "parameter `mock.output` of model `m` is `one`, expected one of `zero`, `echo`, `ramp`",
        ),
        (
            "mock.fail_every",
            "",
            "parameter `mock.fail_every` of model `m` is ``, expected an integer of at least 0",
        ),
        (
            "memory.enable_memory_arena_shrinkage",
            "tpu:0",
            "parameter `memory.enable_memory_arena_shrinkage` of model `m` is `tpu:0`, expected devices such as `cpu:0`, separated by `;`",
        ),
        (
            "TRITON_BATCH_STRATEGY_PATH",
            "/x",
            "`parameters.TRITON_BATCH_STRATEGY_PATH` of model `m` is not supported yet",
        ),
    ] {
        assert_eq!(
            read("onnxruntime", &[(key, value)]).0,
            Err(expected.to_owned()),
            "{key}"
        );
    }
}

#[test]
fn keys_without_effect_and_misspelt_keys_get_a_notice() {
    for (backend, key, expected) in [
        (
            "onnxruntime",
            "gpu_mem_limit",
            "`parameters.gpu_mem_limit`: no effect: GPUs are not used",
        ),
        (
            "onnxruntime",
            "max_queue_sise",
            "`parameters.max_queue_sise`: unknown key, kept without effect; did you mean `max_queue_size`?",
        ),
        (
            "embedded",
            "execution_mode",
            "`parameters.execution_mode`: no effect with backend `embedded`: honoured by `onnxruntime`",
        ),
        (
            "mock",
            "intra_op_thread_count",
            "`parameters.intra_op_thread_count`: no effect with backend `mock`: honoured by `onnxruntime`, `embedded`",
        ),
    ] {
        let (parameters, notices) = read(backend, &[(key, "1")]);
        assert!(parameters.is_ok());
        assert_eq!(notices, [expected], "{key}");
    }
}

#[test]
fn arenas_of_gpus_are_never_shrunk() {
    let notices = |devices| {
        let key = "memory.enable_memory_arena_shrinkage";
        let (parameters, notices) = read("onnxruntime", &[(key, devices)]);
        assert!(parameters.is_ok(), "{devices}");
        notices.len()
    };
    assert_eq!(["cpu:0", "gpu:0", "cpu:0;gpu:0"].map(notices), [0, 1, 1]);
    // No other value is a list of devices.
    let (parameters, notices) = read("onnxruntime", &[("tenant", "gpus")]);
    assert!(parameters.is_ok() && notices.is_empty(), "{notices:?}");
}

#[test]
fn the_documentation_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/model-parameters.md");
    let expected = parameters_markdown();
    if std::env::var_os("SKEP_UPDATE_DOCS").is_some_and(|value| value == "1") {
        std::fs::write(&path, &expected).expect("docs/model-parameters.md is writable");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == expected,
        "docs/model-parameters.md is stale: run SKEP_UPDATE_DOCS=1 cargo test -p skep-config"
    );
}

/// Also which of the keys about memory have no effect.
#[test]
fn the_memory_planner_is_chosen_by_all_its_keys() {
    use MemoryPlanner::{Malloc, Planned, Runtime};
    let chosen = |pairs: &[(&str, &str)]| {
        let (parameters, notices) = read("onnxruntime", pairs);
        let options = parameters.expect("valid").execution;
        let own = (options.memory_arena, options.memory_pattern);
        (options.memory_planner, own, notices)
    };
    let arena = ("enable_mem_arena", "1");
    let pattern = ("enable_mem_pattern", "1");
    let parallel = ("execution_mode", "1");
    let planner = |value| ("memory_planner", value);
    let silent: [(&[_], _, _); 8] = [
        (&[], Planned, (false, false)),
        (&[planner("planned")], Planned, (false, false)),
        (&[planner("malloc")], Malloc, (false, false)),
        (&[planner("malloc"), pattern], Malloc, (false, true)),
        (&[planner("runtime")], Runtime, (true, true)),
        (&[arena], Runtime, (true, true)),
        (&[("enable_mem_pattern", "0")], Runtime, (true, false)),
        (&[parallel, planner("runtime")], Runtime, (true, true)),
    ];
    for (pairs, expected, own) in silent {
        assert_eq!(chosen(pairs), (expected, own, vec![]), "{pairs:?}");
    }
    assert_eq!(
        chosen(&[planner("planned"), arena, pattern]).2,
        [
            "`parameters.enable_mem_arena`: no effect with `memory_planner` `planned`",
            "`parameters.enable_mem_pattern`: no effect with `memory_planner` `planned`"
        ]
    );
    let aside = ("session.use_device_allocator_for_initializers", "1");
    assert_eq!(
        chosen(&[aside]),
        (
            Planned,
            (false, false),
            vec![
                "`parameters.session.use_device_allocator_for_initializers`: no effect with `memory_planner` `planned`"
                    .to_owned()
            ]
        )
    );
    assert_eq!(chosen(&[aside, arena]).2, [""; 0]);
    let allocator = ("allocator", "bfc");
    assert_eq!(
        chosen(&[allocator]),
        (MemoryPlanner::Allocator, (false, false), vec![])
    );
    assert_eq!(
        chosen(&[allocator, planner("malloc"), arena]).2,
        [
            "`parameters.enable_mem_arena`: no effect with `allocator`",
            "`parameters.memory_planner`: no effect with `allocator`"
        ]
    );
    assert_eq!(
        chosen(&[allocator, parallel]).2,
        [
            "`parameters.allocator`: `bfc` has no effect with `execution_mode` 1, where allocations have no fixed order"
        ]
    );
    let (planner, own, notices) = chosen(&[planner("malloc"), parallel]);
    assert_eq!((planner, own), (Runtime, (true, true)));
    assert_eq!(
        notices,
        [
            "`parameters.memory_planner`: `malloc` has no effect with `execution_mode` 1, where allocations have no fixed order"
        ]
    );
}
