//! Requests that load models, within a budget.

use std::{future::Future, path::Path, pin::pin, sync::Arc, task::Poll, time::Duration};

use skep_runtime::{
    ErrorKind, EvictionPolicy, KeepAlive, LoadPolicy, ResidencySettings, Runtime, RuntimeOptions,
};
use tempfile::TempDir;

use crate::common::{self, FOREVER, mock_backends, wait_until_loading, write_model};

const MIB: u64 = 1 << 20;
/// A node whose models load at their first request.
fn lazy(root: &Path, budget: u64) -> Arc<Runtime> {
    let options = RuntimeOptions {
        residency: ResidencySettings {
            load_policy: LoadPolicy::Lazy,
            budget: Some(budget),
            policy: EvictionPolicy::Lru,
            keep_alive: KeepAlive::Forever,
            max_load_wait: Duration::from_secs(600),
        },
        ..common::options(root)
    };
    let runtime = Runtime::new(options, mock_backends());
    assert_eq!(runtime.start(None), []);
    runtime
}

/// Whether a future is still pending after it has been polled once more.
async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|context| {
        let polled = std::pin::Pin::new(&mut *future).poll(context);
        Poll::Ready(polled.is_pending())
    })
    .await
}

#[tokio::test]
async fn a_stop_answers_the_requests_that_wait_for_loads() {
    let root = TempDir::new().expect("directory");
    write_model(root.path(), "quick", "0");
    write_model(root.path(), "slow", FOREVER);
    let runtime = lazy(root.path(), 100 * MIB);
    let mut first = pin!(runtime.acquire("slow", None, None));
    let mut second = pin!(runtime.acquire("slow", Some("1"), None));
    assert!(is_pending(&mut first).await && is_pending(&mut second).await);
    wait_until_loading(&runtime, "slow").await;
    // Others are served meanwhile.
    let quick = runtime.acquire("quick", None, None).await.expect("loads");
    assert_eq!(quick.name().as_str(), "quick");
    assert!(is_pending(&mut first).await);
    runtime.begin_stop();
    for outcome in [first.await, second.await] {
        let error = outcome.expect_err("the server stops");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(
            error.to_string(),
            "Server is stopping, the model is not loaded"
        );
    }
}

#[tokio::test]
async fn what_does_not_exist_loads_nothing() {
    let root = TempDir::new().expect("directory");
    write_model(root.path(), "m", "0");
    let runtime = lazy(root.path(), 100 * MIB);
    let error = runtime
        .acquire("n", None, None)
        .await
        .expect_err("no model");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = runtime
        .acquire("m", Some("x"), None)
        .await
        .expect_err("no version");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let error = runtime
        .acquire("m", Some("2"), None)
        .await
        .expect_err("another one");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // The request could not know before the model was loaded.
    assert_eq!(runtime.versions("m").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_requests_for_many_models_at_once_are_all_served() {
    const MODELS: usize = 60;
    let root = TempDir::new().expect("directory");
    for index in 0..MODELS {
        write_model(root.path(), &format!("m{index}"), "0");
    }
    // Room for a few at a time: each counts for a MiB at least.
    let runtime = lazy(root.path(), 16 * MIB);
    let requests: Vec<_> = (0..3 * MODELS)
        .map(|index| {
            let runtime = Arc::clone(&runtime);
            let name = format!("m{}", index % MODELS);
            tokio::spawn(async move {
                let loaded = runtime.acquire(&name, None, None).await.expect("loads");
                assert_eq!(loaded.name().as_str(), name);
            })
        })
        .collect();
    for request in requests {
        request.await.expect("served");
    }
    assert!(runtime.loaded().len() <= 16);
    assert_eq!(runtime.stop(Duration::from_secs(60)), 0);
}
