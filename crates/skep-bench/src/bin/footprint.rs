//! What a node costs before it does anything: `cargo xtask bench footprint`.
//!
//! Starts the server without models, over and over; measures the time from its start to its being ready, its private
//! memory when idle, and the size of the binary. Printed: a JSON object.

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use serde_json::json;
use skep_perf::{ServerProcess, median, memory};

const ROUNDS: usize = 20;

fn main() -> Result<()> {
    let binary: PathBuf = std::env::args()
        .nth(1)
        .context("usage: footprint SKEP_BINARY")?
        .into();
    let root = tempfile::tempdir()?;
    let (mut ready_ms, mut private_kib, mut pss_kib) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let server = ServerProcess::start(&binary, root.path())?;
        ready_ms.push(began.elapsed().as_secs_f64() * 1e3);
        let memory = memory(server.pid())?;
        private_kib.push(memory.private_kib);
        pss_kib.push(memory.pss_kib);
    }
    println!(
        "{}",
        json!({
            "binary_mib": fs::metadata(&binary)?.len() as f64 / f64::from(1 << 20),
            "ready_ms": median(&ready_ms), "ready_ms_rounds": ready_ms,
            "private_mib": median(&private_kib) / 1024.0, "private_kib_rounds": private_kib,
            "pss_mib": median(&pss_kib) / 1024.0,
        })
    );
    Ok(())
}
