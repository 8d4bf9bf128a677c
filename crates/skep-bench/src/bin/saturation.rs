//! Served throughput at saturation beside the bare runtime's: `cargo xtask bench saturation`.
//!
//! What the machine allows: a served request costs its execution, and on the same cores the server's and the client's
//! work on bytes. For a request of `c` microseconds of CPU on `n` cores the ratio cannot pass `c / (c + overhead)`;
//! so it nears 1 where the model computes for milliseconds and falls where it computes for microseconds.
//!
//! One run: the best of threads and concurrent runs is searched for the bare runtime (ONNX Runtime called directly, no
//! server); then rounds of bare and served alternate, the server with that best setting. CPU time is counted too,
//! since it does not depend on who else shares the cores: of a bare run, and of a request at the server and at
//! the client. Printed: a JSON object a row.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::json;
use skep_backend_onnxruntime::{LibrarySearch, OnnxRuntime};
use skep_bench::{BareModel, named_inputs};
use skep_client::InferRequest;
use skep_models::{Inputs, Kind, Options};
use skep_perf::{ClosedLoop, ServerProcess, closed_loop, cpu_time, median};
use skep_tensor::Tensor;

const ROUNDS: usize = 5;
const SEARCH: Duration = Duration::from_secs(2);
const WINDOW: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_millis(500);

/// Kind and rows a request.
const SUBJECTS: [(&str, usize); 6] = [
    ("mlp", 1),
    ("mlp", 8),
    ("mlp", 64),
    ("mlp", 256),
    ("mobilenetv2", 1),
    ("text-recogniser", 1),
];

struct ServedModel {
    name: String,
    directory: PathBuf,
    inputs: Vec<(String, Tensor)>,
}

/// Threads an execution and concurrent executions.
#[derive(Debug, Clone, Copy)]
struct ThreadSetting {
    threads: u32,
    concurrent: usize,
}

fn main() -> Result<()> {
    let binary: PathBuf = std::env::args()
        .nth(1)
        .context("usage: saturation SKEP_BINARY [KIND]")?
        .into();
    let (runtime, _) = OnnxRuntime::start(&LibrarySearch::from_environment())?;
    let cores = thread::available_parallelism()?.get();
    // One thread: the client should take as little of the machine as it can.
    let reactor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let only = std::env::args().nth(2);
    for (kind, batch) in SUBJECTS
        .into_iter()
        .filter(|(kind, _)| only.as_deref().is_none_or(|only| only == *kind))
    {
        let root = tempfile::tempdir()?;
        let subject = subject(kind, batch, root.path())?;
        let mut settings = Vec::new();
        for threads in 1..=u32::try_from(cores)? {
            for concurrent in 1..=cores {
                settings.push(ThreadSetting {
                    threads,
                    concurrent,
                });
            }
        }
        let mut best = (0.0, settings[0]);
        for setting in settings {
            let (rate, _) = bare(&runtime, &subject, setting, SEARCH)?;
            eprintln!("{kind} batch {batch}: bare {setting:?}: {rate:.1} requests/s");
            if rate > best.0 {
                best = (rate, setting);
            }
        }
        let setting = best.1;
        write_config(&subject, setting)?;
        let server = ServerProcess::start(&binary, root.path())?;
        let mut request = InferRequest::new(&subject.name);
        request.inputs.clone_from(&subject.inputs);
        // One request more than run at once waits at the server, so that no instance ever waits for the client.
        let plan = ClosedLoop {
            concurrency: 2 * setting.concurrent + 2,
            connections: 2 * setting.concurrent + 2,
            warm_up: WARM_UP,
            duration: WINDOW,
        };
        let (mut bares, mut https, mut grpcs) = (Vec::new(), Vec::new(), Vec::new());
        let (mut bare_us, mut server_us, mut client_us) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (rate, cpu_us) = bare(&runtime, &subject, setting, WINDOW)?;
            bares.push(rate);
            bare_us.push(cpu_us);
            let before = (cpu_time(server.pid())?, cpu_time(std::process::id())?);
            let rate = reactor
                .block_on(closed_loop(server.http(), &request, plan))?
                .rate();
            let after = (cpu_time(server.pid())?, cpu_time(std::process::id())?);
            https.push(rate);
            server_us.push(per_run(after.0 - before.0, rate, WARM_UP + WINDOW));
            client_us.push(per_run(after.1 - before.1, rate, WARM_UP + WINDOW));
            grpcs.push(
                reactor
                    .block_on(closed_loop(server.grpc(), &request, plan))?
                    .rate(),
            );
        }
        let ratio = |rates: &[f64]| {
            let ratios: Vec<f64> = rates
                .iter()
                .zip(&bares)
                .map(|(served, bare)| served / bare)
                .collect();
            (median(&ratios), ratios)
        };
        let ((http, http_ratios), (grpc, grpc_ratios)) = (ratio(&https), ratio(&grpcs));
        let row = json!({
            "model": kind, "batch": batch, "threads": setting.threads, "instances": setting.concurrent,
            "bare": median(&bares), "http": median(&https), "grpc": median(&grpcs),
            "http_ratio": http, "grpc_ratio": grpc,
            "bare_cpu_us": median(&bare_us), "server_cpu_us": median(&server_us), "client_cpu_us": median(&client_us),
            "cpu_ratio": median(&bare_us) / median(&server_us),
            "bare_rounds": bares, "http_rounds": https, "grpc_rounds": grpcs,
            "http_ratios": http_ratios, "grpc_ratios": grpc_ratios,
        });
        println!("{row}");
    }
    Ok(())
}

/// Microseconds of CPU a run.
fn per_run(cpu: Duration, rate: f64, time: Duration) -> f64 {
    cpu.as_secs_f64() * 1e6 / (rate * time.as_secs_f64())
}

fn subject(kind: &str, batch: usize, root: &std::path::Path) -> Result<ServedModel> {
    let kind: Kind = kind.parse()?;
    let name = kind.name();
    skep_models::generate(&kind, &Options::default())?.write_repository(root, &name, None)?;
    let inputs = named_inputs(
        &kind,
        Inputs {
            seed: 1,
            batch,
            sequence: 1,
        },
    )?;
    Ok(ServedModel {
        directory: root.join(&name),
        name,
        inputs,
    })
}

fn config_text(setting: ThreadSetting) -> String {
    format!(
        "backend: \"onnxruntime\"
         max_batch_size: 256
         instance_group {{ count: {} kind: KIND_CPU }}
         parameters {{ key: \"intra_op_thread_count\" value {{ string_value: \"{}\" }} }}",
        setting.concurrent, setting.threads
    )
}

fn write_config(subject: &ServedModel, setting: ThreadSetting) -> Result<()> {
    Ok(std::fs::write(
        subject.directory.join("config.pbtxt"),
        config_text(setting),
    )?)
}

/// Runs the model without any server, for its rate a second and its CPU time a run in microseconds: `concurrent`
/// threads over one session.
fn bare(
    runtime: &OnnxRuntime,
    subject: &ServedModel,
    setting: ThreadSetting,
    window: Duration,
) -> Result<(f64, f64)> {
    let tensors = subject.inputs.iter().map(|(_, tensor)| tensor.clone());
    let bare = BareModel::load(
        runtime,
        &subject.directory.join("1/model.onnx"),
        &config_text(setting),
        tensors.collect(),
    )?;
    let (count, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut instances = Vec::new();
    for _ in 0..setting.concurrent {
        instances.push(bare.instance()?);
    }
    thread::scope(|scope| {
        for mut instance in instances {
            let (count, stop, bare) = (&count, &stop, &bare);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    bare.run(&mut *instance).expect("the model runs");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(WARM_UP);
        let own = std::process::id();
        let (before, began, cpu) = (
            count.load(Ordering::Relaxed),
            Instant::now(),
            cpu_time(own)?,
        );
        thread::sleep(window);
        let (after, elapsed) = (count.load(Ordering::Relaxed), began.elapsed());
        stop.store(true, Ordering::Relaxed);
        let rate = (after - before) as f64 / elapsed.as_secs_f64();
        Ok((rate, per_run(cpu_time(own)? - cpu, rate, elapsed)))
    })
}
