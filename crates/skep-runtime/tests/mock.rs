//! The runtime over the mock backend: loading, serving, failing, unloading.

use std::{fs, num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use skep_backend_mock::Mock;
use skep_runtime::{
    BackendEntry, Backends, Control, Device, ErrorKind, InferRequest, LoadOptions, LoadOverrides,
    LoadedVersion, MetricsOptions, Repository, Runtime, RuntimeOptions, VersionState, WaitingLimit,
};
use skep_tensor::Tensor;
use skep_types::{DataType, DeviceId, Shape};
use tempfile::TempDir;

/// A model of one INT32 vector in, the same out, on the mock backend.
fn config(more: &str) -> String {
    format!(
        "backend: \"mock\" max_batch_size: 4
         input {{ name: \"x\" data_type: TYPE_INT32 dims: 2 }}
         output {{ name: \"y\" data_type: TYPE_INT32 dims: 2 }}
         parameters {{ key: \"mock.output\" value {{ string_value: \"echo\" }} }}
         {more}"
    )
}

/// Microseconds an execution takes where a test needs one that surely still runs a few steps later.
const SLOW: &str = "700000";

fn parameter(key: &str, value: &str) -> String {
    format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}\n")
}

fn write_model(root: &Path, name: &str, config: &str, versions: &[&str]) {
    for version in versions {
        fs::create_dir_all(root.join(name).join(version)).expect("directory");
    }
    fs::create_dir_all(root.join(name)).expect("directory");
    fs::write(root.join(name).join("config.pbtxt"), config).expect("file");
}

fn runtime(root: &Path, explicit: bool) -> Arc<Runtime> {
    let mut backends = Backends::default();
    backends.add("mock", BackendEntry::new(|| Ok(Arc::new(Mock))));
    backends.prefer(&["mock"]);
    let options = RuntimeOptions {
        repository: Repository::open(vec![root.to_owned()]).expect("repository"),
        load: LoadOptions {
            auto_complete: true,
            backend_settings: vec![],
            cores: NonZeroUsize::MIN,
            metrics: MetricsOptions::default(),
            config_name: None,
            gpu_as_cpu: false,
            retries: 0,
            waiting_limit: Arc::new(WaitingLimit::new(1000)),
            hold_until: 0,
            cpu: Some(Device::new(DeviceId::default(), 1)),
            weights: None,
            request_memory: None,
            sandbox_load_limit: None,
        },
        load_threads: 2,
        max_waiting_loads: 256,
        control: if explicit {
            Control::Explicit
        } else {
            Control::None
        },
        strict_readiness: true,
    };
    Runtime::new(options, backends)
}

fn request(batch: usize, value: i32) -> InferRequest {
    let data: Vec<u8> = (0..2 * batch).flat_map(|_| value.to_le_bytes()).collect();
    let shape = Shape::new(&[batch, 2]).expect("shape");
    let tensor = Tensor::new(DataType::Int32, shape, Bytes::from(data)).expect("tensor");
    InferRequest {
        inputs: vec![("x".to_owned(), tensor)],
        ..Default::default()
    }
}

/// The loads that failed, by model.
fn failures(runtime: &Runtime) -> Vec<(String, u64)> {
    let failures = runtime.load_failures().into_iter();
    failures
        .map(|(_, name, count)| (name.to_string(), count))
        .collect()
}

fn first(model: &str, runtime: &Runtime) -> Arc<LoadedVersion> {
    runtime.resolve(model, None).expect("loaded")
}

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
    let echo = first("echo", &runtime);
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
async fn requests_that_do_not_fit_are_refused_in_tritons_words_and_not_counted() {
    let root = TempDir::new().expect("directory");
    write_model(root.path(), "echo", &config(""), &["1"]);
    let runtime = runtime(root.path(), false);
    runtime.start(None);
    let echo = first("echo", &runtime);
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
async fn a_panic_answers_its_batch_and_the_instance_is_made_anew() {
    let root = TempDir::new().expect("directory");
    write_model(
        root.path(),
        "echo",
        &config(&parameter("mock.panic_every", "2")),
        &["1"],
    );
    let runtime = runtime(root.path(), false);
    runtime.start(None);
    let echo = first("echo", &runtime);
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
async fn what_is_measured_at_loading_counts_nowhere_and_breaks_nothing() {
    let root = TempDir::new().expect("directory");
    let objective = parameter("slo_latency_ms", "60000");
    // As many executions as are measured: each size from 1 to 4, four times.
    for (more, broken) in [
        (String::new(), false),
        (parameter("mock.fail_every", "3"), false),
        (parameter("mock.panic_every", "12"), false),
        (parameter("mock.panic_every", "1"), true),
    ] {
        write_model(
            root.path(),
            "echo",
            &config(&(objective.clone() + &more)),
            &["1"],
        );
        let runtime = runtime(root.path(), false);
        let report = runtime.start(None);
        assert!(
            report.iter().all(|(_, outcome)| outcome.is_ok()),
            "{report:?}"
        );
        let echo = first("echo", &runtime);
        let figures = echo.statistics();
        assert_eq!(
            (figures.inference_count, figures.execution_count),
            (0, 0),
            "{more}"
        );
        assert_eq!(echo.infer(request(1, 7)).await.is_err(), broken, "{more}");
    }
}

#[tokio::test]
async fn a_full_queue_answers_at_once() {
    let root = TempDir::new().expect("directory");
    let slow = config(&(parameter("mock.latency_us", SLOW) + &parameter("max_queue_size", "1")));
    write_model(root.path(), "slow", &slow, &["1"]);
    let runtime = runtime(root.path(), false);
    runtime.start(None);
    let slow = first("slow", &runtime);
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
async fn a_request_that_nobody_waits_for_does_not_run() {
    let root = TempDir::new().expect("directory");
    write_model(
        root.path(),
        "slow",
        &config(&parameter("mock.latency_us", SLOW)),
        &["1"],
    );
    let runtime = runtime(root.path(), false);
    runtime.start(None);
    let slow = first("slow", &runtime);
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
async fn an_unload_lets_what_runs_finish_and_then_frees() {
    let root = TempDir::new().expect("directory");
    write_model(
        root.path(),
        "slow",
        &config(&parameter("mock.latency_us", SLOW)),
        &["1"],
    );
    let runtime = runtime(root.path(), true);
    runtime.start(Some(&[]));
    assert_eq!(runtime.index(false)[0].state, None, "seen, never loaded");
    runtime.unload("slow").expect("is unloaded already");
    runtime
        .unload("nosuch")
        .expect("as is one that is not there");
    runtime
        .load("slow", &LoadOverrides::default())
        .expect("loads");
    let slow = first("slow", &runtime);
    let mut running = Box::pin(async move { slow.infer(request(1, 9)).await });
    tokio::select! {
        biased;
        _ = &mut running => panic!("still runs"),
        () = std::future::ready(()) => {}
    }
    runtime.unload("slow").expect("unloads");
    assert_eq!(runtime.index(false)[0].state, Some(VersionState::Unloading));
    let error = runtime
        .resolve("slow", None)
        .expect_err("not for new requests");
    assert_eq!(
        error.to_string(),
        "Request for unknown model: 'slow' has no available versions"
    );
    running.await.expect("answered");
    assert_eq!(runtime.stop(Duration::from_secs(10)), 0, "nothing is left");
    let row = &runtime.index(false)[0];
    assert_eq!(
        (row.state, row.reason.as_str()),
        (Some(VersionState::Unavailable), "unloaded")
    );
}

#[tokio::test]
async fn a_failed_reload_keeps_what_serves() {
    let root = TempDir::new().expect("directory");
    write_model(root.path(), "echo", &config(""), &["1"]);
    let runtime = runtime(root.path(), true);
    runtime.start(Some(&[]));
    runtime
        .load("echo", &LoadOverrides::default())
        .expect("loads");
    write_model(
        root.path(),
        "echo",
        &config(&parameter("mock.load_error", "no luck")),
        &["1"],
    );
    let error = runtime
        .load("echo", &LoadOverrides::default())
        .expect_err("fails");
    assert!(error.to_string().contains("no luck"), "{error}");
    let row = &runtime.index(false)[0];
    assert_eq!(row.state, Some(VersionState::Ready));
    first("echo", &runtime)
        .infer(request(1, 1))
        .await
        .expect("still serves");
    assert_eq!(failures(&runtime), [("echo".to_owned(), 1)]);
    write_model(root.path(), "echo", &config(""), &["1"]);
    runtime
        .load("echo", &LoadOverrides::default())
        .expect("loads again");
    assert_eq!(runtime.stop(Duration::from_secs(10)), 0);
    assert_eq!(
        runtime.index(false)[0].state,
        Some(VersionState::Unavailable)
    );
}

#[tokio::test]
async fn models_that_fail_are_reported_beside_those_that_load() {
    let root = TempDir::new().expect("directory");
    write_model(root.path(), "good", &config(""), &["1"]);
    write_model(
        root.path(),
        "bad",
        &config(&parameter("mock.load_error", "no luck")),
        &["1"],
    );
    write_model(
        root.path(),
        "worse",
        "backend: \"mock\" nonsense: 1",
        &["1"],
    );
    write_model(root.path(), "empty", &config(""), &[]);
    let runtime = runtime(root.path(), false);
    let report = runtime.start(None);
    let failed: Vec<&str> = report
        .iter()
        .filter(|(_, o)| o.is_err())
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(failed, ["bad", "empty", "worse"]);
    let counts = [("bad", 1), ("empty", 1), ("good", 0), ("worse", 1)];
    let counts = counts.map(|(name, count)| (name.to_owned(), count));
    assert_eq!(failures(&runtime), counts);
    assert!(!runtime.is_ready(), "strict readiness");
    first("good", &runtime)
        .infer(request(1, 1))
        .await
        .expect("serves");
    for row in runtime
        .index(false)
        .iter()
        .filter(|row| row.name.as_str() != "good")
    {
        assert_eq!(row.state, Some(VersionState::Unavailable));
        assert!(!row.reason.is_empty());
    }
    let error = runtime.resolve("bad", Some("1")).expect_err("not there");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let error = runtime
        .load("good", &LoadOverrides::default())
        .expect_err("mode none");
    assert_eq!(
        error.to_string(),
        "explicit model load / unload is not allowed if polling is enabled"
    );
}

#[tokio::test]
async fn several_instances_run_at_once() {
    let root = TempDir::new().expect("directory");
    let two = config(&(parameter("mock.latency_us", SLOW) + "instance_group { count: 2 }"));
    write_model(root.path(), "two", &two, &["1"]);
    let runtime = runtime(root.path(), false);
    runtime.start(None);
    let two = first("two", &runtime);
    let mut one = Box::pin(two.infer(request(1, 1)));
    let mut other = Box::pin(two.infer(request(1, 2)));
    tokio::select! {
        biased;
        _ = &mut one => panic!("still runs"),
        _ = &mut other => panic!("still runs"),
        () = std::future::ready(()) => {}
    }
    assert_eq!(two.pending(), 0, "both were given to an instance");
    let (one, other) = tokio::join!(one, other);
    assert!(one.is_ok() && other.is_ok());
}

#[test]
fn warm_up_runs_on_each_instance_before_it_is_ready_and_counts() {
    let root = TempDir::new().expect("directory");
    let warm = config(
        "model_warmup { name: \"w\" batch_size: 2 count: 3
           inputs { key: \"x\" value { data_type: TYPE_INT32 dims: 2 random_data: true } } }",
    );
    write_model(root.path(), "warm", &warm, &["1"]);
    let cold = config(
        "model_warmup { name: \"w\" batch_size: 1
           inputs { key: \"x\" value { data_type: TYPE_INT32 dims: 2 input_data_file: \"missing\" } } }",
    );
    write_model(root.path(), "cold", &cold, &["1"]);
    let runtime = runtime(root.path(), false);
    let report = runtime.start(None);
    let figures = first("warm", &runtime).statistics();
    assert_eq!((figures.inference_count, figures.execution_count), (6, 3));
    let error = report[0]
        .1
        .as_ref()
        .expect_err("its data is missing")
        .to_string();
    assert!(
        error.contains("failed to run warmup 'w'") && error.contains("missing"),
        "{error}"
    );
}

/// Everything at once: batches, priorities or order, instances that panic and fail, time-outs, clients that leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_each_request_is_answered_once() {
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
        let model = first("m", &runtime);
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
                        // Gone after its first look, unless the answer was there.
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
        // What clients left behind runs to its end; nothing is lost on the way.
        let counted = || {
            let figures = model.statistics();
            figures.success.count + figures.fail.count
        };
        while counted() < 2000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(counted(), 2000, "{kind}");
        drop(model);
        assert!(watch.upgrade().is_none(), "nobody holds it any more");
    }
}
