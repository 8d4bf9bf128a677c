//! The backend on hand-built models. Without the library every test says that it is skipped, and passes.
#![allow(clippy::expect_used, reason = "tests state what they expect")]

mod common;

use std::{fs, sync::Arc, thread};

use common::{library, load, save};

use skep_backend::{
    ErrorKind, Instance, ModelFile, OutputSlot,
    conformance::{
        Attribute, Case, Example, Graph, Tolerance, config, fp32, initializer, int64, tensor,
    },
};
use skep_tensor::{Tensor, encode_strings};
use skep_types::{DataType, DeviceId, Shape};

fn conform(graph: Graph, inputs: &[&str], outputs: &[&str], examples: &[Example], pbtxt: &str) {
    let Some(backend) = library() else { return };
    let saved = save(graph);
    Case {
        backend: &backend,
        file: &ModelFile::open(&saved.path).expect("a file"),
        config: &config("onnxruntime", pbtxt),
        input_names: inputs,
        output_names: outputs,
        examples,
        tolerance: Tolerance::EXACT,
    }
    .run();
}

fn one(input: Tensor, output: Tensor) -> Example {
    Example {
        inputs: vec![input],
        outputs: vec![output],
    }
}

/// `sum = a + b`, `difference = a - b` over `[n, 2]`.
fn add_sub() -> Graph {
    Graph::new()
        .input("a", DataType::Fp32, &["n", "2"])
        .input("b", DataType::Fp32, &["n", "2"])
        .output("sum", DataType::Fp32, &["n", "2"])
        .output("difference", DataType::Fp32, &["n", "2"])
        .node("Add", &["a", "b"], &["sum"], &[])
        .node("Sub", &["a", "b"], &["difference"], &[])
}

fn add_sub_examples() -> Vec<Example> {
    [1usize, 3, 0, 8, 1]
        .iter()
        .map(|&n| {
            let count = 2 * n;
            let values = |f: fn(f32) -> f32| -> Tensor {
                let all: Vec<f32> = (0u16..).take(count).map(|i| f(f32::from(i))).collect();
                fp32(&[n, 2], &all)
            };
            Example {
                inputs: vec![values(|x| x), values(|x| 2.0 * x + 1.0)],
                outputs: vec![values(|x| 3.0 * x + 1.0), values(|x| -x - 1.0)],
            }
        })
        .collect()
}

#[test]
fn add_and_subtract_conforms() {
    let names = (["a", "b"], ["sum", "difference"]);
    conform(add_sub(), &names.0, &names.1, &add_sub_examples(), "");
}

#[test]
fn every_execution_option_gives_the_same() {
    for (key, value) in [
        ("intra_op_thread_count", "2"),
        ("execution_mode", "1"),
        ("memory_planner", "malloc"),
        ("memory_planner", "runtime"),
        ("enable_mem_arena", "0"),
        ("enable_mem_pattern", "0"),
        ("memory.enable_memory_arena_shrinkage", "cpu:0"),
        ("session.use_device_allocator_for_initializers", "1"),
        ("thread_spinning", "1"),
    ] {
        let pbtxt = format!("parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}");
        let names = (["a", "b"], ["sum", "difference"]);
        conform(add_sub(), &names.0, &names.1, &add_sub_examples(), &pbtxt);
    }
}

#[test]
fn every_datatype_passes_through() {
    for datatype in DataType::ALL {
        let bytes = |elements: usize| match datatype.element_size() {
            // Bit patterns of ordinary numbers, and 1 for BOOL.
            Some(size) => (0..elements * size)
                .map(|i| u8::from(i % size == 0))
                .collect(),
            None => encode_strings(
                (0..elements).map(|i| [b"".as_slice(), b"a\0b", "\u{e9}".as_bytes()][i % 3]),
            ),
        };
        let graph = Graph::new()
            .input("x", datatype, &["n", "?"])
            .output("y", datatype, &["n", "?"])
            .node("Identity", &["x"], &["y"], &[]);
        let shapes: [&[usize]; 3] = [&[2, 3], &[0, 3], &[1, 0]];
        let examples: Vec<Example> = shapes
            .iter()
            .map(|dims| {
                let x = tensor(datatype, dims, bytes(dims.iter().product()));
                one(x.clone(), x)
            })
            .collect();
        conform(graph, &["x"], &["y"], &examples, "");
        let scalar = Graph::new()
            .input("x", datatype, &[])
            .output("y", datatype, &[])
            .node("Identity", &["x"], &["y"], &[]);
        let x = tensor(datatype, &[], bytes(1));
        conform(scalar, &["x"], &["y"], &[one(x.clone(), x)], "");
    }
}

#[test]
fn outputs_of_unknown_shape_are_shared_from_the_librarys_memory() {
    // NonZero's second dimension depends on the values.
    let graph = Graph::new()
        .input("x", DataType::Fp32, &["n"])
        .output("y", DataType::Int64, &["1", "k"])
        .node("NonZero", &["x"], &["y"], &[]);
    let examples = [
        one(fp32(&[4], &[0.0, 1.0, 0.0, 2.0]), int64(&[1, 2], &[1, 3])),
        one(fp32(&[1], &[0.0]), int64(&[1, 0], &[])),
    ];
    conform(graph, &["x"], &["y"], &examples, "");
}

#[test]
fn an_output_outlives_run_instance_and_model() {
    let Some(backend) = library() else { return };
    let saved = save(add_sub());
    let model = load(&backend, &saved.path, "").expect("loads");
    let mut instance = Arc::clone(&model)
        .instance(DeviceId::default())
        .expect("an instance");
    let example = &add_sub_examples()[1];
    let inputs: Vec<_> = example.inputs.iter().map(Tensor::view).collect();
    let mut slots = [OutputSlot::new(1)];
    instance.execute(&inputs, &mut slots).expect("runs");
    drop((instance, model));
    let [slot] = slots;
    assert_eq!(slot.into_tensor().as_ref(), Some(&example.outputs[1]));
}

#[test]
fn an_output_that_is_an_input_does_not_borrow_the_requests_memory() {
    let Some(backend) = library() else { return };
    let graph = add_sub().output("a", DataType::Fp32, &["n", "2"]);
    let saved = save(graph);
    let model = load(&backend, &saved.path, "").expect("loads");
    let shape = Shape::new(&[1, 2]).expect("a shape");
    assert_eq!(model.output_shapes(&[&shape, &shape]), None);
    let mut instance = model.instance(DeviceId::default()).expect("an instance");
    let (a, b) = (fp32(&[1, 2], &[1.0, 2.0]), fp32(&[1, 2], &[0.0; 2]));
    let mut slots = [OutputSlot::new(2)];
    instance
        .execute(&[a.view(), b.view()], &mut slots)
        .expect("runs");
    let [slot] = slots;
    let got = slot.into_tensor().expect("filled");
    assert_eq!(got, a);
    assert_ne!(got.data().as_ptr(), a.data().as_ptr());
}

#[test]
fn an_initializer_as_output_is_served() {
    let w = fp32(&[2], &[5.0, 6.0]);
    let graph = Graph::new()
        .input("x", DataType::Fp32, &["n"])
        .output("y", DataType::Fp32, &["n"])
        .output("w", DataType::Fp32, &["2"])
        .initializer("w", &w)
        .node("Neg", &["x"], &["y"], &[]);
    let example = Example {
        inputs: vec![fp32(&[1], &[3.0])],
        outputs: vec![fp32(&[1], &[-3.0]), w],
    };
    conform(graph, &["x"], &["y", "w"], &[example], "");
}

#[test]
fn wrong_declared_shapes_cost_one_run_and_no_response() {
    let Some(backend) = library() else { return };
    // Declared [n, 2], actually [2, n]: ONNX Runtime cannot know before it runs, as the permutation's target is data.
    let graph = Graph::new()
        .input("x", DataType::Fp32, &["n", "k"])
        .input("to", DataType::Int64, &["2"])
        .output("y", DataType::Fp32, &["n", "k"])
        .node("Reshape", &["x", "to"], &["y"], &[]);
    let saved = save(graph);
    let model = load(&backend, &saved.path, "").expect("loads");
    let (x, to) = (fp32(&[3, 2], &[1.0; 6]), int64(&[2], &[2, 3]));
    let declared = model
        .output_shapes(&[x.shape(), to.shape()])
        .expect("declared");
    let mut instance = Arc::clone(&model)
        .instance(DeviceId::default())
        .expect("an instance");
    let slot = OutputSlot::prepared(0, DataType::Fp32, declared[0].clone());
    let mut slots = [slot.expect("there is memory")];
    instance
        .execute(&[x.view(), to.view()], &mut slots)
        .expect("runs");
    let [slot] = slots;
    let got = slot.into_tensor().expect("filled");
    assert_eq!(got.shape().dims(), [2, 3]);
    assert_eq!(
        model.output_shapes(&[x.shape(), to.shape()]),
        None,
        "remembered"
    );
}

#[test]
fn errors_of_requests_differ_from_errors_of_models() {
    let Some(backend) = library() else { return };
    let graph = Graph::new()
        .input("index", DataType::Int64, &["n"])
        .output("y", DataType::Fp32, &["n"])
        .initializer("table", &fp32(&[2], &[5.0, 6.0]))
        .node("Gather", &["table", "index"], &["y"], &[]);
    let saved = save(graph);
    let model = load(&backend, &saved.path, "").expect("loads");
    let mut instance = model.instance(DeviceId::default()).expect("an instance");
    let error = instance
        .execute(&[int64(&[1], &[7]).view()], &mut [OutputSlot::new(0)])
        .expect_err("out of range");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("Gather"), "{error}");
}

#[test]
fn bytes_other_than_zero_and_one_are_not_booleans() {
    let Some(backend) = library() else { return };
    let graph = Graph::new()
        .input("x", DataType::Bool, &["n"])
        .output("y", DataType::Int64, &["1", "k"])
        .node("NonZero", &["x"], &["y"], &[]);
    let saved = save(graph);
    let mut instance = load(&backend, &saved.path, "")
        .expect("loads")
        .instance(DeviceId::default())
        .expect("an instance");
    let x = tensor(DataType::Bool, &[3], [1, 0, 2]);
    let error = instance
        .execute(&[x.view()], &mut [OutputSlot::new(0)])
        .expect_err("2");
    assert_eq!(
        error.to_string(),
        "input `x` holds 2 at index 2, expected 0 or 1 for a BOOL"
    );
}

#[test]
fn external_data_is_found_beside_the_model() {
    let Some(backend) = library() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let weights = fp32(&[2], &[10.0, 20.0]);
    fs::write(directory.path().join("weights.bin"), weights.data()).expect("a file");
    let mut graph = Graph::new()
        .input("x", DataType::Fp32, &["n", "2"])
        .output("y", DataType::Fp32, &["n", "2"])
        .node("Add", &["x", "w"], &["y"], &[]);
    let mut w = initializer("w", &weights);
    w.raw_data = None;
    w.set_data_location(skep_proto::onnx::tensor_proto::DataLocation::External);
    for (key, value) in [
        ("location", "weights.bin"),
        ("offset", "0"),
        ("length", "8"),
    ] {
        w.external_data
            .push(skep_proto::onnx::StringStringEntryProto {
                key: Some(key.to_owned()),
                value: Some(value.to_owned()),
            });
    }
    graph.proto_mut().initializer.push(w);
    let path = directory.path().join("model.onnx");
    fs::write(&path, graph.encode()).expect("a file");
    let mut instance = load(&backend, &path, "")
        .expect("loads")
        .instance(DeviceId::default())
        .expect("an instance");
    let mut slots = [OutputSlot::new(0)];
    instance
        .execute(&[fp32(&[1, 2], &[1.0, 2.0]).view()], &mut slots)
        .expect("runs");
    let [slot] = slots;
    assert_eq!(slot.into_tensor(), Some(fp32(&[1, 2], &[11.0, 22.0])));
}

#[test]
fn broken_models_are_errors_that_name_the_fault() {
    let Some(backend) = library() else { return };
    let unknown = Graph::new()
        .input("x", DataType::Fp32, &["n"])
        .output("y", DataType::Fp32, &["n"])
        .node("NoSuchOperator", &["x"], &["y"], &[]);
    let invalid = Graph::new()
        .input("x", DataType::Fp32, &["n"])
        .output("y", DataType::Fp32, &["n"])
        .node(
            "Add",
            &["x", "missing"],
            &["y"],
            &[("axis", Attribute::Int(1))],
        );
    let whole = add_sub().encode();
    let cases: [(&str, Vec<u8>, &str); 5] = [
        ("an unknown operator", unknown.encode(), "NoSuchOperator"),
        ("a missing tensor", invalid.encode(), "missing"),
        (
            "a truncated file",
            whole[..whole.len() - 20].to_vec(),
            "not an ONNX file",
        ),
        ("garbage", b"garbage!".to_vec(), "not an ONNX file"),
        ("nothing", Vec::new(), "it is empty"),
    ];
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("model.onnx");
    for (what, bytes, expected) in cases {
        fs::write(&path, bytes).expect("a file");
        let error = load(&backend, &path, "").map(|_| ()).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::InvalidModel, "{what}");
        assert!(error.to_string().contains(expected), "{what}: {error}");
    }
}

#[test]
fn a_run_that_is_interrupted_ends_early_and_the_next_one_does_not() {
    let Some(backend) = library() else { return };
    let mut graph =
        Graph::new()
            .input("x0", DataType::Fp32, &["n"])
            .output("x3000", DataType::Fp32, &["n"]);
    for step in 0..3000 {
        let (from, to) = (format!("x{step}"), format!("x{}", step + 1));
        graph = graph.node("Sigmoid", &[&from], &[&to], &[]);
    }
    let saved = save(graph);
    let model = load(&backend, &saved.path, "").expect("loads");
    let mut instance = model.instance(DeviceId::default()).expect("an instance");
    let interrupt = instance.interrupt().expect("it can be interrupted");
    let large = fp32(&[1 << 20], &vec![0.5; 1 << 20]);
    let run = |instance: &mut dyn Instance, x: &Tensor| {
        instance.execute(&[x.view()], &mut [OutputSlot::new(0)])
    };
    // An interrupt before a run begins does not apply to it.
    interrupt.interrupt();
    interrupt.begin();
    let ended = thread::scope(|scope| {
        let running = scope.spawn(|| run(&mut *instance, &large));
        // Even right after its start.
        interrupt.interrupt();
        running.join().expect("no panic")
    });
    let error = ended.expect_err("interrupted");
    assert!(error.to_string().contains("terminate"), "{error}");
    interrupt.begin();
    run(&mut *instance, &fp32(&[2], &[0.0; 2])).expect("runs");
}

#[test]
fn the_cpu_time_of_all_threads_of_a_run_is_measured() {
    let Some(backend) = library() else { return };
    let graph = Graph::new()
        .input("x", DataType::Fp32, &["n", "n"])
        .output("y", DataType::Fp32, &["n", "n"])
        .node("MatMul", &["x", "x"], &["y"], &[]);
    let saved = save(graph);
    let of_threads = |threads: u32| {
        let count = format!(
            "parameters {{ key: 'intra_op_thread_count' value {{ string_value: '{threads}' }} }}"
        );
        let model = load(&backend, &saved.path, &count).expect("loads");
        model.instance(DeviceId::default()).expect("an instance")
    };
    let x = fp32(&[512, 512], &vec![0.5; 512 * 512]);
    let mut instance = of_threads(2);
    assert_eq!(instance.cpu_time(), None, "nothing has run");
    for _ in 0..4 {
        let mut slots = [OutputSlot::new(0)];
        instance.execute(&[x.view()], &mut slots).expect("runs");
        let took = instance.cpu_time().expect("measured");
        assert!(!took.is_zero());
    }
    let mut alone = of_threads(1);
    alone
        .execute(&[x.view()], &mut [OutputSlot::new(0)])
        .expect("runs");
    assert_eq!(alone.cpu_time(), None, "one thread is one core");
}
