//! What one request costs: `cargo xtask bench request-path [--triton]`.
//!
//! A model that computes nothing (identity over 16 floats, binary tensors), 16 requests outstanding. What the machine
//! allows: the system calls of one request over loopback (receive, send, wake-ups) cost about 12 us of CPU on the
//! machine of the published figures, and the load generator about as much again on the same cores.
//!
//! Measured in turns, round by round: the model on ONNX Runtime without a scheduler, the same with
//! `dynamic_batching {}`, the same request answered by the mock backend without any execution, and the cheapest route
//! of all (liveness). HTTP by `wrk -t1 -c16`, gRPC by `h2load -t1` over 16 connections and over one with 16 streams,
//! and once more by a client as people have them, the closed loop of this crate: it takes so much of the machine that
//! the server sleeps and wakes between requests. With `--triton` a real Triton runs beside: one Python model, with and
//! without response cache. Printed: a JSON object a row.

mod load;
mod triton;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use skep_models::{Kind, Options};
use skep_perf::{ServerProcess, median};

use load::{client, h2load, lua, wrk};
use triton::Triton;

const CONCURRENCY: usize = 16;
const WIDTH: usize = 16;
const WARM_UP: Duration = Duration::from_secs(1);

/// The models of Skep: name, how its requests are answered, configuration.
const SKEP_MODELS: [(&str, &str, &str); 3] = [
    (
        "plain",
        "ONNX Runtime, no scheduler",
        r#"backend: "onnxruntime" max_batch_size: 8
instance_group { kind: KIND_CPU count: 1 }
input { name: "INPUT0" data_type: TYPE_FP32 dims: 16 } output { name: "OUTPUT0" data_type: TYPE_FP32 dims: 16 }"#,
    ),
    (
        "batching",
        "ONNX Runtime, dynamic_batching {}",
        r#"backend: "onnxruntime" max_batch_size: 8 dynamic_batching {}
instance_group { kind: KIND_CPU count: 1 }
input { name: "INPUT0" data_type: TYPE_FP32 dims: 16 } output { name: "OUTPUT0" data_type: TYPE_FP32 dims: 16 }"#,
    ),
    (
        "mock",
        "no execution",
        r#"backend: "mock" max_batch_size: 8
instance_group { kind: KIND_CPU count: 1 }
input { name: "INPUT0" data_type: TYPE_FP32 dims: 16 } output { name: "OUTPUT0" data_type: TYPE_FP32 dims: 16 }"#,
    ),
];

struct RequestPathSettings {
    binary: PathBuf,
    rounds: usize,
    window: Duration,
    /// Only what has this in its server, protocol, or way of answering.
    only: String,
    /// The script that installs and runs a Triton.
    triton: Option<PathBuf>,
}

/// One thing that is measured, over and over.
struct LoadTarget {
    server: &'static str,
    protocol: &'static str,
    answered_by: String,
    url: String,
    model: String,
    load: LoadKind,
    pid: u32,
    rounds: Vec<LoadRound>,
}

#[derive(Clone, Copy)]
enum LoadKind {
    /// `wrk`, posting the request.
    Post,
    /// `wrk`, getting the URL.
    Get,
    /// `h2load`, calling `ModelInfer` over this many connections.
    Grpc { connections: usize },
    /// This crate's client, over this many connections.
    Client { connections: usize },
}

struct LoadRound {
    rate: f64,
    cpu_us: f64,
    p50_us: f64,
    p99_us: f64,
}

fn main() -> Result<()> {
    let settings = settings()?;
    for (tool, package) in [("wrk", "wrk"), ("h2load", "nghttp2-client")] {
        ensure!(
            Command::new(tool).arg("--version").output().is_ok(),
            "`{tool}` is needed: install it, such as by `apt-get install {package}`"
        );
    }
    let root = tempfile::tempdir()?;
    for (name, _, config) in SKEP_MODELS {
        let kind: Kind = format!("identity-fp32:width={WIDTH}").parse()?;
        skep_models::generate(&kind, &Options::default())?.write_repository(
            root.path(),
            name,
            None,
        )?;
        fs::write(root.path().join(name).join("config.pbtxt"), config)?;
    }
    let server = ServerProcess::start(&settings.binary, root.path())?;
    let mut targets = skep_targets(&server);
    let triton = settings.triton.as_deref().map(Triton::start).transpose()?;
    if let Some(triton) = &triton {
        targets.extend(triton.targets());
    }
    targets.retain(|target| {
        let name = format!(
            "{} {} {}",
            target.server, target.protocol, target.answered_by
        );
        name.contains(&settings.only)
    });
    let script = root.path().join("post.lua");
    fs::write(&script, lua())?;
    // One thread: the client should take as little of the machine as it can.
    let reactor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    for round in 0..settings.rounds {
        for target in &mut targets {
            let measured = target.measure(&settings, &script, &reactor)?;
            eprintln!(
                "round {round}: {} {} {}: {:.0}/s, {:.1} us of CPU",
                target.server, target.protocol, target.answered_by, measured.rate, measured.cpu_us
            );
            target.rounds.push(measured);
        }
    }
    for target in &targets {
        println!("{}", target.row());
    }
    Ok(())
}

fn settings() -> Result<RequestPathSettings> {
    let mut args = std::env::args().skip(1);
    let binary = args
        .next()
        .context("usage: request_path SKEP_BINARY [--rounds N] [--seconds N] [--only TEXT] [--triton SCRIPT]")?;
    let mut settings = RequestPathSettings {
        binary: binary.into(),
        rounds: 5,
        window: Duration::from_secs(8),
        only: String::new(),
        triton: None,
    };
    while let Some(flag) = args.next() {
        let value = args
            .next()
            .with_context(|| format!("`{flag}` needs a value"))?;
        match flag.as_str() {
            "--rounds" => settings.rounds = value.parse()?,
            "--seconds" => settings.window = Duration::from_secs(value.parse()?),
            "--only" => settings.only = value,
            "--triton" => settings.triton = Some(value.into()),
            _ => bail!("unknown flag `{flag}`"),
        }
    }
    Ok(settings)
}

fn skep_targets(server: &ServerProcess) -> Vec<LoadTarget> {
    let target = |protocol, answered_by: &str, url: String, model: &str, load| LoadTarget {
        server: "Skep",
        protocol,
        answered_by: answered_by.to_owned(),
        url,
        model: model.to_owned(),
        load,
        pid: server.pid(),
        rounds: Vec::new(),
    };
    let mut targets = vec![target(
        "HTTP",
        "liveness",
        format!("{}/v2/health/live", server.http()),
        "",
        LoadKind::Get,
    )];
    for (name, answered_by, _) in SKEP_MODELS {
        let url = format!("{}/v2/models/{name}/infer", server.http());
        targets.push(target("HTTP", answered_by, url, name, LoadKind::Post));
        for (protocol, load) in GRPC {
            let url = server.grpc().to_owned();
            targets.push(target(protocol, answered_by, url, name, load));
        }
    }
    let (name, answered_by, _) = SKEP_MODELS[0];
    for (protocol, load) in CLIENT {
        let url = server.grpc().to_owned();
        targets.push(target(protocol, answered_by, url, name, load));
    }
    targets
}

const GRPC: [(&str, LoadKind); 2] = [
    (
        "gRPC, 16 connections",
        LoadKind::Grpc {
            connections: CONCURRENCY,
        },
    ),
    ("gRPC, 1 connection", LoadKind::Grpc { connections: 1 }),
];

/// Of the first model only.
const CLIENT: [(&str, LoadKind); 2] = [
    (
        "gRPC by a Rust client, 16 connections",
        LoadKind::Client {
            connections: CONCURRENCY,
        },
    ),
    (
        "gRPC by a Rust client, 1 connection",
        LoadKind::Client { connections: 1 },
    ),
];

impl LoadTarget {
    fn measure(
        &self,
        settings: &RequestPathSettings,
        script: &Path,
        reactor: &tokio::runtime::Runtime,
    ) -> Result<LoadRound> {
        match self.load {
            LoadKind::Post => {
                wrk(self, WARM_UP, Some(script))?;
                wrk(self, settings.window, Some(script))
            }
            LoadKind::Get => {
                wrk(self, WARM_UP, None)?;
                wrk(self, settings.window, None)
            }
            LoadKind::Grpc { connections } => {
                h2load(self, connections, WARM_UP)?;
                h2load(self, connections, settings.window)
            }
            LoadKind::Client { connections } => {
                reactor.block_on(client(self, connections, WARM_UP))?;
                reactor.block_on(client(self, connections, settings.window))
            }
        }
    }

    fn row(&self) -> Value {
        let all =
            |figure: fn(&LoadRound) -> f64| self.rounds.iter().map(figure).collect::<Vec<f64>>();
        let (rates, cpu) = (all(|r| r.rate), all(|r| r.cpu_us));
        json!({
            "server": self.server, "protocol": self.protocol, "answered_by": self.answered_by,
            "rate": median(&rates), "cpu_us": median(&cpu),
            "p50_us": median(&all(|r| r.p50_us)), "p99_us": median(&all(|r| r.p99_us)),
            "rate_rounds": rates, "cpu_us_rounds": cpu, "p99_us_rounds": all(|r| r.p99_us),
        })
    }
}
