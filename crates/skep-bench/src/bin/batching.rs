//! What dynamic batching brings: `cargo xtask bench batching`.
//!
//! Closed loops of requests of batch 2 over gRPC. On a CPU batching hardly pays for convolution nets, so a mock stands
//! in for an accelerator, on a device of its own: an execution takes 1.87 ms and 0.087 ms an inference, figures that
//! were published for a text recogniser on one; two instances, whose executions overlap, take 1.39 times that. A small
//! MLP on ONNX Runtime, where batching pays on a CPU as well, has its own rows.
//!
//! What the device allows: without a delay batches alternate, so that `c` clients of one instance get
//! `2c / (2 * 1.87 + 0.087 * 2c)` inferences a millisecond up to `c = 8`, and the largest batch's rate from there. With
//! a delay, the simulator says what the same scheduler makes of it. Its clients then come back after as long as a
//! request takes, with as many others, to a mock that takes no time: from an answer to the next request the device is
//! idle, which is neither the scheduler's doing nor left out. Settings alternate round by round; figures are medians of
//! rounds. How much longer than asked for the mock's executions took on the mean, by the model's statistics, is in the
//! table: that is not the server's. Printed: a JSON object a row.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use skep_client::{Client, InferRequest};
use skep_models::{Kind, Options};
use skep_perf::{ClosedLoop, ServerProcess, closed_loop, cpu_time, median};
use skep_scheduler::{Policy, SchedulerOptions, TritonPolicy};
use skep_sim::{Clients, LatencyTable, Setup, SimulatedModel, Workload, simulate};
use skep_tensor::Tensor;

use skep_bench::batched::{
    BASE_MS, MLP_PORTS, PER_INFERENCE_MS, inputs, mock_config, mock_inputs, parameter,
};

const ROUNDS: usize = 5;
const WINDOW: Duration = Duration::from_millis(1500);
const WARM_UP: Duration = Duration::from_millis(300);

const OVERLAP: f64 = 0.39;
const MAX_BATCH: usize = 8;
const REQUEST_BATCH: usize = 2;

/// Long enough for all outstanding requests to come back, once the batch before has been answered.
const DELAY: Duration = Duration::from_millis(1);

/// A model that is measured.
struct BatchingRow {
    model: &'static str,
    /// In the table: how batches are formed.
    batching: &'static str,
    instances: u32,
    batched: bool,
    delay: Duration,
}

const MOCK: [BatchingRow; 4] = [
    row("mock", "none", 1, false, Duration::ZERO),
    row("mock", "no delay", 1, true, Duration::ZERO),
    row("mock", "delay 1 ms", 1, true, DELAY),
    row("mock", "no delay", 2, true, Duration::ZERO),
];

/// What a request costs besides its execution.
const INSTANT: BatchingRow = row("mock", "instant", 1, true, Duration::ZERO);

const MLP: [BatchingRow; 2] = [
    row("mlp", "none", 1, false, Duration::ZERO),
    row("mlp", "no delay", 1, true, Duration::ZERO),
];

const fn row(
    model: &'static str,
    batching: &'static str,
    instances: u32,
    batched: bool,
    delay: Duration,
) -> BatchingRow {
    BatchingRow {
        model,
        batching,
        instances,
        batched,
        delay,
    }
}

impl BatchingRow {
    /// The model's name in its repository.
    fn name(&self) -> String {
        let batching = self.batching.replace([' ', '.'], "_");
        format!("{}_{batching}_{}", self.model, self.instances)
    }

    fn config(&self) -> String {
        let batching = if self.batched {
            let delay = self.delay.as_micros();
            format!("dynamic_batching {{ max_queue_delay_microseconds: {delay} }}")
        } else {
            String::new()
        };
        let group = format!(
            "max_batch_size: {MAX_BATCH} instance_group {{ kind: KIND_CPU count: {} }} {batching}",
            self.instances
        );
        if self.model == "mlp" {
            return format!("backend: \"onnxruntime\" {group} {MLP_PORTS}");
        }
        let takes_time = f64::from(u8::from(self.batching != "instant"));
        format!(
            "backend: \"mock\" {group} {}{}",
            mock_config(BASE_MS * takes_time, PER_INFERENCE_MS * takes_time),
            parameter("mock.overlap_percent", &format!("{:.0}", OVERLAP * 100.0)),
        )
    }

    /// What the simulator gives: inferences a second.
    fn simulated(&self, clients: usize, turnaround: Duration) -> Result<f64> {
        let model = SimulatedModel {
            request_size: REQUEST_BATCH,
            stretch: OVERLAP,
            ..SimulatedModel::new(
                LatencyTable::affine(BASE_MS, PER_INFERENCE_MS, MAX_BATCH)?,
                self.instances,
            )
        };
        let mut scheduler = SchedulerOptions::one_by_one(100_000);
        if self.batched {
            scheduler.max_batch_size = MAX_BATCH;
            scheduler.policy = Policy::Triton(TritonPolicy {
                preferred_batch_sizes: Vec::new(),
                max_queue_delay: self.delay,
            });
        }
        // Without a delay batches alternate, and what clients take to come back lies within the other one.
        let waits = !self.delay.is_zero();
        let outcome = simulate(
            Setup {
                scheduler,
                model: &model,
                objective: None,
                warm_up: 1_000,
                seed: 1,
            },
            Workload::Closed(Clients {
                count: clients,
                together: waits,
                requests: 20_000,
                pause: if waits { turnaround } else { Duration::ZERO },
            }),
        );
        Ok(outcome.throughput() * REQUEST_BATCH as f64)
    }

    /// What the device allows without a delay.
    fn formula(&self, clients: usize) -> Option<f64> {
        let (one, all) = (REQUEST_BATCH as f64, (REQUEST_BATCH * clients) as f64);
        let full = MAX_BATCH as f64;
        match (self.batching, self.instances) {
            ("none", 1) => Some(one / (BASE_MS + PER_INFERENCE_MS * one) * 1e3),
            ("no delay", 1) if all <= 2.0 * full => {
                Some(all / (2.0 * BASE_MS + PER_INFERENCE_MS * all) * 1e3)
            }
            ("no delay", 1) => Some(full / (BASE_MS + PER_INFERENCE_MS * full) * 1e3),
            ("no delay", 2) if clients >= 16 => {
                let took = (BASE_MS + PER_INFERENCE_MS * full) * (1.0 + OVERLAP);
                Some(2.0 * full / took * 1e3)
            }
            _ => None,
        }
    }
}

/// What the reference measured on its accelerator: batching, instances, clients, inferences a second.
const REFERENCE: [(&str, u32, usize, f64); 7] = [
    ("none", 1, 16, 975.0),
    ("no delay", 1, 2, 998.0),
    ("no delay", 1, 4, 1766.0),
    ("no delay", 1, 6, 2518.0),
    ("no delay", 1, 8, 3096.0),
    ("no delay", 1, 16, 3188.0),
    ("no delay", 2, 16, 4134.0),
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let usage = "usage: batching SKEP_BINARY";
    let binary: PathBuf = std::env::args().nth(1).context(usage)?.into();
    let root = tempfile::tempdir()?;
    let kind: Kind = "mlp:layers=512x512x512".parse()?;
    for row in MOCK.iter().chain(&MLP).chain([&INSTANT]) {
        if row.model == "mlp" {
            let model = skep_models::generate(&kind, &Options::default())?;
            model.write_repository(root.path(), &row.name(), Some(&row.config()))?;
        } else {
            let directory = root.path().join(row.name());
            std::fs::create_dir_all(directory.join("1"))?;
            std::fs::write(directory.join("config.pbtxt"), row.config())?;
        }
    }
    let server = ServerProcess::start(&binary, root.path())?;
    let mock = mock_inputs(REQUEST_BATCH)?;
    for clients in [2, 4, 6, 8, 16] {
        measure(&server, &MOCK, &mock, clients).await?;
    }
    let mlp = inputs(&kind, REQUEST_BATCH)?;
    for clients in [1, 4, 16] {
        measure(&server, &MLP, &mlp, clients).await?;
    }
    Ok(())
}

/// Measures rows side by side and prints them.
async fn measure(
    server: &ServerProcess,
    rows: &[BatchingRow],
    inputs: &[(String, Tensor)],
    clients: usize,
) -> Result<()> {
    let plan = ClosedLoop {
        concurrency: clients,
        connections: clients.min(4),
        warm_up: WARM_UP,
        duration: WINDOW,
    };
    let mut rounds: Vec<Vec<Value>> = rows.iter().map(|_| Vec::new()).collect();
    let client = Client::connect(server.grpc()).await?;
    let mut before = Vec::new();
    for row in rows {
        before.push(Lateness::of(&client, row).await?);
    }
    let mut turnarounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut instant = InferRequest::new(INSTANT.name());
        if rows[0].model == "mock" {
            instant.inputs = inputs.to_vec();
            let measured = closed_loop(server.grpc(), &instant, plan).await?;
            turnarounds.push(measured.quantile(0.5).as_secs_f64());
        }
        for (row, rounds) in rows.iter().zip(&mut rounds) {
            let mut request = InferRequest::new(row.name());
            request.inputs = inputs.to_vec();
            let cpu = cpu_time(server.pid())?;
            let measured = closed_loop(server.grpc(), &request, plan).await?;
            let cpu = cpu_time(server.pid())? - cpu;
            let sent = measured.rate() * (WARM_UP + WINDOW).as_secs_f64();
            rounds.push(json!({
                "rate": measured.rate() * REQUEST_BATCH as f64,
                "p50_ms": measured.quantile(0.5).as_secs_f64() * 1e3,
                "p95_ms": measured.quantile(0.95).as_secs_f64() * 1e3,
                "cpu_us": cpu.as_secs_f64() * 1e6 / sent,
            }));
        }
    }
    let turnaround = match turnarounds.as_slice() {
        [] => Duration::ZERO,
        all => Duration::from_secs_f64(median(all)),
    };
    for ((row, rounds), before) in rows.iter().zip(rounds).zip(before) {
        let of = |field: &str| {
            let values: Vec<f64> = rounds.iter().filter_map(|r| r[field].as_f64()).collect();
            median(&values)
        };
        let mock = row.model == "mock";
        let allowed = row.formula(clients).filter(|_| mock);
        let simulated = mock
            .then(|| row.simulated(clients, turnaround))
            .transpose()?;
        let same = |r: &&(&str, u32, usize, f64)| {
            mock && (r.0, r.1, r.2) == (row.batching, row.instances, clients)
        };
        let reference = REFERENCE.iter().find(same).map(|r| r.3);
        let late_us = Lateness::of(&client, row).await?.since(&before);
        // Executions that overlap take longer on purpose.
        let late_us = late_us.filter(|_| mock && row.instances == 1);
        println!(
            "{}",
            json!({
                "model": row.model, "batching": row.batching, "instances": row.instances, "clients": clients,
                "rate": of("rate"), "p50_ms": of("p50_ms"), "p95_ms": of("p95_ms"), "cpu_us": of("cpu_us"),
                "formula": allowed, "formula_ratio": allowed.map(|a| of("rate") / a),
                "simulated": simulated, "simulated_ratio": simulated.map(|s| of("rate") / s),
                "reference": reference, "late_us": late_us, "turnaround_us": turnaround.as_secs_f64() * 1e6, "rounds": rounds,
            })
        );
    }
    Ok(())
}

/// How long a mock's executions took, and how long they were asked to take.
struct Lateness {
    executions: f64,
    late_us: f64,
}

impl Lateness {
    async fn of(client: &Client, row: &BatchingRow) -> Result<Self> {
        let mut sum = Self {
            executions: 0.0,
            late_us: 0.0,
        };
        for version in client.statistics(Some(&row.name()), None).await? {
            for batches in version.batches {
                let executions = batches.compute_infer.count as f64;
                let asked_ms = BASE_MS + PER_INFERENCE_MS * batches.batch_size as f64;
                sum.executions += executions;
                sum.late_us += batches.compute_infer.ns as f64 / 1e3 - executions * asked_ms * 1e3;
            }
        }
        Ok(sum)
    }

    /// A mean execution's since then, in microseconds.
    fn since(&self, before: &Self) -> Option<f64> {
        let executions = self.executions - before.executions;
        (executions > 0.0).then(|| (self.late_us - before.late_us) / executions)
    }
}
