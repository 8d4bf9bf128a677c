//! Twenty sandboxes that start at once, beside one that starts alone: the CPU time of each, and how long all take.
//!
//! Loaders of one tensor wait for the one that brings it. If all bring tensors in the same order they queue behind each
//! other, so two orders are compared: a random one for each, and that of the model for all.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::json;
use skep_models::{Kind, Options};
use skep_perf::{cpu_time, median, tree};

use crate::{
    KINDS, StoreBenchArgs,
    node::{BenchIsolation, BenchNode, Copies, WeightSetup, has_room, median_of},
};

const ROUNDS: usize = 5;
const MODEL: &str = "model";
const MANY: usize = 20;

/// Orders in which a sandbox asks for tensors, and the flag that chooses each.
const ORDERS: [(&str, &[&str]); 2] = [
    ("random", &["--store-load-order=random"]),
    ("fixed", &["--store-load-order=fixed"]),
];

/// One start of a server whose model has so many instances.
struct Start {
    /// Of all sandboxes until the server is ready, a sandbox.
    cpu_ms: f64,
    /// Of all sandboxes in the store, for tensors that another one was bringing, a sandbox.
    wait_ms: f64,
    ready_ms: f64,
}

pub(crate) fn measure(copies: &Copies, plan: &StoreBenchArgs) -> Result<()> {
    for kind in plan.kinds(&KINDS) {
        let node = BenchNode::new(copies)?;
        let parsed: Kind = kind.parse()?;
        node.model(
            MODEL,
            &parsed,
            &Options::default(),
            1,
            BenchIsolation::Process,
        )?;
        for (order, flags) in ORDERS {
            for has_cache in [true, false] {
                // If nothing kept each of them from packing weights for itself, all would have them twice at once.
                let bytes = skep_models::generate(&parsed, &Options::default())?
                    .sharing()
                    .bytes;
                let mib = bytes as f64 / f64::from(1 << 20);
                if !has_cache && !has_room(2.0 * mib * MANY as f64)? {
                    eprintln!(
                        "{kind}: no room for {MANY} loads at once without a cache, not measured"
                    );
                    continue;
                }
                let (mut alone, mut many) = (Vec::new(), Vec::new());
                for _ in 0..plan.rounds.unwrap_or(ROUNDS) {
                    for (instances, starts) in [(1, &mut alone), (MANY, &mut many)] {
                        node.configure(MODEL, &parsed, instances, BenchIsolation::Process)?;
                        starts.push(start(&node, instances, flags, has_cache)?);
                    }
                }
                for (count, starts) in [(1, &alone), (MANY, &many)] {
                    let cpu = |start: &Start| start.cpu_ms;
                    let ratios: Vec<f64> = starts
                        .iter()
                        .zip(&alone)
                        .map(|(a, b)| a.cpu_ms / b.cpu_ms)
                        .collect();
                    println!(
                        "{}",
                        json!({
                            "table": "Sandboxes that start at once",
                            "model": kind, "order": order,
                            "cache": if has_cache { "filled" } else { "empty" },
                            "starts": count,
                            "cpu_ms_per_start": median_of(starts, cpu),
                            "cpu_ms_rounds": starts.iter().map(cpu).collect::<Vec<f64>>(),
                            "cpu_to_alone": median(&ratios),
                            "wait_ms_per_start": median_of(starts, |start| start.wait_ms),
                            "wait_to_cpu": median_of(starts, |start| start.wait_ms / start.cpu_ms),
                            "ready_ms": median_of(starts, |start| start.ready_ms),
                            "ready_ms_rounds": starts.iter().map(|start| start.ready_ms).collect::<Vec<f64>>(),
                        })
                    );
                }
            }
        }
    }
    Ok(())
}

fn start(node: &BenchNode<'_>, instances: usize, flags: &[&str], has_cache: bool) -> Result<Start> {
    let cache = node.cache();
    if !has_cache {
        node.forget_weights()?;
    } else if node.has_no_weights()? {
        drop(node.serve(WeightSetup::Shared(&cache), flags)?);
    }
    let began = Instant::now();
    let server = node.serve(WeightSetup::Shared(&cache), flags)?;
    let ready_ms = began.elapsed().as_secs_f64() * 1e3;
    let sandboxes = &tree(server.pid())?[1..];
    ensure!(
        sandboxes.len() >= instances,
        "the server started {} processes, expected one for each of {instances} instances",
        sandboxes.len()
    );
    let mut cpu_ms = 0.0;
    for pid in sandboxes {
        cpu_ms += cpu_time(*pid)?.as_secs_f64() * 1e3;
    }
    let wait_ms = server.metric("skep_store_wait_us")? / 1e3;
    Ok(Start {
        cpu_ms: cpu_ms / instances as f64,
        wait_ms: wait_ms / instances as f64,
        ready_ms,
    })
}
