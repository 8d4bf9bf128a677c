//! Loads, reloads and unloads, with models that fail and warm-ups.

use std::time::Duration;

use skep_runtime::{ErrorKind, LoadOverrides, VersionState};
use tempfile::TempDir;

use crate::echo::{SLOW, config, failures, latest, parameter, request, runtime, write_model};

#[tokio::test]
async fn profiling_at_load_is_not_counted_and_survives_failures() {
    let root = TempDir::new().expect("directory");
    let objective = parameter("slo_latency_ms", "60000");
    // The profile runs each batch size from 1 to 4 four times.
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
        let echo = latest("echo", &runtime);
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
async fn an_unload_lets_running_requests_finish_and_then_frees() {
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
    runtime.unload("nosuch").expect("counts as unloaded");
    runtime
        .load("slow", &LoadOverrides::default())
        .expect("loads");
    let slow = latest("slow", &runtime);
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
    assert_eq!(
        runtime.stop(Duration::from_secs(10)),
        0,
        "no version is left"
    );
    let row = &runtime.index(false)[0];
    assert_eq!(
        (row.state, row.reason.as_str()),
        (Some(VersionState::Unavailable), "unloaded")
    );
}

#[tokio::test]
async fn a_failed_reload_keeps_the_serving_version() {
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
    latest("echo", &runtime)
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
async fn failed_models_are_reported_beside_loaded_ones() {
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
    latest("good", &runtime)
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

#[test]
fn warm_ups_run_before_an_instance_is_ready_and_count() {
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
    let figures = latest("warm", &runtime).statistics();
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
