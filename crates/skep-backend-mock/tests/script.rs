//! The script, from configuration text to outputs.
#![allow(clippy::expect_used, reason = "tests state what they expect")]

use std::{
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use skep_backend::{
    Backend, BackendError, ErrorKind, Instance, LoadRequest, Model, ModelFile, OutputSlot,
    conformance::{Case, Example, Tolerance, config, fp32, tensor},
};
use skep_backend_mock::Mock;
use skep_tensor::{Tensor, encode_strings};
use skep_types::{DataType, DeviceId};

const TENSORS: &str = "max_batch_size: 8
    input { name: 'x' data_type: TYPE_FP32 dims: 2 }
    output { name: 'y' data_type: TYPE_FP32 dims: 2 }";

fn text(parameters: &[(&str, &str)]) -> String {
    let parameters = parameters.iter().map(|(key, value)| {
        format!("parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}")
    });
    parameters.fold(TENSORS.to_owned(), |text, p| text + "\n" + &p)
}

fn load(text: &str) -> Result<Arc<dyn Model>, BackendError> {
    Mock.load(&LoadRequest {
        file: &ModelFile::none(),
        config: &config("mock", text),
        threads: NonZeroUsize::MIN,
        weights: None,
        device: DeviceId::default(),
        cpus: None,
        request_memory: None,
    })
}

fn instance(text: &str) -> Box<dyn Instance> {
    load(text)
        .expect("loads")
        .instance(DeviceId::default())
        .expect("an instance")
}

fn run(instance: &mut dyn Instance, input: &Tensor) -> Result<Tensor, BackendError> {
    let mut slots = [OutputSlot::new(0)];
    instance.execute(&[input.view()], &mut slots)?;
    let [slot] = slots;
    Ok(slot.into_tensor().expect("filled"))
}

#[test]
fn every_kind_of_output_conforms() {
    let x = |n: usize| fp32(&[n, 2], &[1.5, 2.5, 3.5, 4.5][..2 * n]);
    for (output, expected) in [
        ("zero", [0.0, 0.0, 0.0, 0.0]),
        ("echo", [1.5, 2.5, 3.5, 4.5]),
        ("ramp", [0.0, 1.0, 2.0, 3.0]),
    ] {
        let example = |n: usize| Example {
            inputs: vec![x(n)],
            outputs: vec![fp32(&[n, 2], &expected[..2 * n])],
        };
        Case {
            backend: &Mock,
            file: &ModelFile::none(),
            config: &config("mock", &text(&[("mock.output", output)])),
            input_names: &["x"],
            output_names: &["y"],
            examples: &[example(1), example(2), example(0)],
            tolerance: Tolerance::EXACT,
        }
        .run();
    }
}

#[test]
fn variable_dims_and_strings_follow_the_input() {
    let strings = |output: &str| {
        format!(
            "input {{ name: 'x' data_type: TYPE_STRING dims: [ -1, 2 ] }}
             output {{ name: 'y' data_type: TYPE_STRING dims: [ -1, 2 ] }}
             parameters {{ key: 'mock.output' value {{ string_value: '{output}' }} }}"
        )
    };
    let bytes = |texts: [&str; 2]| encode_strings(texts.iter().map(|t| t.as_bytes()));
    let x = tensor(DataType::Bytes, &[1, 2], bytes(["a", "long"]));
    for (output, expected) in [
        ("zero", ["", ""]),
        ("echo", ["a", "long"]),
        ("ramp", ["0", "1"]),
    ] {
        let y = run(instance(&strings(output)).as_mut(), &x);
        assert_eq!(
            y,
            Ok(tensor(DataType::Bytes, &[1, 2], bytes(expected))),
            "{output}"
        );
    }
}

#[test]
fn an_echo_without_its_input_is_refused() {
    let mismatch = "input { name: 'x' data_type: TYPE_INT32 dims: 2 }
        output { name: 'y' data_type: TYPE_FP32 dims: 2 }
        parameters { key: 'mock.output' value { string_value: 'echo' } }";
    let error = load(mismatch).map(|_| ()).expect_err("mismatch");
    assert_eq!(
        error.to_string(),
        "`mock.output` is `echo`, but output `y` of datatype FP32 cannot echo an input of datatype INT32"
    );
}

#[test]
fn latency_is_fixed_plus_per_item_and_never_short() {
    let mut instance = instance(&text(&[
        ("mock.latency_us", "2000"),
        ("mock.latency_us_per_item", "1000"),
    ]));
    for (batch, least) in [(1, 3), (4, 6)] {
        let start = Instant::now();
        run(instance.as_mut(), &fp32(&[batch, 2], &vec![0.0; 2 * batch])).expect("runs");
        assert!(start.elapsed() >= Duration::from_millis(least));
    }
}

#[test]
fn failures_and_panics_count_executions_over_all_instances() {
    let model = load(&text(&[
        ("mock.fail_every", "2"),
        ("mock.panic_every", "3"),
    ]))
    .expect("loads");
    let mut instances = [
        Arc::clone(&model)
            .instance(DeviceId::default())
            .expect("an instance"),
        model.instance(DeviceId::default()).expect("an instance"),
    ];
    let x = fp32(&[1, 2], &[0.0; 2]);
    let mut seen = Vec::new();
    for number in 0..6 {
        let instance = instances[number % 2].as_mut();
        // The instance still works after a scripted panic.
        seen.push(match catch_unwind(AssertUnwindSafe(|| run(instance, &x))) {
            Ok(Ok(_)) => "answer".to_owned(),
            Ok(Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::Internal);
                error.to_string()
            }
            Err(panic) => panic.downcast_ref::<String>().expect("a text").clone(),
        });
    }
    assert_eq!(
        seen,
        [
            "answer",
            "execution 2 fails, as `mock.fail_every` says",
            "execution 3 panics, as `mock.panic_every` says",
            "execution 4 fails, as `mock.fail_every` says",
            "answer",
            "execution 6 panics, as `mock.panic_every` says",
        ]
    );
}

#[test]
fn a_scripted_load_error_is_passed_on() {
    let error = load(&text(&[("mock.load_error", "disk on fire")]))
        .map(|_| ())
        .expect_err("scripted");
    assert_eq!(error.to_string(), "disk on fire");
}

#[test]
fn a_load_takes_as_long_as_the_script_says() {
    let began = Instant::now();
    load(&text(&[("mock.load_latency_us", "20000")])).expect("loads");
    assert!(began.elapsed() >= Duration::from_millis(20));
}
