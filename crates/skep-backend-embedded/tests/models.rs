//! The backend on hand-built models.
#![allow(clippy::expect_used, reason = "tests state what they expect")]

use std::{fs, num::NonZeroUsize, path::Path, sync::Arc};

use skep_backend::{
    Backend, BackendError, ErrorKind, Instance, LoadRequest, Model, ModelFile, OutputSlot,
    conformance::{
        Attribute, Case, Example, Graph, Tolerance, config, fp32, initializer, int64,
        sized_by_value, tensor,
    },
};
use skep_backend_embedded::Embedded;
use skep_proto::onnx::{StringStringEntryProto, TensorProto, tensor_proto::DataLocation};
use skep_tensor::Tensor;
use skep_types::{DataType, DeviceId};

fn load_at(path: &Path) -> Result<Arc<dyn Model>, BackendError> {
    Embedded.load(&LoadRequest {
        file: &ModelFile::open(path)?,
        config: &config("embedded", ""),
        threads: NonZeroUsize::MIN,
        weights: None,
        device: DeviceId::default(),
        cpus: None,
        request_memory: None,
    })
}

fn load_bytes(bytes: &[u8]) -> Result<Arc<dyn Model>, BackendError> {
    let directory = tempfile::tempdir().expect("a directory");
    // No `.onnx` ending: a configuration may name any file.
    let path = directory.path().join("weights.bin");
    fs::write(&path, bytes).expect("a file");
    load_at(&path)
}

fn load(graph: Graph) -> Result<Arc<dyn Model>, BackendError> {
    load_bytes(&graph.encode())
}

fn instance(graph: Graph) -> Box<dyn Instance> {
    load(graph)
        .expect("loads")
        .instance(DeviceId::default())
        .expect("an instance")
}

fn run(instance: &mut dyn Instance, inputs: &[Tensor]) -> Result<Tensor, BackendError> {
    let views: Vec<_> = inputs.iter().map(Tensor::view).collect();
    let mut slots = [OutputSlot::new(0)];
    instance.execute(&views, &mut slots)?;
    let [slot] = slots;
    Ok(slot.into_tensor().expect("filled"))
}

fn conform(graph: Graph, inputs: &[&str], outputs: &[&str], examples: &[Example]) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("model.onnx");
    fs::write(&path, graph.encode()).expect("a file");
    Case {
        backend: &Embedded,
        file: &ModelFile::open(&path).expect("a file"),
        config: &config(
            "embedded",
            "parameters { key: 'intra_op_thread_count' value { string_value: '2' } }",
        ),
        input_names: inputs,
        output_names: outputs,
        examples,
        tolerance: Tolerance::EXACT,
    }
    .run();
}

/// `y = f(x)` over `[n, 2]`.
fn unary(operator: &str, datatype: DataType) -> Graph {
    Graph::new()
        .input("x", datatype, &["n", "2"])
        .output("y", datatype, &["n", "2"])
        .node(operator, &["x"], &["y"], &[])
}

#[test]
fn add_and_subtract_conforms() {
    let graph = Graph::new()
        .input("a", DataType::Int64, &["n", "2"])
        .input("b", DataType::Int64, &["n", "2"])
        .output("sum", DataType::Int64, &["n", "2"])
        .output("less", DataType::Bool, &["n", "2"])
        .node("Add", &["a", "b"], &["sum"], &[])
        .node("Less", &["a", "b"], &["less"], &[]);
    let example = |n: usize| {
        let values = |f: fn(i64) -> i64| -> Tensor {
            let all: Vec<i64> = (0i64..).take(2 * n).map(f).collect();
            int64(&[n, 2], &all)
        };
        Example {
            inputs: vec![values(|i| i), values(|i| 7 - i)],
            outputs: vec![
                values(|_| 7),
                tensor(DataType::Bool, &[n, 2], (0..2 * n).map(|i| u8::from(i < 4))),
            ],
        }
    };
    let examples = [example(1), example(4), example(0), example(1)];
    conform(graph, &["a", "b"], &["sum", "less"], &examples);
}

#[test]
fn every_served_datatype_passes_through() {
    for &datatype in Embedded.capabilities().datatypes {
        let size = datatype.element_size().expect("fixed");
        let bytes = |n: usize| (0..n * size).map(move |i| u8::from(i % size == 0));
        let examples: Vec<Example> = [1, 3, 0]
            .into_iter()
            .map(|n| {
                let x = tensor(datatype, &[n, 2], bytes(2 * n));
                Example {
                    inputs: vec![x.clone()],
                    outputs: vec![x],
                }
            })
            .collect();
        conform(unary("Identity", datatype), &["x"], &["y"], &examples);
    }
}

#[test]
fn other_datatypes_are_refused_wherever_they_occur() {
    let fp16 = tensor(DataType::Fp16, &[2], [0; 4]);
    let fp64 = tensor(DataType::Fp64, &[2], [0; 16]);
    let cast = [("to", Attribute::Int(10))];
    let constant = [("value", Attribute::Tensor(fp64.clone()))];
    let cases = [
        (
            "an input",
            unary("Neg", DataType::Fp16),
            "tensor `x` has datatype FLOAT16",
        ),
        (
            "an initializer",
            unary("Neg", DataType::Fp32).initializer("w", &fp16),
            "tensor `w` has datatype FLOAT16",
        ),
        (
            "a cast",
            unary("Neg", DataType::Fp32)
                .node("Cast", &["x"], &["half"], &cast)
                .output("z", DataType::Fp32, &["n", "2"])
                .node("Cast", &["half"], &["z"], &[("to", Attribute::Int(1))]),
            "attribute `to` of Cast node `Cast_1` has datatype FLOAT16",
        ),
        (
            "a constant",
            unary("Neg", DataType::Fp32).node("Constant", &[], &["c"], &constant),
            "attribute `value` of Constant node `Constant_1` has datatype DOUBLE",
        ),
    ];
    for (what, graph, expected) in cases {
        let error = load(graph).map(|_| ()).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{what}");
        let text = error.to_string();
        assert!(text.contains(expected), "{what}: {text}");
        assert!(text.contains("pip install onnxruntime"), "{what}: {text}");
    }
}

/// `y = x + c` for an INT64 constant.
fn plus(constant: i64) -> Graph {
    unary("Identity", DataType::Int64)
        .output("z", DataType::Int64, &["n", "2"])
        .initializer("c", &int64(&[1], &[constant]))
        .node("Add", &["x", "c"], &["z"], &[])
}

#[test]
fn constants_beyond_32_bits_are_refused_unless_they_only_bound_slices() {
    assert!(load(plus(i64::from(i32::MAX))).is_ok());
    for beyond in [1 << 40, i64::MAX, i64::MIN] {
        let error = load(plus(beyond)).map(|_| ()).expect_err("beyond");
        assert!(
            error
                .to_string()
                .contains(&format!("tensor `c` holds {beyond}")),
            "{error}"
        );
    }
    let slice = |unsqueezed: bool| {
        let graph = Graph::new()
            .input("x", DataType::Fp32, &["n"])
            .output("y", DataType::Fp32, &["k"])
            .initializer("start", &int64(&[1], &[1]));
        let graph = if unsqueezed {
            let end = [("value", Attribute::Tensor(int64(&[], &[i64::MAX])))];
            graph
                .initializer("axis", &int64(&[1], &[0]))
                .node("Constant", &[], &["end0"], &end)
                .node("Unsqueeze", &["end0", "axis"], &["end"], &[])
        } else {
            graph.initializer("end", &int64(&[1], &[i64::MAX]))
        };
        graph.node("Slice", &["x", "start", "end"], &["y"], &[])
    };
    for unsqueezed in [false, true] {
        let y = run(
            instance(slice(unsqueezed)).as_mut(),
            &[fp32(&[3], &[1.0, 2.0, 3.0])],
        );
        assert_eq!(y, Ok(fp32(&[2], &[2.0, 3.0])));
    }
    // The same constant, if it is also used elsewhere, is a number.
    let both = slice(false)
        .output("z", DataType::Int64, &["1"])
        .node("Neg", &["end"], &["z"], &[]);
    assert!(load(both).is_err());
}

#[test]
fn inputs_beyond_32_bits_are_refused_and_the_instance_lives_on() {
    let mut instance = instance(plus(1).clone());
    let error = run(instance.as_mut(), &[int64(&[1, 2], &[5, -1 << 31])]).map(|_| ());
    assert_eq!(error, Ok(()));
    let error = run(instance.as_mut(), &[int64(&[1, 2], &[5, 1 << 31])]).expect_err("beyond");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(
        error
            .to_string()
            .contains("input `x` holds 2147483648 at index 1"),
        "{error}"
    );
    let y = run(instance.as_mut(), &[int64(&[1, 2], &[5, 6])]);
    assert_eq!(y, Ok(int64(&[1, 2], &[5, 6])));
}

#[test]
fn unknown_and_incorrectly_computed_operators_are_refused_by_name() {
    for (operator, expected) in [
        ("Sign", "operator `Sign` of node `Sign_0` is not served"),
        ("Hardmax", "Hardmax operator not supported"),
        ("NoSuchOperator", "NoSuchOperator operator not supported"),
    ] {
        let error = load(unary(operator, DataType::Fp32))
            .map(|_| ())
            .expect_err(operator);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{operator}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_cast_to_bool_gives_zero_and_one_or_an_error() {
    let through = |datatype| {
        Graph::new()
            .input("x", datatype, &["n"])
            .output("y", DataType::Int64, &["n"])
            .node("Cast", &["x"], &["b"], &[("to", Attribute::Int(9))])
            .node("Cast", &["b"], &["y"], &[("to", Attribute::Int(7))])
    };
    let y = run(
        instance(through(DataType::Int64)).as_mut(),
        &[int64(&[3], &[-3, 0, 2])],
    );
    assert_eq!(y, Ok(int64(&[3], &[1, 0, 1])));
    let y = run(
        instance(through(DataType::Fp32)).as_mut(),
        &[fp32(&[2], &[0.2, 0.0])],
    );
    assert!(y.is_err(), "{y:?}");
}

/// Large enough to be cut out of the message.
const LARGE: usize = 512;

fn large() -> Tensor {
    let values: Vec<f32> = (0u16..).take(LARGE).map(f32::from).collect();
    fp32(&[LARGE], &values)
}

fn plus_large(weights: TensorProto) -> Graph {
    let size = LARGE.to_string();
    let mut graph = Graph::new()
        .input("x", DataType::Fp32, &["n", "1"])
        .output("y", DataType::Fp32, &["n", &size])
        .node("Add", &["x", "w"], &["y"], &[]);
    graph.proto_mut().initializer.push(weights);
    graph
}

#[test]
fn weights_are_correct_at_every_alignment_in_the_file() {
    for padding in 0..4 {
        let mut graph = plus_large(initializer("w", &large()));
        let before = initializer("p", &tensor(DataType::Uint8, &[padding], vec![0; padding]));
        graph.proto_mut().initializer.insert(0, before);
        let y = run(instance(graph).as_mut(), &[fp32(&[1, 1], &[0.0])]);
        assert_eq!(
            y.map(|y| y.data().clone()),
            Ok(large().data().clone()),
            "{padding}"
        );
    }
}

fn external(location: &str, offset: Option<&str>, length: Option<&str>) -> TensorProto {
    let mut weights = initializer("w", &large());
    weights.raw_data = None;
    weights.set_data_location(DataLocation::External);
    let entries = [
        ("location", Some(location)),
        ("offset", offset),
        ("length", length),
    ];
    for (key, value) in entries {
        weights
            .external_data
            .extend(value.map(|value| StringStringEntryProto {
                key: Some(key.to_owned()),
                value: Some(value.to_owned()),
            }));
    }
    weights
}

#[test]
fn external_data_is_used_whatever_the_file_is_called() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("sub")).expect("a directory");
    for (location, offset) in [
        ("weights.bin", None),
        ("sub/w", Some("3")),
        ("w.data", Some("0")),
    ] {
        let skip = offset.map_or(0, |o| o.parse().expect("a number"));
        let mut bytes = vec![0; skip];
        bytes.extend_from_slice(large().data());
        fs::write(directory.path().join(location), bytes).expect("a file");
        let path = directory.path().join("model.onnx");
        fs::write(&path, plus_large(external(location, offset, None)).encode()).expect("a file");
        let mut instance = load_at(&path)
            .expect("loads")
            .instance(DeviceId::default())
            .expect("an instance");
        let y = run(instance.as_mut(), &[fp32(&[1, 1], &[0.0])]);
        assert_eq!(
            y.map(|y| y.data().clone()),
            Ok(large().data().clone()),
            "{location}"
        );
    }
}

#[test]
fn external_data_that_is_missing_short_or_elsewhere_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("short"), [0; 8]).expect("a file");
    let path = directory.path().join("model.onnx");
    for (weights, expected) in [
        (
            external("nowhere", None, None),
            "external data of tensor `w`: cannot read",
        ),
        (
            external("short", None, Some("2048")),
            "2048 bytes at offset 0 of `short`, which has 8 bytes",
        ),
        (
            external("../short", None, None),
            "expected a file in the model's directory",
        ),
        (
            external("/etc/passwd", None, None),
            "expected a file in the model's directory",
        ),
        (
            external("short", Some("x"), None),
            "`offset` is `x`, expected a number",
        ),
        (external("short", None, None), "length"),
    ] {
        fs::write(&path, plus_large(weights).encode()).expect("a file");
        let error = load_at(&path).map(|_| ()).expect_err(expected);
        assert_eq!(error.kind(), ErrorKind::InvalidModel, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn broken_models_are_errors() {
    let whole = unary("Neg", DataType::Fp32).encode();
    for bytes in [&b"garbage!"[..], &[], &whole[..whole.len() - 9]] {
        let error = load_bytes(bytes).map(|_| ()).expect_err("broken");
        assert_eq!(error.kind(), ErrorKind::InvalidModel, "{error}");
    }
    let dangling = unary("Neg", DataType::Fp32).output("z", DataType::Fp32, &["n"]);
    let model = load(dangling).and_then(|m| m.instance(DeviceId::default()));
    let ran = model.and_then(|mut i| {
        i.execute(
            &[fp32(&[1, 2], &[1.0; 2]).view()],
            &mut [OutputSlot::new(1)],
        )
    });
    assert!(ran.is_err(), "an output that no node computes");
}

#[test]
fn a_run_over_its_memory_bound_is_refused_before_it_begins() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("model.onnx");
    let graph = Graph::new()
        .input("x", DataType::Fp32, &["n", "1"])
        .output("y", DataType::Fp32, &["n", "n"])
        .node("Transpose", &["x"], &["t"], &[])
        .node("MatMul", &["x", "t"], &["y"], &[]);
    fs::write(&path, graph.encode()).expect("a file");
    let limit = "parameters { key: 'max_run_memory' value { string_value: '1MiB' } }";
    let model = Embedded.load(&LoadRequest {
        file: &ModelFile::open(&path).expect("a file"),
        config: &config("embedded", limit),
        threads: NonZeroUsize::MIN,
        weights: None,
        device: DeviceId::default(),
        cpus: None,
        request_memory: None,
    });
    let mut instance = model
        .expect("loads")
        .instance(DeviceId::default())
        .expect("an instance");
    let ones = |n: usize| fp32(&[n, 1], &vec![1.0; n]);
    for _ in 0..2 {
        let got = run(&mut *instance, &[ones(500)]).expect("a million bytes");
        assert_eq!(got.shape().dims(), [500, 500]);
        let error = run(&mut *instance, &[ones(513)]).expect_err("over a MiB");
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
        // 4 TiB: no machine has them.
        let error = run(&mut *instance, &[ones(1 << 20)]).expect_err("too much");
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    }
}

#[test]
fn a_model_whose_sizes_only_a_run_determines_needs_a_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let needs = |graph: Graph| {
        let path = directory.path().join("model.onnx");
        fs::write(&path, graph.encode()).expect("a file");
        Embedded.needs_process(&LoadRequest {
            file: &ModelFile::open(&path).expect("a file"),
            config: &config("embedded", ""),
            threads: NonZeroUsize::MIN,
            weights: None,
            device: DeviceId::default(),
            cpus: None,
            request_memory: None,
        })
    };
    assert!(needs(sized_by_value(true)).is_some());
    let plain = Graph::new()
        .input("x", DataType::Fp32, &["n"])
        .output("y", DataType::Fp32, &["n"])
        .node("Relu", &["x"], &["y"], &[]);
    assert_eq!(needs(plain), None);
}
