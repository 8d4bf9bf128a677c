//! How long a load takes, as its client sees it: the load request of mode `explicit`.
//!
//! | load | what there is before it |
//! |---|---|
//! | `plain` | nothing: no weight cache |
//! | `again` | the session that the unload a moment ago left; in processes there is none, and it is `stored` |
//! | `stored` | the weights, in the tensor store |
//! | `cached` | the weights, on disk, found whole by an earlier load |
//! | `first` | nothing: this load fills the cache |
//!
//! All take turns, round by round, and nothing is run. A `first` load is the first of a server that has just started,
//! so it also opens what a library opens once.

use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use skep_client::Client;
use skep_models::{Kind, Options};
use skep_perf::{ServerProcess, median, quantile};

use crate::{
    KINDS, StoreBenchArgs,
    node::{BenchIsolation, BenchNode, Copies, WeightSetup},
};

const ROUNDS: usize = 20;
const MODEL: &str = "model";

const EXPLICIT: &str = "--model-control-mode=explicit";
/// Kinds of loads that a server is kept for, and its further flags.
const KEPT: [(&str, &[&str]); 3] = [
    ("again", &[]),
    ("stored", &["--session-keep-alive-secs=0"]),
    (
        "cached",
        &["--session-keep-alive-secs=0", "--store-keep-alive-secs=0"],
    ),
];

pub(crate) async fn measure(copies: &Copies, plan: &StoreBenchArgs) -> Result<()> {
    for kind in plan.kinds(&KINDS) {
        for isolation in [BenchIsolation::Thread, BenchIsolation::Process] {
            compare(copies, plan, kind, isolation).await?;
        }
    }
    Ok(())
}

async fn compare(
    copies: &Copies,
    plan: &StoreBenchArgs,
    kind: &str,
    isolation: BenchIsolation,
) -> Result<()> {
    let parsed: Kind = kind.parse()?;
    // A cache that every round begins without, and one that is filled once.
    let (fresh, node) = (BenchNode::new(copies)?, BenchNode::new(copies)?);
    for node in [&fresh, &node] {
        node.model(MODEL, &parsed, &Options::default(), 1, isolation)?;
        node.without_runs(MODEL)?;
    }
    let plain = fresh.serve(WeightSetup::Plain, &[EXPLICIT])?;
    let (cache, fresh_cache) = (node.cache(), fresh.cache());
    let mut kept: Vec<ServerProcess> = Vec::new();
    for (_, flags) in KEPT {
        let server = node.serve(WeightSetup::Shared(&cache), &[&[EXPLICIT], flags].concat())?;
        // Not unloaded before the store has its weights.
        let client = Client::connect(server.http()).await?;
        client.load(MODEL).await?;
        let bytes = node.kept_bytes()? as f64;
        while server.metric_with("skep_store_bytes", "kind=\"leased\"")? < bytes {}
        unload(&client).await?;
        kept.push(server);
    }
    let mut times: [Vec<f64>; 5] = Default::default();
    for _ in 0..plan.rounds.unwrap_or(ROUNDS) {
        times[0].push(load(&plain).await?);
        for (server, times) in kept.iter().zip(&mut times[1..]) {
            times.push(load(server).await?);
        }
        fresh.forget_weights()?;
        let server = fresh.serve(WeightSetup::Shared(&fresh_cache), &[EXPLICIT])?;
        times[4].push(load(&server).await?);
    }
    let plain_ms = median(&times[0]);
    let names = ["plain", "again", "stored", "cached", "first"];
    for (name, ms) in names.into_iter().zip(times) {
        let ratios: Vec<f64> = ms.iter().map(|ms| ms / plain_ms).collect();
        println!(
            "{}",
            json!({
                "table": "Loads",
                "model": kind, "isolation": isolation.name(), "load": name,
                "p10_ms": quantile(&ms, 0.1), "median_ms": median(&ms), "p90_ms": quantile(&ms, 0.9),
                "ratio_to_plain": median(&ratios),
                "ms_rounds": ms,
            })
        );
    }
    Ok(())
}

/// Loads the model, and unloads it again; milliseconds of the load.
async fn load(server: &ServerProcess) -> Result<f64> {
    let client = Client::connect(server.http()).await?;
    let began = Instant::now();
    client.load(MODEL).await?;
    let took = began.elapsed();
    unload(&client).await?;
    Ok(took.as_secs_f64() * 1e3)
}

async fn unload(client: &Client) -> Result<()> {
    client.unload(MODEL).await?;
    // Each look is a request; the last instance ends within milliseconds.
    while client
        .index(false)
        .await?
        .iter()
        .any(|row| row.name == MODEL && row.state != "UNAVAILABLE")
    {}
    Ok(())
}
