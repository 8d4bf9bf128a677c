//! The memory of runs' intermediate tensors. Without the library every test says that it is skipped, and passes.
#![allow(clippy::expect_used, reason = "tests state what they expect")]

mod common;

use std::{sync::Arc, thread};

use common::{library, load, save};
use skep_backend::{
    ErrorKind, Instance, Model, ModelFile, OutputSlot, RunMemory,
    conformance::{self, Graph, fp32, int64},
};
use skep_layout::allocator::AllocatorSpec;
use skep_tensor::Tensor;
use skep_types::{DataType, DeviceId, Shape};

/// Widths of the tensors from the input to the output.
const WIDTHS: [usize; 5] = [32, 48, 64, 80, 32];

/// `y = x a b c d`: three tensors between input and output, of which two are in use at once.
fn products() -> Graph {
    let mut graph = Graph::new()
        .input("x0", DataType::Fp32, &["n", "32"])
        .output("x4", DataType::Fp32, &["n", "32"]);
    for (step, pair) in WIDTHS.windows(2).enumerate() {
        let weights: Vec<f32> = (0..pair[0] * pair[1])
            .map(|i| (i % 7) as f32 / 100.0 - 0.03)
            .collect();
        let (from, w, to) = (
            format!("x{step}"),
            format!("w{step}"),
            format!("x{}", step + 1),
        );
        graph = graph
            .initializer(&w, &fp32(&[pair[0], pair[1]], &weights))
            .node("MatMul", &[&from, &w], &[&to], &[]);
    }
    graph
}

fn rows(count: usize) -> Tensor {
    let values: Vec<f32> = (0..count * WIDTHS[0]).map(|i| (i % 13) as f32).collect();
    fp32(&[count, WIDTHS[0]], &values)
}

fn run(instance: &mut dyn Instance, inputs: &[&Tensor]) -> Tensor {
    let views: Vec<_> = inputs.iter().map(|input| input.view()).collect();
    let mut slots = [OutputSlot::new(0)];
    instance.execute(&views, &mut slots).expect("runs");
    let [slot] = slots;
    slot.into_tensor().expect("filled")
}

fn instance(model: &Arc<dyn Model>) -> Box<dyn Instance> {
    Arc::clone(model)
        .instance(DeviceId::default())
        .expect("an instance")
}

fn planner(value: &str) -> String {
    format!("parameters {{ key: 'memory_planner' value {{ string_value: '{value}' }} }}")
}

#[test]
fn runs_of_a_shape_are_recorded_once_and_then_planned() {
    let Some(backend) = library() else { return };
    let saved = save(products());
    let load = |pbtxt: &str| load(&backend, &saved.path, pbtxt).expect("loads");
    let (planned, malloc, runtime) = (
        load(""),
        load(&planner("malloc")),
        load(&planner("runtime")),
    );
    let (mut a, mut b) = (instance(&planned), instance(&planned));
    let (mut malloc, mut runtime) = (instance(&malloc), instance(&runtime));
    for round in 0..4 {
        for count in [1, 9, 4] {
            let x = rows(count);
            let expected = run(&mut *runtime, &[&x]);
            assert_eq!(run(&mut *malloc, &[&x]), expected);
            assert_eq!(run(&mut *a, &[&x]), expected, "round {round}, {count} rows");
            assert_eq!(run(&mut *b, &[&x]), expected, "round {round}, {count} rows");
        }
    }
    assert_eq!(runtime.memory(), None);
    // Four rows: the tensors of 64 and 80 columns are in use together, the one of 48 shares their memory. What the run
    // gives outlives it, so it is not planned; it is in use beside the last of them.
    let column = 4 * 4;
    let memory = a.memory().expect("seen");
    let expected = RunMemory {
        planned_bytes: (64 + 80) * column,
        used_bytes: (64 + 80) * column,
        saved_bytes: 48 * column,
        planned_runs: 9,
        recorded_runs: 3,
        ..RunMemory::default()
    };
    assert_eq!(memory, expected);
    let other = b.memory().expect("seen");
    assert_eq!(
        (other.planned_runs, other.recorded_runs),
        (12, 0),
        "plans are shared"
    );
    let malloc = malloc.memory().expect("seen");
    let expected = RunMemory {
        used_bytes: memory.used_bytes,
        unplanned_runs: 12,
        ..RunMemory::default()
    };
    assert_eq!(malloc, expected);
}

/// The configuration of an instance's own allocator.
fn allocator(text: &str) -> String {
    format!("parameters {{ key: 'allocator' value {{ string_value: '{text}' }} }}")
}

#[test]
fn instances_may_have_allocators_of_their_own() {
    let Some(backend) = library() else { return };
    let saved = save(products());
    let load = |pbtxt: &str| load(&backend, &saved.path, pbtxt);
    let runtime = load(&planner("runtime")).expect("loads");
    let mut runtime = instance(&runtime);
    let more = [
        "pytorch_caching:expandable_segments=true",
        " bfc:limit=1GiB ",
    ];
    let all = AllocatorSpec::all()
        .into_iter()
        .map(|spec| spec.to_string());
    for text in all.chain(more.map(str::to_owned)) {
        let model = load(&allocator(&text)).expect("loads");
        let (mut one, mut other) = (instance(&model), instance(&model));
        for count in [1, 9, 4, 4, 9, 1] {
            let x = rows(count);
            let expected = run(&mut *runtime, &[&x]);
            assert_eq!(run(&mut *one, &[&x]), expected, "{text}");
            assert_eq!(run(&mut *other, &[&x]), expected, "{text}");
        }
        let memory = one.memory().expect("seen");
        assert_eq!(
            (memory.unplanned_runs, memory.planned_bytes),
            (6, 0),
            "{text}"
        );
        assert!(memory.reserved_bytes >= 4 * (64 + 80), "{text}: {memory:?}");
    }
    for (text, words) in [
        (
            "bcf",
            "`parameters.allocator`: there is no allocator `bcf`, expected one of `bfc`, ",
        ),
        (
            "bfc:limit=much",
            "`parameters.allocator`: option `limit` of allocator `bfc` is `much`, expected ",
        ),
    ] {
        let error = load(&allocator(text)).err().expect("no such allocator");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_run_gets_no_more_than_its_allocator_gives() {
    let Some(backend) = library() else { return };
    let saved = save(conformance::sized_by_value(true));
    let model = load(&backend, &saved.path, &allocator("bfc:limit=1MiB")).expect("loads");
    let mut instance = instance(&model);
    let (fits, more) = (int64(&[1], &[50_000]), int64(&[1], &[300_000]));
    for _ in 0..3 {
        let error = instance
            .execute(&[more.view()], &mut [OutputSlot::new(0)])
            .expect_err("too much");
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
        let expected = "and its allocator gives no more (`allocator`)";
        assert!(error.to_string().contains(expected), "{error}");
        run(&mut *instance, &[&fits]);
    }
}

/// With every planner, a run that needs more memory than there is ends with an error, and the process continues.
#[test]
fn runs_that_need_too_much_are_errors() {
    let Some(backend) = library() else { return };
    for computed in [false, true] {
        let saved = save(conformance::sized_by_value(computed));
        let planners = ["planned", "malloc", "runtime"].map(planner);
        let allocators = ["bfc", "skep"].map(allocator);
        for pbtxt in planners.iter().chain(&allocators) {
            let model = load(&backend, &saved.path, pbtxt).expect("loads");
            conformance::too_much_memory(&model);
        }
    }
}

#[test]
fn a_run_takes_no_more_than_its_model_may() {
    let Some(backend) = library() else { return };
    let saved = save(conformance::sized_by_value(true));
    let limit = "parameters { key: 'max_run_memory' value { string_value: '1MiB' } }";
    for name in ["planned", "malloc"] {
        let pbtxt = format!("{} {limit}", planner(name));
        let model = load(&backend, &saved.path, &pbtxt).expect("loads");
        let mut instance = instance(&model);
        // The intermediate tensor and the output, of 512 KiB each.
        let fits = int64(&[1], &[(512 << 10) / 4]);
        let more = int64(&[1], &[(512 << 10) / 4 + 1]);
        for _ in 0..3 {
            let error = instance
                .execute(&[more.view()], &mut [OutputSlot::new(0)])
                .expect_err("too much");
            assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
            let expected = "may take 1048576 (`max_run_memory`)";
            assert!(error.to_string().contains(expected), "{error}");
            run(&mut *instance, &[&fits]);
        }
    }
}

#[test]
fn runs_whose_sizes_depend_on_data_fall_back_and_are_counted() {
    let Some(backend) = library() else { return };
    // Positions that are not zero, as numbers: as many as the data has.
    let graph = Graph::new()
        .input("x", DataType::Fp32, &["n"])
        .output("y", DataType::Int64, &["k", "1"])
        .node("NonZero", &["x"], &["at"], &[])
        .node("Transpose", &["at"], &["list"], &[])
        .node("Add", &["list", "list"], &["twice"], &[])
        .node("Mul", &["twice", "list"], &["y"], &[]);
    let saved = save(graph);
    let model = load(&backend, &saved.path, "").expect("loads");
    let mut instance = instance(&model);
    let mut runs = 0;
    for round in 0..10_usize {
        for count in [300, 1, 0, 17, 300] {
            let values: Vec<f32> = (0..300).map(|i| f32::from(u8::from(i < count))).collect();
            let squares: Vec<i64> = (0..count).map(|i| 2 * i * i).collect();
            let got = run(&mut *instance, &[&fp32(&[300], &values)]);
            let expected = int64(&[squares.len(), 1], &squares);
            assert_eq!(got, expected, "round {round}, {count} values");
            runs += 1;
        }
    }
    let memory = instance.memory().expect("seen");
    let all =
        memory.planned_runs + memory.recorded_runs + memory.deviated_runs + memory.unplanned_runs;
    assert_eq!(all, runs);
    assert!(memory.deviated_runs > 10, "{memory:?}");
    assert!((1..=4).contains(&memory.recorded_runs), "{memory:?}");
}

#[test]
fn a_failed_run_gives_no_plan() {
    let Some(backend) = library() else { return };
    let graph = Graph::new()
        .input("index", DataType::Int64, &["n"])
        .output("y", DataType::Fp32, &["n"])
        .initializer("table", &fp32(&[2], &[5.0, 6.0]))
        .node("Add", &["index", "index"], &["twice"], &[])
        .node("Sub", &["twice", "index"], &["again"], &[])
        .node("Gather", &["table", "again"], &["y"], &[]);
    let saved = save(graph);
    let model = load(&backend, &saved.path, "").expect("loads");
    let mut instance = instance(&model);
    let (good, bad) = (int64(&[2], &[1, 0]), int64(&[2], &[0, 7]));
    for _ in 0..3 {
        instance
            .execute(&[bad.view()], &mut [OutputSlot::new(0)])
            .expect_err("out of range");
        assert_eq!(run(&mut *instance, &[&good]), fp32(&[2], &[6.0, 5.0]));
    }
    let memory = instance.memory().expect("seen");
    assert!(memory.planned_bytes > 0, "{memory:?}");
    assert_eq!(
        (
            memory.recorded_runs,
            memory.planned_runs,
            memory.deviated_runs
        ),
        (1, 2, 0),
        "those that succeeded"
    );
}

#[test]
fn runs_on_several_threads_do_not_mix() {
    let Some(backend) = library() else { return };
    let saved = save(products());
    let model = load(&backend, &saved.path, "").expect("loads");
    let counts = 1..=8;
    let mut first = instance(&model);
    let expected: Vec<Tensor> = counts
        .clone()
        .map(|n| run(&mut *first, &[&rows(n)]))
        .collect();
    thread::scope(|threads| {
        for shift in 0..4 {
            let (model, expected, counts) = (&model, &expected, counts.clone());
            threads.spawn(move || {
                let mut instance = instance(model);
                for step in 0..200 {
                    let count = 1 + (step + shift * 2) % counts.clone().count();
                    assert_eq!(run(&mut *instance, &[&rows(count)]), expected[count - 1]);
                }
                let memory = instance.memory().expect("seen");
                assert_eq!((memory.planned_runs, memory.deviated_runs), (200, 0));
            });
        }
    });
}

#[test]
fn a_run_is_recorded_without_serving() {
    let Some(backend) = library() else { return };
    let saved = save(products());
    let record = |shape: &[usize]| {
        let file = ModelFile::open(&saved.path).expect("a file");
        backend.record(&file, &[Shape::new(shape).expect("a shape")])
    };
    let recording = record(&[4, 32]).expect("a recording");
    let mut sizes: Vec<u64> = recording.blocks().iter().map(|block| block.size).collect();
    sizes.sort_unstable();
    // The output is not among them: it is written into memory that was prepared for it.
    assert_eq!(sizes, [48, 64, 80].map(|columns| 4 * 4 * columns));
    assert_eq!(recording.peak(), (64 + 80) * 4 * 4);
    let error = record(&[4, 31]).expect_err("another shape");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
}
