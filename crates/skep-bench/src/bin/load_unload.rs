//! Whether memory comes back after an unload: `cargo xtask bench load-unload`.
//!
//! Loads and unloads a model of 100 MB (`resnet50`, generated) over HTTP, again and again, and samples the server's
//! memory after each unload is complete. Flat means that nothing is lost a cycle; the first cycles are left out, since
//! they open libraries and fill caches that stay. Memory goes back to the system some seconds after an unload, so what
//! lasts is sampled at rest: once after the first cycles, and at the end. Printed: a JSON object for each backend.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::json;
use skep_client::Client;
use skep_models::{Kind, Options};
use skep_perf::{ProcessMemory, ServerProcess, median, memory};

/// Cycles unless the command line says otherwise.
const CYCLES: usize = 1000;

/// The cycles that the first and the last median are of.
const WINDOW: usize = 20;

/// Longer than the heap takes to give back what was freed.
const REST: Duration = Duration::from_secs(6);

const MODEL: &str = "model";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: load-unload SKEP_BINARY [CYCLES [WARM_UP]]";
    let binary: PathBuf = arguments.next().context(usage)?.into();
    let number = |text: Option<String>, default: usize| match text {
        Some(text) => text.parse().context(usage),
        None => Ok(default),
    };
    let cycles = number(arguments.next(), CYCLES)?;
    // A tenth: cycle 100 of 1,000.
    let warm_up = number(arguments.next(), cycles / 10)?;
    for backend in ["onnxruntime", "embedded"] {
        println!("{}", measure(&binary, backend, cycles, warm_up).await?);
    }
    Ok(())
}

async fn measure(
    binary: &Path,
    backend: &str,
    cycles: usize,
    warm_up: usize,
) -> Result<serde_json::Value> {
    let root = tempfile::tempdir()?;
    let config = format!("backend: \"{backend}\" instance_group {{ count: 1 kind: KIND_CPU }}");
    let kind = Kind::Resnet50 { classes: 1000 };
    skep_models::generate(&kind, &Options::default())?.write_repository(
        root.path(),
        MODEL,
        Some(&config),
    )?;
    let file = root.path().join(MODEL).join("1/model.onnx");
    // Beside the repository; sessions go at once, so that each cycle makes one.
    let weights = tempfile::tempdir()?;
    let cache = format!("--weight-cache={}", weights.path().display());
    let flags = [
        "--model-control-mode=explicit",
        "--session-keep-alive-secs=0",
        "--weight-bake=foreground",
        &cache,
    ];
    let server = ServerProcess::start_with(binary, root.path(), &flags)?;
    let client = Client::connect(server.http()).await?;
    let mut samples: Vec<ProcessMemory> = Vec::with_capacity(cycles);
    let mut loaded_kib = Vec::new();
    let (began, mut rests) = (Instant::now(), Vec::new());
    for cycle in 0..cycles {
        if cycle == warm_up {
            tokio::time::sleep(REST).await;
            rests.push(memory(server.pid())?);
        }
        client.load(MODEL).await?;
        if cycle >= warm_up {
            loaded_kib.push(memory(server.pid())?.private_kib);
        }
        client.unload(MODEL).await?;
        // Each look is a request; the last instance ends within milliseconds.
        while client
            .index(false)
            .await?
            .iter()
            .any(|row| row.state != "UNAVAILABLE")
        {}
        samples.push(memory(server.pid())?);
    }
    tokio::time::sleep(REST).await;
    rests.push(memory(server.pid())?);
    let cycling = began.elapsed() - REST * 2;
    let (rested_first, rested_last) = (&rests[0], &rests[rests.len() - 1]);
    let window = |samples: &[ProcessMemory], of: fn(&ProcessMemory) -> f64| {
        median(&samples.iter().map(of).collect::<Vec<f64>>())
    };
    let settled = &samples[warm_up..];
    let (first, last) = (
        &settled[..WINDOW.min(settled.len())],
        &settled[settled.len().saturating_sub(WINDOW)..],
    );
    let (before, after) = (
        window(first, |m| m.private_kib),
        window(last, |m| m.private_kib),
    );
    Ok(json!({
        "backend": backend,
        "cycles": cycles,
        "file_mib": fs::metadata(&file)?.len() as f64 / f64::from(1 << 20),
        "first_cycle_mib": samples[0].private_kib / 1024.0,
        "settled_from": warm_up,
        "private_first_mib": before / 1024.0,
        "private_last_mib": after / 1024.0,
        "growth_percent": (after / before - 1.0) * 100.0,
        "rested_first_mib": rested_first.private_kib / 1024.0,
        "rested_last_mib": rested_last.private_kib / 1024.0,
        "rested_anonymous_first_mib": rested_first.anonymous_kib / 1024.0,
        "rested_anonymous_last_mib": rested_last.anonymous_kib / 1024.0,
        "rested_growth_percent": (rested_last.private_kib / rested_first.private_kib - 1.0) * 100.0,
        "anonymous_first_mib": window(first, |m| m.anonymous_kib) / 1024.0,
        "anonymous_last_mib": window(last, |m| m.anonymous_kib) / 1024.0,
        "pss_last_mib": window(last, |m| m.pss_kib) / 1024.0,
        "loaded_mib": median(&loaded_kib) / 1024.0,
        "cycle_ms": cycling.as_secs_f64() * 1e3 / cycles as f64,
        "anonymous_kib": samples.iter().map(|m| m.anonymous_kib).collect::<Vec<f64>>(),
        "private_kib": samples.iter().map(|m| m.private_kib).collect::<Vec<f64>>(),
    }))
}
