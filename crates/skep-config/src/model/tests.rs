//! Whole configurations: normal form, refusals, notices, and the page that documents the fields.

use std::{collections::BTreeSet, path::Path};

use proptest::prelude::*;
use prost_reflect::{Kind, MessageDescriptor};
use skep_proto::inference;
use skep_types::{ModelName, ModelVersion};

use super::ModelConfig;
use crate::{
    ConfigContext, ConfigErrorKind, ExecutionMode, GraphOptimization, HistogramFamily,
    InstanceGroup, InstanceKind, SchedulerConfig, VersionPolicy, parse_pbtxt,
};

const IO: &str = "input { name: 'x' data_type: TYPE_FP32 dims: 3 } output { name: 'y' data_type: TYPE_INT64 dims: -1 }";

fn config(text: &str) -> Result<ModelConfig, crate::ConfigError> {
    let name = ModelName::new("m").expect("name");
    let proto =
        parse_pbtxt(text.as_bytes(), "c").unwrap_or_else(|error| panic!("{error}\nin {text}"));
    ModelConfig::from_proto(proto, &ConfigContext::new(&name))
}

fn error(text: &str) -> String {
    config(text).expect_err(text).to_string()
}

fn notices(config: &ModelConfig) -> Vec<String> {
    config.notices().iter().map(ToString::to_string).collect()
}

#[test]
fn a_short_configuration_is_normalised_as_triton_does() {
    let config = config(&format!(
        "backend: 'onnxruntime' max_batch_size: 8 dynamic_batching {{}} {IO}"
    ))
    .expect("valid");
    let expected = parse_pbtxt(
        b"name: 'm' platform: 'onnxruntime_onnx' backend: 'onnxruntime' max_batch_size: 8
          version_policy { latest { num_versions: 1 } }
          input { name: 'x' data_type: TYPE_FP32 dims: 3 } output { name: 'y' data_type: TYPE_INT64 dims: -1 }
          optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } }
          dynamic_batching { preferred_batch_size: 8 }
          instance_group { name: 'm' kind: KIND_CPU count: 2 }
          default_model_filename: 'model.onnx'",
        "expected",
    );
    assert_eq!(Ok(config.proto()), expected.as_ref());
    assert!(config.notices().is_empty(), "{:?}", config.notices());
}

#[test]
fn the_typed_view_holds_what_was_written() {
    let config = config(&format!(
        "backend: 'mock' {IO} version_policy {{ specific {{ versions: 3 }} }} default_model_filename: 'a/b.onnx'
         instance_group [ {{ count: 3 }}, {{ name: 'g' kind: KIND_MODEL }} ]
         optimization {{ graph {{ level: -1 }} }}
         parameters {{ key: 'max_queue_size' value {{ string_value: '5' }} }}
         parameters {{ key: 'mine' value {{ string_value: 'kept' }} }}
         parameters {{ key: 'mock.fail_every' value {{ string_value: '2' }} }}
         model_warmup {{ name: 'w' batch_size: 1 count: 2
           inputs {{ key: 'x' value {{ data_type: TYPE_FP32 dims: 3 zero_data: true }} }} }}"
    ))
    .expect("valid");
    assert_eq!(
        (
            config.name().as_str(),
            config.backend(),
            config.model_filename()
        ),
        ("m", "mock", "a/b.onnx")
    );
    assert_eq!((config.max_batch_size(), config.is_batched()), (0, false));
    assert_eq!(
        config
            .input("x")
            .map(|t| t.full_dims().to_string())
            .as_deref(),
        Some("[3]")
    );
    assert_eq!(
        config
            .output("y")
            .map(|t| t.client_dims().to_string())
            .as_deref(),
        Some("[-1]")
    );
    assert_eq!(
        config.version_policy(),
        &VersionPolicy::Specific(BTreeSet::from([ModelVersion::new(3).expect("3")]))
    );
    let group = |name: &str, count, kind| InstanceGroup {
        name: name.to_owned(),
        count,
        kind,
        passive: false,
        priority: 1,
        resources: Vec::new(),
    };
    assert_eq!(
        config.instance_groups(),
        [
            group("m_0", 3, InstanceKind::Cpu),
            group("g", 1, InstanceKind::Model)
        ]
    );
    assert_eq!(
        config.execution().graph_optimization,
        GraphOptimization::Basic
    );
    assert_eq!(config.execution().execution_mode, ExecutionMode::Sequential);
    assert_eq!((config.max_queue_size(), config.mock().fail_every), (5, 2));
    assert_eq!(config.parameters()["mine"], "kept");
    assert_eq!(config.warmups()[0].count, 2);
    assert_eq!(config.scheduler(), &SchedulerConfig::Default);
    assert!(config.notices().is_empty(), "{:?}", config.notices());
}

#[test]
fn the_typed_view_of_a_batched_model_has_its_tenant_and_objective() {
    let text = |more: &str| {
        format!(
            "backend: 'mock' max_batch_size: 8 {IO} model_transaction_policy {{ decoupled: false }}
             parameters {{ key: 'tenant' value {{ string_value: ' team-a ' }} }}
             parameters {{ key: 'slo_latency_ms' value {{ string_value: '30' }} }} {more}"
        )
    };
    let first = config(&text("")).expect("valid");
    assert_eq!((first.max_batch_size(), first.is_batched()), (8, true));
    assert_eq!(first.tenant(), Some("team-a"));
    assert!(!first.is_decoupled());
    let objective = std::time::Duration::from_millis(30);
    assert_eq!(first.latency_objective(), Some(objective));

    let plain = config(&format!("backend: 'mock' {IO}")).expect("valid");
    assert_eq!((plain.tenant(), plain.latency_objective()), (None, None));
    let decoupled = format!("backend: 'mock' {IO} model_transaction_policy {{ decoupled: true }}");
    assert!(config(&decoupled).expect("valid").is_decoupled());

    let more = "instance_group { count: 3 } version_policy { all {} }";
    let second = config(&text(more)).expect("valid");
    let joined = first.with_instances_of(&second);
    assert_eq!(joined, second);
    assert_ne!(joined, first);
}

#[test]
fn the_isolation_is_known_before_a_configuration_is_complete() {
    let isolation = |text: &str| {
        let proto = parse_pbtxt(text.as_bytes(), "c").expect("parses");
        crate::configured_isolation(&proto)
    };
    let process = "parameters { key: 'isolation' value { string_value: ' process ' } }";
    assert_eq!(isolation(process), crate::Isolation::Process);
    assert_eq!(isolation(""), crate::Isolation::Thread);
}

#[test]
fn a_model_may_have_no_inputs_unless_it_batches() {
    let outputs = "backend: 'mock' output { name: 'y' data_type: TYPE_INT64 dims: 1 }";
    assert!(config(outputs).is_ok());
    let batched = error(&format!("{outputs} max_batch_size: 1"));
    assert!(
        batched.contains("has no input, expected at least one"),
        "{batched}"
    );
}

#[test]
fn too_many_buckets_are_counted_and_not_shown() {
    let text = |count: usize| {
        let buckets = vec!["1"; count].join(", ");
        let family = HistogramFamily::ALL[0].metric_name();
        error(&format!(
            "backend: 'mock' {IO} model_metrics {{ metric_control {{ metric_identifier {{ family: '{family}' }}
             histogram_options {{ buckets: [ {buckets} ] }} }} }}"
        ))
    };
    assert!(text(100).ends_with("1.0]"), "{}", text(100));
    assert!(text(101).ends_with("1.0] and 1 more"), "{}", text(101));
}

#[test]
fn server_defaults_give_way_to_the_model() {
    let name = ModelName::new("m").expect("name");
    let context = ConfigContext {
        model: &name,
        intra_op_threads: Some(2),
        inter_op_threads: Some(3),
        gpu_as_cpu: false,
        has_devices: false,
        limits_rate: false,
    };
    let text = format!(
        "backend: 'mock' {IO} parameters {{ key: 'intra_op_thread_count' value {{ string_value: '7' }} }}"
    );
    let proto = parse_pbtxt(text.as_bytes(), "c").expect("parses");
    let config = ModelConfig::from_proto(proto, &context).expect("valid");
    assert_eq!(
        (
            config.execution().intra_op_threads,
            config.execution().inter_op_threads
        ),
        (Some(7), Some(3))
    );
}

#[test]
fn graph_levels_are_typed() {
    for (level, expected) in [
        (0, GraphOptimization::All),
        (-1, GraphOptimization::Basic),
        (1, GraphOptimization::Extended),
        (2, GraphOptimization::Disable),
        (7, GraphOptimization::All),
    ] {
        let config = config(&format!(
            "backend: 'mock' {IO} optimization {{ graph {{ level: {level} }} }}"
        ))
        .expect("valid");
        assert_eq!(config.execution().graph_optimization, expected);
        assert_eq!(config.notices().len(), usize::from(level == 7));
    }
}

#[test]
fn invalid_settings_are_refused() {
    for (text, expected) in [
        (
            "name: 'other'",
            "unexpected directory name 'm' for model 'other', directory name must equal model name",
        ),
        ("", "must specify 'platform' or 'backend' for 'm'"),
        (
            "platform: 'tensorrt_plan'",
            "unexpected platform type 'tensorrt_plan' for m\nSkep serves ONNX models, and `tensorrt_plan` stands for a TensorRT plan, which runs on the GPU it was built for: use the ONNX file that it was built from; then put it in the version's directory as `model.onnx`, and write `backend: \"onnxruntime\"`",
        ),
        (
            "platform: 'onnxruntime_onnx' backend: 'mock'",
            "unexpected 'platform' and 'backend' pair, got:onnxruntime_onnx, mock",
        ),
        (
            "platform: 'x' backend: 'onnxruntime'",
            "unexpected 'platform' and 'backend' pair, got:x, onnxruntime",
        ),
        (
            "backend: 'onnxruntimes'",
            "backend `onnxruntimes` of model `m` is unknown, expected one of `onnxruntime`, `embedded`, `mock`\ndid you mean `onnxruntime`?",
        ),
        (
            "backend: 'mock' max_batch_size: -1",
            "'max_batch_size' must be non-negative value for m",
        ),
        (
            "backend: 'mock' default_model_filename: '../../etc/passwd'",
            "default_model_filename '../../etc/passwd' of model 'm' must be a relative path without '..'",
        ),
        (
            "backend: 'mock'",
            "model `m` has no output, expected at least one\nwrite `output [ { name: .. data_type: .. dims: [..] } ]`, or leave auto-completion on",
        ),
        (
            "backend: 'mock' max_batch_size: 1 output { name: 'y' data_type: 1 dims: 1 }",
            "model `m` has no input, expected at least one because max_batch_size is above 0\nwrite `input [ { name: .. data_type: .. dims: [..] } ]`, or leave auto-completion on",
        ),
        (
            "input { is_shape_tensor: true }",
            "shape tensors are only supported for TensorRT platform for m",
        ),
        (
            "output { is_non_linear_format_io: true }",
            "Non-linear IO format is only supported for the TensorRT platform for m",
        ),
        (
            "platform: 'p' instance_group { name: 'g' profile: '1' }",
            "instance group g of model m and platform p specifies profile field which is only supported for TensorRT models",
        ),
    ] {
        let got = config(text).expect_err(text);
        assert_eq!(got.to_string(), expected, "{text}");
        assert_eq!(got.kind(), ConfigErrorKind::Invalid);
        assert_eq!(got.model(), Some("m"));
    }
}

/// Unsupported settings, and the field that the refusal names.
const UNSUPPORTED: &[(&str, &str)] = &[
    (
        "sequence_batching { iterative_sequence: true }",
        "sequence_batching.iterative_sequence",
    ),
    (
        "optimization { execution_accelerators { cpu_execution_accelerator { name: 'openvino' } } }",
        "optimization.execution_accelerators.cpu_execution_accelerator",
    ),
    (
        "instance_group { host_policy: 'p' }",
        "instance_group[0].host_policy",
    ),
    (
        "model_operations { op_library_filename: 'x.so' }",
        "model_operations.op_library_filename",
    ),
    (
        "model_repository_agents { agents { name: 'checksum' } }",
        "model_repository_agents",
    ),
];

#[test]
fn unsupported_settings_are_refused() {
    for (text, field) in UNSUPPORTED {
        let got = config(text).expect_err(text);
        let got_text = got.to_string();
        let (first, hint) = got_text.split_once('\n').expect("a hint");
        let expected = format!("`{field}` of model `m` is not supported yet");
        assert_eq!(first, expected, "{text}");
        assert!(!hint.is_empty(), "{text}");
        assert_eq!(got.kind(), ConfigErrorKind::Unsupported);
    }
}

#[test]
fn settings_without_effect_get_a_notice() {
    let text = "backend: 'mock' runtime: 'libx.so' cc_model_filenames { key: '7.5' value: 'x.plan' }
        input { name: 'x' data_type: TYPE_FP32 dims: [3,2,2] format: FORMAT_NCHW }
        output { name: 'y' data_type: TYPE_INT64 dims: -1 label_filename: 'labels.txt' }
        instance_group { secondary_devices { device_id: 1 } }
        optimization { priority: PRIORITY_MAX cuda { graphs: true } input_pinned_memory { enable: false }
          output_pinned_memory { enable: true } gather_kernel_buffer_threshold: 1 eager_batching: true }";
    let config = config(text).expect("valid");
    let expected = [
        "`runtime`: no effect: backends are built in, and Skep loads no library by name",
        "`input[0].format`: informative only: data is passed on unchanged",
        "`optimization.priority`: no effect: it is for TensorRT models",
        "`optimization.cuda`: no effect: GPUs are not used",
        "`optimization.input_pinned_memory`: no effect: GPUs are not used",
        "`optimization.gather_kernel_buffer_threshold`: no effect: GPUs are not used",
        "`optimization.eager_batching`: no effect: it is for TensorRT models",
        "`instance_group[0].secondary_devices`: no effect: it is for TensorRT models",
        "`cc_model_filenames`: no effect: GPUs are not used",
    ];
    assert_eq!(notices(&config), expected);
    assert_eq!(
        config.outputs()[0].label_filename.as_deref(),
        Some("labels.txt")
    );
}

#[test]
fn gpu_as_cpu_joins_the_notices_about_gpus() {
    let text = format!(
        "backend: 'onnxruntime' {IO} instance_group [ {{ kind: KIND_GPU gpus: 0 }} ]
        optimization {{ priority: PRIORITY_MAX cuda {{ graphs: true }} input_pinned_memory {{ enable: false }}
          execution_accelerators {{ gpu_execution_accelerator {{ name: 'tensorrt' }}
            cpu_execution_accelerator {{ name: 'openvino' }} }} }}
        parameters {{ key: 'gpu_mem_limit' value {{ string_value: '1' }} }}"
    );
    let refused = config(&text).expect_err("without the flag").to_string();
    assert!(refused.contains("`--gpu-as-cpu`"), "{refused}");
    let model = ModelName::new("m").expect("name");
    let context = ConfigContext {
        gpu_as_cpu: true,
        ..ConfigContext::new(&model)
    };
    let proto = parse_pbtxt(text.as_bytes(), "c").expect("parses");
    let config = ModelConfig::from_proto(proto, &context).expect("valid");
    let expected = [
        "`optimization.priority`: no effect: it is for TensorRT models",
        "`instance_group[0].kind`: served on the CPU (`--gpu-as-cpu`); no effect of `optimization.cuda`, \
         `optimization.execution_accelerators.gpu_execution_accelerator`, \
         `optimization.execution_accelerators.cpu_execution_accelerator`, `optimization.input_pinned_memory`, \
         `instance_group[0].kind`, `instance_group[0].gpus`, `parameters.gpu_mem_limit`",
    ];
    assert_eq!(notices(&config), expected);
    // A worker process gets the message without the flag.
    let of_worker = ModelConfig::from_proto(config.proto().clone(), &ConfigContext::new(&model));
    assert_eq!(
        of_worker.expect("valid without the flag").proto(),
        config.proto()
    );
}

#[test]
fn metric_tags_become_labels() {
    let tags = |key: &str| {
        config(&format!(
            "backend: 'mock' {IO} metric_tags {{ key: '{key}' value: 'v' }}"
        ))
    };
    let named = tags("a_1").expect("valid");
    assert_eq!(named.metric_tags().collect::<Vec<_>>(), [("a_1", "v")]);
    for key in ["", "_a", "a-b", "ä"] {
        let error = tags(key).expect_err(key).to_string();
        assert!(error.contains("cannot be a label"), "{error}");
    }
}

#[test]
fn histogram_buckets_are_checked() {
    let metrics = |family: &str, buckets: &str| {
        config(&format!(
            "backend: 'mock' {IO} model_metrics {{ metric_control {{ metric_identifier {{ family: '{family}' }}
             histogram_options {{ buckets: [{buckets}] }} }} }}"
        ))
    };
    let queue = HistogramFamily::Queue;
    let set = metrics(queue.metric_name(), "0.5, 2").expect("valid");
    assert_eq!(set.histogram_bounds_ms(queue), Some(&[0.5, 2.0][..]));
    assert_eq!(set.histogram_bounds_ms(HistogramFamily::Request), None);
    assert!(set.notices().is_empty());
    for buckets in ["", "2, 1", "1, 1", "0, 1", "-1, 1", "1, inf", "nan"] {
        let error = metrics(queue.metric_name(), buckets)
            .expect_err(buckets)
            .to_string();
        assert!(
            error.contains("must be 1 to 100 ascending numbers"),
            "{error}"
        );
    }
    let many: Vec<String> = (1..100_000).map(|bound| bound.to_string()).collect();
    let error = metrics(queue.metric_name(), &many.join(","))
        .expect_err("too many")
        .to_string();
    assert!(error.ends_with("100.0] and 99899 more"), "{error}");
    for (family, text) in [
        (
            "nv_inference_first_response_histogram_ms",
            "it is for decoupled models",
        ),
        ("nosuch", "unknown histogram `nosuch`"),
    ] {
        let notices = notices(&metrics(family, "1, 2").expect("valid"));
        assert!(
            notices.len() == 1 && notices[0].contains(text),
            "{notices:?}"
        );
    }
}

#[test]
fn settings_written_at_their_defaults_are_accepted() {
    let text = format!(
        "backend: 'mock' max_batch_size: 2 {IO} response_cache {{}} model_operations {{}} model_metrics {{}}
         model_transaction_policy {{ decoupled: false }} model_repository_agents {{}}
         instance_group {{ rate_limiter {{ priority: 2 }} }} optimization {{ execution_accelerators {{}} }}
         dynamic_batching {{ preferred_batch_size: 2 default_queue_policy {{}} }}"
    );
    let config = config(&text).expect("valid");
    assert!(config.notices().is_empty(), "{:?}", config.notices());
}

#[test]
fn unknown_enum_numbers_are_refused() {
    let broken: [fn(&mut inference::ModelConfig); 3] = [
        |config| config.input[0].data_type = 99,
        |config| config.output[0].data_type = -1,
        |config| config.instance_group[0].kind = 99,
    ];
    for (index, break_it) in broken.into_iter().enumerate() {
        let name = ModelName::new("m").expect("name");
        let mut proto = parse_pbtxt(
            format!("backend: 'mock' {IO} instance_group {{}}").as_bytes(),
            "c",
        )
        .expect("parses");
        break_it(&mut proto);
        assert!(
            ModelConfig::from_proto(proto, &ConfigContext::new(&name)).is_err(),
            "{index}"
        );
    }
}

#[test]
fn error_texts_end_without_a_full_stop() {
    for (text, _) in UNSUPPORTED {
        assert!(!error(text).ends_with('.'));
    }
}

/// Paths of all fields of a configuration, without list and map levels: `input.dims`.
fn field_paths(message: &MessageDescriptor, prefix: &str, paths: &mut Vec<String>) {
    for field in message.fields() {
        let path = format!("{prefix}{}", field.name());
        let nested = match field.kind() {
            Kind::Message(entry) if entry.is_map_entry() => {
                entry.get_field_by_name("value").map(|v| v.kind())
            }
            kind => Some(kind),
        };
        paths.push(path.clone());
        if let Some(Kind::Message(inner)) = nested {
            field_paths(&inner, &format!("{path}."), paths);
        }
    }
}

#[test]
fn every_field_is_documented() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/model-configuration.md");
    let page = std::fs::read_to_string(page).expect("docs/model-configuration.md");
    let rows: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|r| r.0))
        .collect();
    let message = skep_proto::descriptors()
        .get_message_by_name("inference.ModelConfig")
        .expect("message");
    let mut paths = Vec::new();
    field_paths(&message, "", &mut paths);
    // A row `x.*` covers everything in `x`.
    let covered = |path: &str| {
        rows.iter().any(|row| {
            *row == path
                || row
                    .strip_suffix('*')
                    .is_some_and(|prefix| path.starts_with(prefix))
        })
    };
    let missing: Vec<&String> = paths.iter().filter(|path| !covered(path)).collect();
    assert!(
        missing.is_empty(),
        "not in docs/model-configuration.md: {missing:?}"
    );
    let stale: Vec<&&str> = rows
        .iter()
        .filter(|row| {
            !paths
                .iter()
                .any(|path| path.starts_with(row.trim_end_matches('*')))
        })
        .collect();
    assert!(
        stale.is_empty(),
        "in docs/model-configuration.md, but no field: {stale:?}"
    );
}

proptest! {
    /// The normal form of every accepted configuration is accepted, and is its own normal form.
    #[test]
    fn normal_forms_are_stable(
        batch in -1i32..6, dims in proptest::collection::vec(-2i64..4, 0..3), reshape in proptest::collection::vec(-1i64..4, 0..3),
        reshaped: bool, batching: bool, count in -1i32..4, kind in 0i32..4, backend in 0usize..4, warm in 0u32..3,
    ) {
        let name = ModelName::new("m").expect("name");
        let backend = ["onnxruntime", "embedded", "mock", ""][backend];
        let mut proto = parse_pbtxt(format!("backend: '{backend}' {IO} instance_group {{}} model_warmup {{
            inputs {{ key: 'x' value {{ data_type: TYPE_FP32 dims: 3 random_data: true }} }} }}").as_bytes(), "c").expect("parses");
        proto.max_batch_size = batch;
        proto.output[0].dims = dims;
        proto.output[0].reshape = reshaped.then_some(inference::ModelTensorReshape { shape: reshape });
        proto.instance_group[0].count = count;
        proto.instance_group[0].kind = kind;
        proto.model_warmup[0].batch_size = warm;
        if batching {
            proto.scheduling_choice = Some(inference::model_config::SchedulingChoice::DynamicBatching(Default::default()));
        }
        if let Ok(first) = ModelConfig::from_proto(proto, &ConfigContext::new(&name)) {
            let again = ModelConfig::from_proto(first.proto().clone(), &ConfigContext::new(&name));
            prop_assert_eq!(Ok(first), again);
        }
    }
}
