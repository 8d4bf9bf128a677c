//! What one request costs: `cargo xtask bench request-path [--triton]`.
//!
//! A model that computes nothing (identity over 16 floats, binary tensors), 16 requests outstanding. What the machine
//! allows: the system calls of one request over loopback (receive, send, wake-ups) cost about 12 us of CPU on the
//! machine of the published figures, and the load generator about as much again on the same cores.
//!
//! Measured in turns, round by round: the model on ONNX Runtime without a scheduler, the same with
//! `dynamic_batching {}`, the same request answered by the mock backend without any execution, and the cheapest route
//! of all (liveness). HTTP by `wrk -t1 -c16`, gRPC by the closed loop of this crate over 16 connections and over one
//! with 16 streams. With `--triton` a real Triton runs beside: one Python model, with and without response cache.
//! Printed: a JSON object a row.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use skep_client::InferRequest;
use skep_perf::{ClosedLoop, Server, closed_loop, cpu_time, median};
use skep_tensor::Tensor;
use skep_testkit::{Kind, Options};
use skep_types::{DataType, Shape};

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

/// The models of Triton: one Python model, computed and out of the response cache.
const TRITON_MODELS: [(&str, &str); 2] = [
    ("identity", "Python backend"),
    ("identity_cached", "response cache, no execution"),
];

struct Settings {
    binary: PathBuf,
    rounds: usize,
    window: Duration,
    /// Only what has this in its server, protocol, or way of answering.
    only: String,
    /// The script that installs and runs a Triton.
    triton: Option<PathBuf>,
}

/// One thing that is measured, over and over.
struct Target {
    server: &'static str,
    protocol: &'static str,
    answered_by: String,
    url: String,
    model: String,
    load: Load,
    pid: u32,
    rounds: Vec<Round>,
}

#[derive(Clone, Copy)]
enum Load {
    /// `wrk`, posting the request.
    Post,
    /// `wrk`, getting the URL.
    Get,
    /// gRPC over this many connections.
    Grpc { connections: usize },
}

struct Round {
    rate: f64,
    cpu_us: f64,
    p50_us: f64,
    p99_us: f64,
}

fn main() -> Result<()> {
    let settings = settings()?;
    ensure!(
        Command::new("wrk").arg("-v").output().is_ok(),
        "`wrk` is needed for the HTTP figures: install it, such as by `apt-get install wrk`"
    );
    let root = tempfile::tempdir()?;
    for (name, _, config) in SKEP_MODELS {
        let kind: Kind = format!("identity-fp32:width={WIDTH}").parse()?;
        skep_testkit::generate(&kind, &Options::default())?.write_repository(
            root.path(),
            name,
            None,
        )?;
        fs::write(root.path().join(name).join("config.pbtxt"), config)?;
    }
    let server = Server::start(&settings.binary, root.path())?;
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

fn settings() -> Result<Settings> {
    let mut args = std::env::args().skip(1);
    let binary = args
        .next()
        .context("usage: request_path SKEP_BINARY [--rounds N] [--seconds N] [--only TEXT] [--triton SCRIPT]")?;
    let mut settings = Settings {
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

fn skep_targets(server: &Server) -> Vec<Target> {
    let target = |protocol, answered_by: &str, url: String, model: &str, load| Target {
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
        Load::Get,
    )];
    for (name, answered_by, _) in SKEP_MODELS {
        let url = format!("{}/v2/models/{name}/infer", server.http());
        targets.push(target("HTTP", answered_by, url, name, Load::Post));
        for (protocol, connections) in GRPC {
            let load = Load::Grpc { connections };
            targets.push(target(
                protocol,
                answered_by,
                server.grpc().to_owned(),
                name,
                load,
            ));
        }
    }
    targets
}

const GRPC: [(&str, usize); 2] = [
    ("gRPC, 16 connections", CONCURRENCY),
    ("gRPC, 1 connection", 1),
];

impl Target {
    fn measure(
        &self,
        settings: &Settings,
        script: &Path,
        reactor: &tokio::runtime::Runtime,
    ) -> Result<Round> {
        match self.load {
            Load::Post => {
                wrk(self, WARM_UP, Some(script))?;
                wrk(self, settings.window, Some(script))
            }
            Load::Get => {
                wrk(self, WARM_UP, None)?;
                wrk(self, settings.window, None)
            }
            Load::Grpc { connections } => {
                reactor.block_on(grpc(self, connections, WARM_UP))?;
                reactor.block_on(grpc(self, connections, settings.window))
            }
        }
    }

    fn row(&self) -> Value {
        let all = |figure: fn(&Round) -> f64| self.rounds.iter().map(figure).collect::<Vec<f64>>();
        let (rates, cpu) = (all(|r| r.rate), all(|r| r.cpu_us));
        json!({
            "server": self.server, "protocol": self.protocol, "answered_by": self.answered_by,
            "rate": median(&rates), "cpu_us": median(&cpu),
            "p50_us": median(&all(|r| r.p50_us)), "p99_us": median(&all(|r| r.p99_us)),
            "rate_rounds": rates, "cpu_us_rounds": cpu, "p99_us_rounds": all(|r| r.p99_us),
        })
    }
}

/// The request as a `wrk` script.
fn lua() -> String {
    format!(
        r#"local json = '{{"inputs":[{{"name":"INPUT0","shape":[1,{WIDTH}],"datatype":"FP32","parameters":{{"binary_data_size":{}}}}}],"outputs":[{{"name":"OUTPUT0","parameters":{{"binary_data":true}}}}]}}'
wrk.method = "POST"
wrk.body = json .. string.rep(string.char(0, 0, 128, 63), {WIDTH})
wrk.headers["Inference-Header-Content-Length"] = tostring(#json)
wrk.headers["Content-Type"] = "application/octet-stream"
"#,
        WIDTH * size_of::<f32>()
    )
}

fn wrk(target: &Target, duration: Duration, script: Option<&Path>) -> Result<Round> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "--latency"]);
    command.arg(format!("-c{CONCURRENCY}"));
    command.arg(format!("-d{}s", duration.as_secs()));
    if let Some(script) = script {
        command.arg("-s").arg(script);
    }
    let before = tree_cpu_time(target.pid)?;
    let output = command.arg(&target.url).output()?;
    let cpu = tree_cpu_time(target.pid)? - before;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && !text.contains("Non-2xx") && !text.contains("Socket errors"),
        "wrk against {}:\n{text}",
        target.url
    );
    let after = |label: &str| -> Result<&str> {
        let line = text.lines().find(|line| line.trim().starts_with(label));
        let value = line.and_then(|line| line.trim()[label.len()..].split_whitespace().next());
        value.with_context(|| format!("wrk printed no `{label}`:\n{text}"))
    };
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .context("wrk printed no number of requests")?;
    Ok(Round {
        rate: after("Requests/sec:")?.parse()?,
        cpu_us: cpu.as_secs_f64() * 1e6 / requests.0.parse::<f64>()?,
        p50_us: microseconds(after("50%")?)?,
        p99_us: microseconds(after("99%")?)?,
    })
}

/// `wrk` prints latencies as `210.00us`, `1.24ms`, `1.02s`.
fn microseconds(text: &str) -> Result<f64> {
    let (number, scale) = [("us", 1.0), ("ms", 1e3), ("s", 1e6)]
        .into_iter()
        .find_map(|(unit, scale)| text.strip_suffix(unit).map(|number| (number, scale)))
        .with_context(|| format!("`{text}` is no latency"))?;
    Ok(number.parse::<f64>()? * scale)
}

async fn grpc(target: &Target, connections: usize, duration: Duration) -> Result<Round> {
    let data: Bytes = [1f32; WIDTH].iter().flat_map(|x| x.to_le_bytes()).collect();
    let tensor = Tensor::new(DataType::Fp32, Shape::new(&[1, WIDTH])?, data)?;
    let mut request = InferRequest::new(&target.model);
    request.inputs.push(("INPUT0".to_owned(), tensor));
    let plan = ClosedLoop {
        concurrency: CONCURRENCY,
        connections,
        warm_up: Duration::ZERO,
        duration,
    };
    let before = tree_cpu_time(target.pid)?;
    let measured = closed_loop(&target.url, &request, plan).await?;
    let cpu = tree_cpu_time(target.pid)? - before;
    let us = |share| measured.quantile(share).as_secs_f64() * 1e6;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let requests = measured.requests as f64;
    Ok(Round {
        rate: measured.rate(),
        cpu_us: cpu.as_secs_f64() * 1e6 / requests,
        p50_us: us(0.5),
        p99_us: us(0.99),
    })
}

/// CPU time of a process and all below it: Triton runs Python models in processes of their own.
fn tree_cpu_time(root: u32) -> Result<Duration> {
    let mut tree = vec![root];
    let mut total = Duration::ZERO;
    while let Some(pid) = tree.pop() {
        total += cpu_time(pid)?;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let children = fs::read_to_string(task?.path().join("children"))?;
            for child in children.split_whitespace() {
                tree.push(child.parse()?);
            }
        }
    }
    Ok(total)
}

/// A running Triton.
struct Triton {
    child: Child,
    http_port: u16,
    grpc_port: u16,
}

impl Triton {
    /// Long: the script may have to install it first.
    const START: Duration = Duration::from_secs(300);

    fn start(script: &Path) -> Result<Self> {
        // Bound and let go again, so that the ports are free now.
        let ports: Vec<std::net::TcpListener> = (0..3)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0"))
            .collect::<Result<_, _>>()?;
        let port = |index: usize| -> Result<u16> { Ok(ports[index].local_addr()?.port()) };
        let (http_port, grpc_port, metrics_port) = (port(0)?, port(1)?, port(2)?);
        drop(ports);
        let child = Command::new("bash")
            .arg(script)
            .args([http_port, grpc_port, metrics_port].map(|port| port.to_string()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut triton = Self {
            child,
            http_port,
            grpc_port,
        };
        let began = Instant::now();
        while !triton.is_ready() {
            if let Some(status) = triton.child.try_wait()? {
                bail!(
                    "{} ended: {status}; run it by hand to see why",
                    script.display()
                );
            }
            ensure!(
                began.elapsed() < Self::START,
                "Triton does not become ready"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(triton)
    }

    fn is_ready(&self) -> bool {
        let url = format!("http://127.0.0.1:{}/v2/health/ready", self.http_port);
        let curl = Command::new("curl").args(["-sf", &url]).status();
        curl.is_ok_and(|status| status.success())
    }

    fn targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        for (model, answered_by) in TRITON_MODELS {
            let mut add = |protocol, url, load| {
                targets.push(Target {
                    server: "Triton 2.51",
                    protocol,
                    answered_by: answered_by.to_owned(),
                    url,
                    model: model.to_owned(),
                    load,
                    pid: self.child.id(),
                    rounds: Vec::new(),
                });
            };
            let http = format!("http://127.0.0.1:{}", self.http_port);
            add(
                "HTTP",
                format!("{http}/v2/models/{model}/infer"),
                Load::Post,
            );
            for (protocol, connections) in GRPC {
                let url = format!("grpc://127.0.0.1:{}", self.grpc_port);
                add(protocol, url, Load::Grpc { connections });
            }
        }
        targets
    }
}

impl Drop for Triton {
    fn drop(&mut self) {
        // Nobody waits for its answers any more; an error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
