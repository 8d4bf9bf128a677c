//! Whether weights that are shared cost a request anything: closed loops against two servers, interleaved.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use skep_models::{Kind, Options};
use skep_perf::{ClosedLoop, Measurement, ServerProcess, closed_loop, median, quantile};

use crate::{
    StoreBenchArgs,
    node::{BenchIsolation, BenchNode, Copies, WeightSetup, request},
};

/// The last one runs fast enough for a p99 of thousands of requests.
const KINDS: [&str; 4] = ["text-recogniser", "resnet50", "bert-base", "mobilenetv2"];
const ROUNDS: usize = 15;
const INSTANCES: usize = 4;
const CONCURRENCY: [usize; 2] = [1, 4];
const WARM_UP: Duration = Duration::from_millis(300);
const WINDOW: Duration = Duration::from_secs(3);
const MODEL: &str = "model";

pub(crate) async fn measure(copies: &Copies, plan: &StoreBenchArgs) -> Result<()> {
    for kind in plan.kinds(&KINDS) {
        for isolation in [BenchIsolation::Thread, BenchIsolation::Process] {
            let node = BenchNode::new(copies)?;
            node.model(
                MODEL,
                &kind.parse()?,
                &Options::default(),
                INSTANCES,
                isolation,
            )?;
            let cache = node.cache();
            // The first one fills the cache; what is measured uses it.
            drop(node.serve(WeightSetup::Shared(&cache), &[])?);
            let shared = node.serve(WeightSetup::Shared(&cache), &[])?;
            let own = node.serve(WeightSetup::Plain, &[])?;
            for concurrency in CONCURRENCY {
                let rounds = plan.rounds.unwrap_or(ROUNDS);
                let mut figures = LatencyRounds::default();
                for round in 0..rounds {
                    let mut servers = [(&shared, &mut figures.shared), (&own, &mut figures.own)];
                    // Which goes first alternates.
                    if round % 2 == 1 {
                        servers.reverse();
                    }
                    for (server, into) in servers {
                        into.push(run(server, &kind.parse()?, concurrency).await?);
                    }
                }
                println!("{}", figures.row(kind, isolation, concurrency));
            }
        }
    }
    Ok(())
}

async fn run(server: &ServerProcess, kind: &Kind, concurrency: usize) -> Result<Measurement> {
    let plan = ClosedLoop {
        concurrency,
        connections: concurrency,
        warm_up: WARM_UP,
        duration: WINDOW,
    };
    Ok(closed_loop(server.http(), &request(MODEL, kind, 1)?, plan).await?)
}

/// A measurement of each round.
#[derive(Default)]
struct LatencyRounds {
    shared: Vec<Measurement>,
    own: Vec<Measurement>,
}

impl LatencyRounds {
    fn row(&self, kind: &str, isolation: BenchIsolation, concurrency: usize) -> serde_json::Value {
        let p50 = |rounds: &[Measurement]| -> Vec<f64> {
            let ms = |round: &Measurement| 1e3 * round.quantile(0.5).as_secs_f64();
            rounds.iter().map(ms).collect()
        };
        let (shared, own) = (p50(&self.shared), p50(&self.own));
        let ratios: Vec<f64> = shared.iter().zip(&own).map(|(s, o)| s / o).collect();
        // A round has too few requests for a p99 of its own.
        let p99 = |rounds: &[Measurement]| {
            let latencies = rounds.iter().flat_map(|round| &round.latencies);
            let ms: Vec<f64> = latencies
                .map(|latency| 1e3 * latency.as_secs_f64())
                .collect();
            quantile(&ms, 0.99)
        };
        let (shared_p99_ms, own_p99_ms) = (p99(&self.shared), p99(&self.own));
        let requests =
            |rounds: &[Measurement]| rounds.iter().map(|round| round.requests).sum::<usize>();
        json!({
            "table": "Latency with four instances, closed loop over HTTP",
            "model": kind, "isolation": isolation.name(), "concurrency": concurrency,
            "requests": requests(&self.shared) + requests(&self.own),
            "shared_p50_ms": median(&shared), "own_p50_ms": median(&own), "p50_ratio": median(&ratios),
            "shared_p99_ms": shared_p99_ms, "own_p99_ms": own_p99_ms,
            "p99_ratio": shared_p99_ms / own_p99_ms,
            "shared_p50_ms_rounds": shared, "own_p50_ms_rounds": own,
        })
    }
}
