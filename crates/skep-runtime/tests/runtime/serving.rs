//! Requests to a loaded version: answered, refused, cancelled, counted.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use skep_runtime::{ErrorKind, InferRequest, LoadOverrides, LoadedVersion};
use skep_tensor::Tensor;
use skep_types::{DataType, Shape};
use tempfile::TempDir;

use crate::echo::{SLOW, config, latest, parameter, request, runtime, write_model};

#[tokio::test]
async fn a_request_is_answered_and_counted() {
    let root = TempDir::new().expect("directory");
    write_model(root.path(), "echo", &config(""), &["1", "3", "02", "x"]);
    let runtime = runtime(root.path(), false);
    assert!(!runtime.is_ready(), "not before the start");
    let report = runtime.start(None);
    assert!(
        report.iter().all(|(_, outcome)| outcome.is_ok()),
        "{report:?}"
    );
    assert!(runtime.is_ready());
    let echo = latest("echo", &runtime);
    assert_eq!(echo.version().get(), 3, "the latest");
    let answer = echo.infer(request(3, 7)).await.expect("answered");
    assert_eq!(answer.outputs[0].tensor, request(3, 7).inputs[0].1);
    let figures = echo.statistics();
    assert_eq!(
        (
            figures.inference_count,
            figures.execution_count,
            figures.success.count
        ),
        (3, 1, 1)
    );
    assert_eq!(figures.batches.keys().copied().collect::<Vec<_>>(), [3]);
}

#[tokio::test]
async fn invalid_requests_are_refused_with_tritons_texts_and_not_counted() {
    let root = TempDir::new().expect("directory");
    write_model(root.path(), "echo", &config(""), &["1"]);
    let runtime = runtime(root.path(), false);
    runtime.start(None);
    let echo = latest("echo", &runtime);
    let mut unknown = request(1, 0);
    unknown.inputs[0].0 = "z".to_owned();
    let mut wrong_type = request(1, 0);
    let shape = Shape::new(&[1, 2]).expect("shape");
    wrong_type.inputs[0].1 =
        Tensor::new(DataType::Fp32, shape, Bytes::from(vec![0; 8])).expect("tensor");
    let mut unknown_output = request(1, 0);
    unknown_output.outputs.push("z".to_owned());
    let mut narrow = request(1, 0);
    let shape = Shape::new(&[1, 3]).expect("shape");
    narrow.inputs[0].1 =
        Tensor::new(DataType::Int32, shape, Bytes::from(vec![0; 12])).expect("tensor");
    for (request, expected) in [
        (
            request(5, 0),
            "inference request batch-size must be <= 4 for 'echo'",
        ),
        (unknown, "unexpected inference input 'z' for model 'echo'"),
        (
            wrong_type,
            "inference input 'x' data-type is 'FP32', but model 'echo' expects 'INT32'",
        ),
        (
            unknown_output,
            "unexpected inference output 'z' for model 'echo'",
        ),
        (
            narrow,
            "unexpected shape for input 'x' for model 'echo'. Expected [-1,2], got [1,3]",
        ),
        (
            InferRequest::default(),
            "expected 1 inputs but got 0 inputs for model 'echo'",
        ),
    ] {
        let error = echo.infer(request).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert_eq!(echo.statistics().fail.count, 0);
}

#[tokio::test]
async fn a_panic_answers_its_batch_and_the_instance_is_recreated() {
    let root = TempDir::new().expect("directory");
    write_model(
        root.path(),
        "echo",
        &config(&parameter("mock.panic_every", "2")),
        &["1"],
    );
    let runtime = runtime(root.path(), false);
    runtime.start(None);
    let echo = latest("echo", &runtime);
    let mut failures = 0;
    for value in 0..10 {
        match echo.infer(request(1, value)).await {
            Ok(answer) => assert_eq!(answer.outputs[0].tensor, request(1, value).inputs[0].1),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Internal);
                assert!(error.to_string().contains("panicked"), "{error}");
                failures += 1;
            }
        }
    }
    assert!(failures > 0);
    let figures = echo.statistics();
    assert_eq!(
        figures.success.count + figures.fail.count,
        10,
        "each request is answered once"
    );
    assert_eq!(figures.failures, [0, 0, failures, 0]);
}

#[tokio::test]
async fn a_full_queue_answers_at_once() {
    let root = TempDir::new().expect("directory");
    let slow = config(&(parameter("mock.latency_us", SLOW) + &parameter("max_queue_size", "1")));
    write_model(root.path(), "slow", &slow, &["1"]);
    let runtime = runtime(root.path(), false);
    runtime.start(None);
    let slow = latest("slow", &runtime);
    // Polled in order: the first runs, the second waits, the third finds the queue full.
    let (running, waiting, refused) = tokio::join!(
        slow.infer(request(1, 1)),
        slow.infer(request(1, 2)),
        slow.infer(request(1, 3))
    );
    assert!(running.is_ok() && waiting.is_ok());
    let error = refused.expect_err("full");
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Unavailable, "Exceeds maximum queue size")
    );
    assert_eq!(slow.statistics().failures, [1, 0, 0, 0]);
}

#[tokio::test]
async fn a_request_whose_client_left_does_not_run() {
    let root = TempDir::new().expect("directory");
    write_model(
        root.path(),
        "slow",
        &config(&parameter("mock.latency_us", SLOW)),
        &["1"],
    );
    let runtime = runtime(root.path(), false);
    runtime.start(None);
    let slow = latest("slow", &runtime);
    let mut running = std::pin::pin!(slow.infer(request(1, 1)));
    let mut cancelled = Box::pin(slow.infer(request(1, 2)));
    tokio::select! {
        biased;
        _ = &mut running => panic!("still runs"),
        _ = &mut cancelled => panic!("still waits"),
        () = std::future::ready(()) => {}
    }
    drop(cancelled);
    running.await.expect("answered");
    let figures = slow.statistics();
    assert_eq!(
        (figures.execution_count, figures.failures),
        (1, [0, 1, 0, 0])
    );
}

#[tokio::test]
async fn several_instances_run_at_once() {
    let root = TempDir::new().expect("directory");
    let two = config(&(parameter("mock.latency_us", SLOW) + "instance_group { count: 2 }"));
    write_model(root.path(), "two", &two, &["1"]);
    let runtime = runtime(root.path(), false);
    runtime.start(None);
    let two = latest("two", &runtime);
    let mut one = Box::pin(two.infer(request(1, 1)));
    let mut other = Box::pin(two.infer(request(1, 2)));
    tokio::select! {
        biased;
        _ = &mut one => panic!("still runs"),
        _ = &mut other => panic!("still runs"),
        () = std::future::ready(()) => {}
    }
    assert_eq!(two.pending(), 0, "each is on an instance");
    let (one, other) = tokio::join!(one, other);
    assert!(one.is_ok() && other.is_ok());
}

/// All at once: batches, priorities or ordering, instances that panic or fail, time-outs, clients that leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_is_answered_once_whatever_happens() {
    let kinds = [
        "preserve_ordering: true",
        "priority_levels: 3 default_priority_level: 2",
    ];
    for kind in kinds {
        let root = TempDir::new().expect("directory");
        let script = parameter("mock.latency_us", "300")
            + &parameter("mock.panic_every", "7")
            + &parameter("mock.fail_every", "5");
        let batching = format!(
            "instance_group {{ count: 3 }} dynamic_batching {{ {kind} max_queue_delay_microseconds: 500
             default_queue_policy {{ default_timeout_microseconds: 20000 allow_timeout_override: true
             max_queue_size: 60 }} }}"
        );
        write_model(root.path(), "m", &config(&(script + &batching)), &["1"]);
        let runtime = runtime(root.path(), true);
        runtime.load("m", &LoadOverrides::default()).expect("loads");
        let model = latest("m", &runtime);
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..100u32 {
            let model = Arc::clone(&model);
            clients.spawn(async move {
                let mut answers = 0;
                for number in 0..20 {
                    let value = client * 20 + number;
                    let request = InferRequest {
                        priority: u64::from(client % 5),
                        timeout: (client % 3 == 0).then_some(Duration::from_micros(400)),
                        ..request(1 + (value % 4) as usize, value.cast_signed())
                    };
                    let sent = request.inputs[0].1.clone();
                    let answering = model.infer(request);
                    if client % 10 == 9 {
                        // The client leaves after the first poll, unless the answer is there.
                        tokio::select! {
                            biased;
                            answer = answering => drop(answer),
                            () = tokio::task::yield_now() => {}
                        }
                    } else {
                        match answering.await {
                            Ok(answer) => assert_eq!(answer.outputs[0].tensor, sent),
                            Err(error) => assert!(
                                ["panicked", "fails", "timeout expired", "queue size"]
                                    .iter()
                                    .any(|text| error.to_string().contains(text)),
                                "{error}"
                            ),
                        }
                    }
                    answers += 1;
                }
                answers
            });
        }
        let mut answered = 0;
        while let Some(answers) = clients.join_next().await {
            answered += answers.expect("no client panics");
        }
        assert_eq!(answered, 2000);
        runtime.unload("m").expect("unloads");
        let watch = Arc::downgrade(&model);
        // Requests whose clients left run to their end; none is lost.
        while counted(&model) < 2000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(counted(&model), 2000, "{kind}");
        drop(model);
        assert!(watch.upgrade().is_none(), "the version is dropped");
    }
}

/// The requests of a version that succeeded or failed.
fn counted(version: &LoadedVersion) -> u64 {
    let figures = version.statistics();
    figures.success.count + figures.fail.count
}
