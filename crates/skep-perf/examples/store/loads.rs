//! How long a load takes, as its client sees it: the load request of mode `explicit`.
//!
//! | load | weights before it |
//! |---|---|
//! | `plain` | nowhere: no weight cache |
//! | `second` | another model of the server has the same |
//! | `kept` | in the cache on disk, loaded by nobody |
//! | `first` | nowhere: this load fills the cache |
//!
//! The four take turns, round by round; each load includes its one run for warming up. A `first` load is the first of a
//! server that has just started, so it also opens what a library opens once.

use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use skep_client::Client;
use skep_perf::{Server, median, quantile};
use skep_testkit::{Kind, Options};

use crate::{
    KINDS, Plan,
    node::{Copies, Isolation, Node, Weights},
};

const ROUNDS: usize = 20;
const HOLDER: &str = "holder";
const MODEL: &str = "model";

const FLAGS: [&str; 1] = ["--model-control-mode=explicit"];
/// The store lets weights go with the last model that uses them: the next load finds them on disk.
const FORGETFUL: [&str; 2] = ["--model-control-mode=explicit", "--store-keep-alive-secs=0"];

pub(crate) async fn measure(copies: &Copies, plan: &Plan) -> Result<()> {
    for kind in plan.kinds(&KINDS) {
        for isolation in [Isolation::Thread, Isolation::Process] {
            compare(copies, plan, kind, isolation).await?;
        }
    }
    Ok(())
}

async fn compare(copies: &Copies, plan: &Plan, kind: &str, isolation: Isolation) -> Result<()> {
    let parsed: Kind = kind.parse()?;
    let node = Node::new(copies)?;
    // Two files of the same weights: a server may tell by the file that it has the model already.
    for name in [HOLDER, MODEL] {
        node.model(name, &parsed, &Options::default(), 1, isolation)?;
    }
    // Another cache and server for each, so that no load prepares another's.
    let fresh = Node::new(copies)?;
    fresh.model(MODEL, &parsed, &Options::default(), 1, isolation)?;
    let kept = Node::new(copies)?;
    kept.model(MODEL, &parsed, &Options::default(), 1, isolation)?;
    let plain = fresh.serve(Weights::Plain, &FLAGS)?;
    let cache = node.cache();
    let second = node.serve(Weights::Shared(&cache), &FLAGS)?;
    Client::connect(second.http()).await?.load(HOLDER).await?;
    let cache = kept.cache();
    let kept = kept.serve(Weights::Shared(&cache), &FORGETFUL)?;
    load(&kept).await?;
    let mut times: [Vec<f64>; 4] = Default::default();
    for _ in 0..plan.rounds.unwrap_or(ROUNDS) {
        times[0].push(load(&plain).await?);
        times[1].push(load(&second).await?);
        times[2].push(load(&kept).await?);
        fresh.forget_weights()?;
        let cache = fresh.cache();
        times[3].push(load(&fresh.serve(Weights::Shared(&cache), &FLAGS)?).await?);
    }
    let plain_ms = median(&times[0]);
    for (name, ms) in ["plain", "second", "kept", "first"].into_iter().zip(times) {
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
async fn load(server: &Server) -> Result<f64> {
    let client = Client::connect(server.http()).await?;
    let began = Instant::now();
    client.load(MODEL).await?;
    let took = began.elapsed();
    client.unload(MODEL).await?;
    // Each look is a request; the last instance ends within milliseconds.
    while client
        .index(false)
        .await?
        .iter()
        .any(|row| row.name == MODEL && row.state != "UNAVAILABLE")
    {}
    Ok(took.as_secs_f64() * 1e3)
}
