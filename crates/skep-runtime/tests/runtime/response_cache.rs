//! Responses that are kept for equal requests, and those that are not.

use std::{num::NonZeroU64, path::Path, sync::Arc};

use skep_runtime::{
    DurationStatistic, ErrorKind, InferRequest, LoadOverrides, LoadedVersion, ResponseCache,
    Runtime,
};
use skep_tensor::MemoryBudget;
use tempfile::TempDir;

use crate::{
    common,
    echo::{SLOW, config, latest, parameter, request, write_model},
};

const CACHED: &str = "response_cache { enable: true }\n";
const MIB: u64 = 1 << 20;

/// A node with a response cache of so many bytes, whose models are loaded on request.
fn runtime(root: &Path, bytes: u64) -> Arc<Runtime> {
    let mut options = common::options(root);
    options.load.response_cache = NonZeroU64::new(bytes).map(ResponseCache::new);
    Runtime::new(options, common::mock_backends())
}

/// A model whose responses are cached, on a node with a large cache.
fn cached_model(root: &TempDir, more: &str) -> (Arc<Runtime>, Arc<LoadedVersion>) {
    write_model(
        root.path(),
        "m",
        &config(&(CACHED.to_owned() + more)),
        &["1"],
    );
    let runtime = runtime(root.path(), MIB);
    runtime.load("m", &LoadOverrides::default()).expect("loads");
    let model = latest("m", &runtime);
    (runtime, model)
}

/// Executions, hits and misses.
fn counts(model: &LoadedVersion) -> (u64, u64, u64) {
    let figures = model.statistics();
    (
        figures.execution_count,
        figures.cache_hit.count,
        figures.cache_miss.count,
    )
}

/// The answer if it is there at the first poll.
async fn at_once<T>(answering: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
    tokio::select! {
        biased;
        answer = answering => Some(answer),
        () = std::future::ready(()) => None,
    }
}

#[tokio::test]
async fn an_equal_request_gets_the_kept_response() {
    let root = TempDir::new().expect("directory");
    let (runtime, model) = cached_model(&root, "");
    let computed = model.infer(request(3, 7)).await.expect("answered");
    assert!(computed.timing.is_some());
    let found = model.infer(request(3, 7)).await.expect("answered");
    assert_eq!(found.timing, None, "no model ran");
    assert_eq!(found.outputs[0].tensor, computed.outputs[0].tensor);
    assert_eq!(
        (&found.model, found.version),
        (&computed.model, computed.version)
    );
    for other in [request(3, 8), request(2, 7)] {
        let sent = other.inputs[0].1.clone();
        let answer = model.infer(other).await.expect("answered");
        assert_eq!(answer.outputs[0].tensor, sent);
    }
    assert_eq!(counts(&model), (3, 1, 3));
    let figures = model.statistics();
    assert_eq!((figures.inference_count, figures.success.count), (8, 4));
    assert_eq!((figures.queue.count, figures.compute_infer.count), (4, 3));
    let report = model.cached().expect("a cache");
    assert_eq!((report.entries, report.dropped), (3, [0; 4]));
    let used = runtime.response_cache().expect("a cache").used_bytes;
    assert_eq!(used, report.bytes);
    assert!(used >= (3 + 3 + 2) * 8);
}

#[tokio::test]
async fn parameters_and_the_id_are_those_of_each_request() {
    let root = TempDir::new().expect("directory");
    let (_runtime, model) = cached_model(&root, &parameter("mock.echo_parameters", "1"));
    for number in 0..3 {
        let parameters = vec![("n".to_owned(), skep_runtime::Parameter::Int(number))];
        let sent = InferRequest {
            id: number.to_string(),
            parameters: parameters.clone(),
            ..request(1, 7)
        };
        let answer = model.infer(sent).await.expect("answered");
        assert_eq!(answer.parameters, parameters);
    }
    assert_eq!(counts(&model), (1, 2, 1));
}

#[tokio::test]
async fn without_a_cache_or_the_setting_every_request_is_computed() {
    for (setting, bytes) in [(CACHED, 0), ("", MIB)] {
        let root = TempDir::new().expect("directory");
        write_model(root.path(), "m", &config(setting), &["1"]);
        let runtime = runtime(root.path(), bytes);
        runtime.load("m", &LoadOverrides::default()).expect("loads");
        let model = latest("m", &runtime);
        for _ in 0..2 {
            model.infer(request(1, 7)).await.expect("answered");
        }
        assert_eq!(counts(&model), (2, 0, 0));
        assert!(model.cached().is_none());
    }
}

#[tokio::test]
async fn errors_are_not_kept() {
    let root = TempDir::new().expect("directory");
    let (_runtime, model) = cached_model(&root, &parameter("mock.fail_every", "2"));
    model.infer(request(1, 1)).await.expect("the first runs");
    model
        .infer(request(1, 2))
        .await
        .expect_err("the second fails");
    model.infer(request(1, 2)).await.expect("the third runs");
    model.infer(request(1, 2)).await.expect("it was kept");
    assert_eq!(counts(&model), (2, 1, 2));
    assert_eq!(model.statistics().fail.count, 1);
}

#[tokio::test]
async fn what_a_client_does_not_wait_for_is_not_kept() {
    let root = TempDir::new().expect("directory");
    let (_runtime, model) = cached_model(&root, &parameter("mock.latency_us", "30000"));
    let mut running = Box::pin(model.infer(request(1, 1)));
    let mut waiting = Box::pin(model.infer(request(1, 2)));
    assert!(at_once(&mut running).await.is_none() && at_once(&mut waiting).await.is_none());
    drop((running, waiting));
    // Behind the execution that nobody waits for.
    model.infer(request(1, 3)).await.expect("answered");
    let report = model.cached().expect("a cache");
    assert_eq!((report.entries, counts(&model)), (1, (2, 0, 1)));
}

#[tokio::test]
async fn a_hit_waits_for_no_instance_and_keeps_the_order_if_there_is_one() {
    for is_ordered in [false, true] {
        let root = TempDir::new().expect("directory");
        let order = format!("dynamic_batching {{ preserve_ordering: {is_ordered} }}");
        let (_runtime, model) = cached_model(&root, &(parameter("mock.latency_us", SLOW) + &order));
        model.infer(request(1, 1)).await.expect("answered");
        let mut computed = Box::pin(model.infer(request(1, 2)));
        assert!(at_once(&mut computed).await.is_none(), "it runs");
        let mut found = Box::pin(model.infer(request(1, 1)));
        let answer = at_once(&mut found).await;
        assert_eq!(answer.is_none(), is_ordered);
        let answer = match answer {
            Some(answer) => answer,
            None => {
                computed.await.expect("answered");
                found.await
            }
        };
        let sent = request(1, 1).inputs[0].1.clone();
        assert_eq!(answer.expect("answered").outputs[0].tensor, sent);
        assert_eq!(model.statistics().cache_hit.count, 1);
    }
}

/// The cache may drop a response while a client still reads it.
#[tokio::test]
async fn a_found_response_is_charged_to_its_request() {
    let root = TempDir::new().expect("directory");
    let (_runtime, model) = cached_model(&root, "");
    let budget = MemoryBudget::new(100);
    let charged = |value| {
        let charge = Arc::new(budget.charge());
        InferRequest {
            charge: Some(charge),
            ..request(4, value)
        }
    };
    model.infer(request(4, 1)).await.expect("answered");
    let answers = [(); 3].map(|()| model.infer(charged(1)));
    let mut held = Vec::new();
    for answer in answers {
        held.push(answer.await.expect("answered"));
    }
    assert_eq!(budget.used(), 3 * 32);
    let full = model.infer(charged(1)).await.expect_err("no room");
    assert_eq!(full.kind(), ErrorKind::Full);
    drop(held);
    assert_eq!(budget.used(), 0);
    let figures = model.statistics();
    assert_eq!(
        (figures.cache_hit.count, figures.failures),
        (3, [1, 0, 0, 0])
    );
}

#[tokio::test]
async fn a_reload_and_an_unload_drop_the_versions_responses() {
    let root = TempDir::new().expect("directory");
    let (runtime, model) = cached_model(&root, "");
    model.infer(request(1, 1)).await.expect("answered");
    let used = || runtime.response_cache().expect("a cache").used_bytes;
    assert!(used() > 0);
    drop(model);
    let changed = config(&(CACHED.to_owned() + &parameter("mine", "2")));
    write_model(root.path(), "m", &changed, &["1"]);
    runtime.load("m", &LoadOverrides::default()).expect("loads");
    assert_eq!(used(), 0);
    let model = latest("m", &runtime);
    model.infer(request(1, 1)).await.expect("answered");
    assert_eq!(counts(&model), (1, 0, 1));
    // More instances are no other version.
    let more = changed + "instance_group { count: 2 }";
    write_model(root.path(), "m", &more, &["1"]);
    runtime.load("m", &LoadOverrides::default()).expect("loads");
    latest("m", &runtime)
        .infer(request(1, 1))
        .await
        .expect("answered");
    assert_eq!(counts(&model), (1, 1, 1));
    drop(model);
    runtime.unload("m").expect("unloads");
    assert_eq!(used(), 0);
}

/// Clients that share responses, in a cache that has room for few of them: each gets its own, and each is counted once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_gets_its_own_response_whatever_is_kept() {
    let root = TempDir::new().expect("directory");
    let script = CACHED.to_owned() + "instance_group { count: 2 } dynamic_batching { }";
    write_model(root.path(), "m", &config(&script), &["1"]);
    let runtime = runtime(root.path(), 4 * 1024);
    runtime.load("m", &LoadOverrides::default()).expect("loads");
    let model = latest("m", &runtime);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..16 {
        let model = Arc::clone(&model);
        clients.spawn(async move {
            for number in 0..100_i32 {
                let value = (client + number) % 12;
                let batch = 1 + usize::try_from(value).expect("positive") % 4;
                let sent = request(batch, value).inputs[0].1.clone();
                let answer = model.infer(request(batch, value)).await.expect("answered");
                assert_eq!(answer.outputs[0].tensor, sent);
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("no client panics");
    }
    let figures = model.statistics();
    let DurationStatistic { count: hits, .. } = figures.cache_hit;
    let DurationStatistic { count: misses, .. } = figures.cache_miss;
    assert_eq!((figures.success.count, hits + misses), (1600, 1600));
    assert!(hits > 0 && figures.compute_infer.count == misses);
    let report = model.cached().expect("a cache");
    assert!(report.dropped[0] > 0 && report.entries > 0, "{report:?}");
}
