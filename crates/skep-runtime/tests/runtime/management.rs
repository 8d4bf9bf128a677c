//! Loads, unloads and indexes while other loads never end.

use std::{
    fs,
    future::Future,
    path::Path,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use skep_runtime::{ErrorKind, InferRequest, LoadOverrides, Runtime, RuntimeOptions};
use skep_tensor::Tensor;
use skep_types::{DataType, ModelName, Shape};
use tempfile::TempDir;

use crate::common::{self, FOREVER, mock_backends, wait_until_loading, write_model};

/// A node that loads one model at a time, while two calls may wait.
fn not_started(root: &Path) -> Arc<Runtime> {
    let options = RuntimeOptions {
        load_threads: 1,
        max_waiting_loads: 2,
        strict_readiness: false,
        ..common::options(root)
    };
    Runtime::new(options, mock_backends())
}

/// The same, started without models.
fn runtime(root: &Path) -> Arc<Runtime> {
    let runtime = not_started(root);
    assert_eq!(runtime.start(Some(&[])), []);
    runtime
}

/// Models `quick`, and `a` to `d` whose loads never end.
fn models() -> TempDir {
    let root = TempDir::new().expect("directory");
    write_model(root.path(), "quick", "0");
    for name in ["a", "b", "c", "d"] {
        write_model(root.path(), name, FOREVER);
    }
    root
}

/// Polls a load for the first time, which submits it.
fn submit<F: Future<Output = Result<(), skep_runtime::RuntimeError>>>(
    load: &mut std::pin::Pin<&mut F>,
) {
    let polled = load.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(polled, Poll::Pending), "{polled:?}");
}

/// Why a model cannot be resolved.
fn error_kind(runtime: &Runtime, name: &str) -> ErrorKind {
    runtime.resolve(name, None).expect_err("not there").kind()
}

const fn none() -> LoadOverrides {
    LoadOverrides {
        config: None,
        files: Vec::new(),
        charge: None,
    }
}

#[tokio::test]
async fn models_are_served_and_unloaded_while_a_load_never_ends() {
    let root = models();
    let runtime = runtime(root.path());
    runtime.request_load("quick", none()).await.expect("loads");
    let mut slow = pin!(runtime.request_load("a", none()));
    submit(&mut slow);
    wait_until_loading(&runtime, "a").await;
    let quick = runtime.resolve("quick", None).expect("loaded");
    let shape = Shape::new(&[2]).expect("shape");
    let tensor = Tensor::new(DataType::Int32, shape, vec![7; 8].into()).expect("tensor");
    let request = InferRequest {
        inputs: vec![("x".to_owned(), tensor.clone())],
        ..Default::default()
    };
    let answer = quick.infer(request).await.expect("answered");
    assert_eq!(answer.outputs[0].tensor, tensor);
    runtime
        .request_unload("quick", false)
        .await
        .expect("unloads");
    assert!(runtime.resolve("quick", None).is_err());
    runtime
        .request_unload("no such", false)
        .await
        .expect("is unloaded");
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_a_leaving_client_makes_room() {
    let root = models();
    let runtime = runtime(root.path());
    let mut running = pin!(runtime.request_load("a", none()));
    submit(&mut running);
    wait_until_loading(&runtime, "a").await;
    let mut waiting = pin!(runtime.request_load("b", none()));
    submit(&mut waiting);
    let mut joined: Vec<_> = (0..500)
        .map(|_| Box::pin(runtime.request_load("b", none())))
        .collect();
    joined
        .iter_mut()
        .for_each(|load| submit(&mut load.as_mut()));
    {
        let mut second = pin!(runtime.request_load("c", none()));
        submit(&mut second);
        let refused = runtime.request_load("d", none()).await;
        let error = refused.expect_err("full");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(
            error.to_string(),
            "2 loads and unloads are waiting, the most allowed\n  `--max-waiting-loads` sets the limit"
        );
    }
    // The load of `c` was cancelled with its caller.
    let mut third = pin!(runtime.request_load("d", none()));
    submit(&mut third);
}

#[tokio::test]
async fn a_stop_answers_all_callers_and_does_not_wait_for_loads() {
    let root = models();
    let runtime = runtime(root.path());
    runtime.request_load("quick", none()).await.expect("loads");
    let mut running = pin!(runtime.request_load("a", none()));
    submit(&mut running);
    wait_until_loading(&runtime, "a").await;
    let mut waiting = pin!(runtime.request_load("b", none()));
    submit(&mut waiting);
    let stopping = Arc::clone(&runtime);
    let stop = tokio::task::spawn_blocking(move || stopping.stop(Duration::MAX));
    assert_eq!(stop.await.expect("no panic"), 0, "no version is left");
    for outcome in [
        running.await,
        waiting.await,
        runtime.request_load("c", none()).await,
    ] {
        let error = outcome.expect_err("cancelled");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(
            error.to_string(),
            "the server is stopping, the call is cancelled"
        );
    }
    assert_eq!(runtime.left_at_stop(), (0, 1), "the load that never ends");
}

#[test]
fn a_load_that_fails_is_answered() {
    let root = models();
    fs::write(root.path().join("a/config.pbtxt"), "backend: \"nosuch\"").expect("file");
    let runtime = runtime(root.path());
    let outcome = runtime.load("a", &none());
    assert!(outcome.is_err(), "{outcome:?}");
    let outcome = runtime.load("nowhere", &none());
    assert!(outcome.is_err(), "{outcome:?}");
    runtime.load("quick", &none()).expect("the thread lives on");
}

#[tokio::test]
async fn models_that_the_start_has_yet_to_load_are_not_unknown() {
    let root = models();
    write_model(root.path(), "broken", "no number");
    let runtime = not_started(root.path());
    assert_eq!(
        error_kind(&runtime, "quick"),
        ErrorKind::NotFound,
        "no start is announced"
    );
    runtime.announce_start();
    assert_eq!(
        error_kind(&runtime, "no such"),
        ErrorKind::Unavailable,
        "the start does not know its models yet"
    );
    let names = ["quick", "broken", "a", "b"].map(|name| ModelName::new(name).expect("a name"));
    let starting = Arc::clone(&runtime);
    // The thread ends with the process, since the load of `a` never ends.
    thread::spawn(move || starting.start(Some(&names)));
    wait_until_loading(&runtime, "a").await;
    for name in ["a", "b"] {
        for version in [None, Some("1")] {
            let error = runtime.resolve(name, version).expect_err("not there");
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            let text = format!("model '{name}' is not loaded yet: the server is starting");
            assert_eq!(error.to_string(), text);
        }
    }
    runtime.resolve("quick", None).expect("loaded");
    assert_eq!(
        error_kind(&runtime, "broken"),
        ErrorKind::NotFound,
        "its load is over"
    );
    assert_eq!(
        error_kind(&runtime, "c"),
        ErrorKind::NotFound,
        "not part of the start"
    );
    assert_eq!(error_kind(&runtime, "no such"), ErrorKind::NotFound);
}
