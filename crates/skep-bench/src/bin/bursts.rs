//! What batching policies make of bursts: `cargo xtask bench bursts [--trace FILE] [--rounds N] [--seconds N]`.
//!
//! An open loop over gRPC sends requests at recorded moments, at some loads; the same moments go through the simulator.
//! Two models: a mock that stands for an accelerator of its own (1.87 ms an execution and 0.087 ms an inference), and
//! an MLP on ONNX Runtime, whose weights do not fit a core's cache, so that batching pays. What the MLP's executions
//! take is measured first, one request at a time: load 1 is what full batches carry by that. The simulator's table is
//! what its executions took in the round itself, by size.
//!
//! A request counts as good if its answer is there within the objective, seen from its moment at the client: what the
//! sender is late counts against the server. Every policy is a model of its own on one server. In each round all
//! policies get the same requests; the next round has others, unless they are from a file. Printed: a JSON object for
//! each model, load and policy, medians of the rounds.

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use skep_client::{BatchSizeStatistics, Client, InferRequest, ModelStatistics};
use skep_models::{Kind, Options};
use skep_perf::{Fate, OpenLoop, Sent, ServerProcess, median, open_loop};
use skep_scheduler::{
    Objective, ObjectivePolicy, Percentile, Policy, SchedulerOptions, TimeoutAction, TritonPolicy,
    profile_sizes,
};
use skep_sim::{
    Arrivals, Contender, LatencyTable, RandomPurpose, RandomStream, RecordedArrivals, Setup,
    SimulatedModel, TraceOutcome, Workload, simulate,
};
use skep_tensor::Tensor;
use skep_types::Time;

use skep_bench::batched::{
    BASE_MS, MLP_PORTS, PER_INFERENCE_MS, inputs, mock_config, mock_inputs, parameter,
};

const LOADS: [f64; 3] = [0.5, 0.9, 1.2];
const MAX_BATCH: usize = 16;
const CONNECTIONS: usize = 4;

/// The standard deviation of gaps between requests over their mean, where no file says otherwise.
const VARIATION: f64 = 4.0;

const MLP: &str = "mlp:layers=512x2048x2048x2048x512";

/// Executions of each size from which the MLP's table is made.
const CALIBRATION: usize = 30;

/// What a policy without time-outs still owes when the last request is sent; what is later is too late in any case.
const PATIENCE: Duration = Duration::from_millis(500);

/// From one run to the next, so that nothing of it is left.
const PAUSE: Duration = Duration::from_millis(300);

/// Goodputs that the simulator finds closer than this are as good as each other.
const EQUAL: f64 = 0.05;

/// A model that is measured.
struct BurstSubject {
    name: &'static str,
    objective: Duration,
    inputs: Vec<(String, Tensor)>,
    table: LatencyTable,
    /// Whether executions take what the table says, and not what they take.
    scripted: bool,
}

const CONTENDERS: [Contender; 7] = [
    Contender::None,
    Contender::TritonDefault,
    Contender::Objective(ObjectivePolicy::Aimd),
    Contender::Objective(ObjectivePolicy::Quantile),
    Contender::Objective(ObjectivePolicy::Edf),
    Contender::Objective(ObjectivePolicy::Deferred),
    Contender::Objective(ObjectivePolicy::Auto),
];

/// The part of a configuration that chooses a policy.
fn policy_config(contender: &Contender, objective: Duration) -> String {
    match contender {
        Contender::TritonDefault => "dynamic_batching {}".to_owned(),
        Contender::Objective(policy) => {
            let ms = objective.as_secs_f64() * 1e3;
            parameter("slo_latency_ms", &ms.to_string())
                + &parameter("batching_policy", policy.name())
        }
        _ => String::new(),
    }
}

/// What a policy's scheduler is made with on the server, once a warm-up has measured what executions take.
fn scheduler(contender: &Contender, objective: Duration, table: &LatencyTable) -> SchedulerOptions {
    let mut options = SchedulerOptions::one_by_one(16_384);
    match contender {
        Contender::TritonDefault => options.policy = Policy::Triton(TritonPolicy::default()),
        Contender::Objective(policy) => {
            let profile = profile_sizes(MAX_BATCH);
            options.policy = Policy::Objective(Objective {
                latency: objective,
                policy: *policy,
                miss_action: TimeoutAction::Reject,
                percentile: Percentile::default(),
                margin: (objective / 20).min(Duration::from_millis(5)),
                profile: profile.map(|b| (b, table.latency(b))).collect(),
            });
        }
        _ => return options,
    }
    options.max_batch_size = MAX_BATCH;
    options
}

struct BurstSettings {
    binary: PathBuf,
    arrivals: Arrivals,
    rounds: u64,
    seconds: f64,
}

impl BurstSettings {
    fn parse() -> Result<Self> {
        let mut args = std::env::args().skip(1);
        let usage = "usage: bursts SKEP_BINARY [--trace FILE] [--rounds N] [--seconds N]";
        let mut settings = Self {
            binary: args.next().context(usage)?.into(),
            arrivals: Arrivals::Bursty {
                variation: VARIATION,
            },
            rounds: 3,
            seconds: 2.5,
        };
        while let Some(flag) = args.next() {
            let value = args
                .next()
                .with_context(|| format!("`{flag}` needs a value"))?;
            match flag.as_str() {
                "--trace" => {
                    let text = std::fs::read_to_string(&value)
                        .with_context(|| format!("cannot read `{value}`"))?;
                    settings.arrivals = Arrivals::Recorded(RecordedArrivals::parse(&text)?);
                }
                "--rounds" => settings.rounds = value.parse()?,
                "--seconds" => settings.seconds = value.parse()?,
                _ => bail!("unknown flag `{flag}`\n{usage}"),
            }
        }
        Ok(settings)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let settings = BurstSettings::parse()?;
    let root = tempfile::tempdir()?;
    let kind: Kind = MLP.parse()?;
    let (mock, mlp) = (Duration::from_millis(20), Duration::from_millis(60));
    write_models(root.path(), &kind, mock, mlp)?;
    let server = ServerProcess::start(&settings.binary, root.path())?;
    let mut subjects = vec![BurstSubject {
        name: "mock",
        objective: mock,
        inputs: mock_inputs(1)?,
        table: LatencyTable::affine(BASE_MS, PER_INFERENCE_MS, MAX_BATCH)?,
        scripted: true,
    }];
    subjects.push(BurstSubject {
        name: "mlp",
        objective: mlp,
        inputs: inputs(&kind, 1)?,
        table: calibrate(&server, &kind).await?,
        scripted: false,
    });
    for subject in &subjects {
        for load in LOADS {
            measure(&server, &settings, subject, load).await?;
        }
    }
    Ok(())
}

/// The name of a subject under a policy in the repository.
fn model_name(subject: &str, contender: &Contender) -> String {
    format!("{subject}_{}", contender.name())
}

fn write_models(root: &Path, kind: &Kind, mock: Duration, mlp: Duration) -> Result<()> {
    let generated = skep_models::generate(kind, &Options::default())?;
    for contender in &CONTENDERS {
        let group =
            format!("max_batch_size: {MAX_BATCH} instance_group {{ kind: KIND_CPU count: 1 }}");
        let config = format!(
            "backend: \"mock\" {group} {} {}",
            policy_config(contender, mock),
            mock_config(BASE_MS, PER_INFERENCE_MS),
        );
        let directory = root.join(model_name("mock", contender));
        std::fs::create_dir_all(directory.join("1"))?;
        std::fs::write(directory.join("config.pbtxt"), config)?;
        let config = format!(
            "backend: \"onnxruntime\" {group} {}{MLP_PORTS}{}",
            policy_config(contender, mlp),
            parameter("intra_op_thread_count", "1"),
        );
        generated.write_repository(root, &model_name("mlp", contender), Some(&config))?;
    }
    Ok(())
}

/// What executions of the MLP take, by size, at best: one request at a time, and the least, since it sets the loads,
/// which should be the same whatever else the machine does meanwhile.
async fn calibrate(server: &ServerProcess, kind: &Kind) -> Result<LatencyTable> {
    let client = Client::connect(server.grpc()).await?;
    let model = model_name("mlp", &Contender::None);
    let mut table = String::new();
    for size in profile_sizes(MAX_BATCH) {
        let mut request = InferRequest::new(model.clone());
        request.inputs = inputs(kind, size)?;
        let mut least_ms = f64::INFINITY;
        let mut before = busy_ns(&statistics(&client, &model).await?);
        for _ in 0..CALIBRATION {
            client.infer(&request).await?;
            let after = busy_ns(&statistics(&client, &model).await?);
            least_ms = least_ms.min((after - before) as f64 / 1e6);
            before = after;
        }
        writeln!(table, "{size},{least_ms}")?;
    }
    eprint!("what the MLP's executions take, in ms:\n{table}");
    Ok(LatencyTable::measured(&table, MAX_BATCH)?)
}

async fn statistics(client: &Client, model: &str) -> Result<ModelStatistics> {
    let mut all = client.statistics(Some(model), None).await?;
    all.pop().context("the model has statistics")
}

/// How long instances held batches so far.
fn busy_ns(statistics: &ModelStatistics) -> u64 {
    let batches = statistics.batches.iter();
    batches.map(|batch| executions_of(batch).1).sum()
}

/// Executions of a size, and their nanoseconds.
fn executions_of(batch: &BatchSizeStatistics) -> (u64, u64) {
    let phases = [
        batch.compute_input,
        batch.compute_infer,
        batch.compute_output,
    ];
    (
        batch.compute_infer.count,
        phases.iter().map(|phase| phase.ns).sum(),
    )
}

/// Measures all policies at one load, and prints what came of it.
async fn measure(
    server: &ServerProcess,
    settings: &BurstSettings,
    subject: &BurstSubject,
    load: f64,
) -> Result<()> {
    let rate = load
        * SimulatedModel::new(subject.table.clone(), 1)
            .capacity()
            .rate;
    let count = (rate * settings.seconds).round();
    ensure!(
        (100.0..1e6).contains(&count),
        "{count} requests a run, expected 100 to 1,000,000: see --seconds"
    );
    #[expect(clippy::cast_sign_loss, reason = "within the range above")]
    let count = count as usize;
    let mut rounds: Vec<Vec<Value>> = CONTENDERS.map(|_| Vec::new()).to_vec();
    for seed in 0..settings.rounds {
        let mut random = RandomStream::new(seed, RandomPurpose::Arrivals);
        let arrivals = settings.arrivals.generate(rate, count, &mut random);
        let mut runs = Vec::new();
        for contender in &CONTENDERS {
            runs.push(run(server, subject, contender, &arrivals).await?);
            tokio::time::sleep(PAUSE).await;
        }
        let table = if subject.scripted {
            subject.table.clone()
        } else {
            executed(&runs)?
        };
        let model = SimulatedModel::new(table, 1);
        for ((contender, run), rounds) in CONTENDERS.iter().zip(&runs).zip(&mut rounds) {
            let simulated = simulate(
                Setup {
                    scheduler: scheduler(contender, subject.objective, &model.table),
                    model: &model,
                    objective: Some(subject.objective),
                    warm_up: warm_up(count),
                    seed,
                },
                Workload::Open(&arrivals),
            );
            rounds.push(figures(run, &simulated));
        }
    }
    let of = |index: usize, field: &str| {
        let rounds = rounds[index].iter();
        let values: Vec<f64> = rounds.filter_map(|round| round[field].as_f64()).collect();
        // A latency that was not reached in most rounds has no median.
        (2 * values.len() > rounds_len(settings)).then(|| median(&values))
    };
    let goodputs = |field: &str| -> Vec<f64> {
        let all = 0..CONTENDERS.len();
        all.map(|index| of(index, field).unwrap_or(0.0)).collect()
    };
    let (goodput, simulated) = (goodputs("goodput"), goodputs("simulated_goodput"));
    for (index, contender) in CONTENDERS.iter().enumerate() {
        let mut row = json!({
            "model": subject.name, "load": load, "policy": contender.name(),
            "in_order": in_order(index, &goodput, &simulated),
        });
        for field in FIELDS {
            row[field] = json!(of(index, field));
        }
        row["rounds"] = json!(rounds[index]);
        println!("{row}");
    }
    Ok(())
}

fn rounds_len(settings: &BurstSettings) -> usize {
    usize::try_from(settings.rounds).unwrap_or(usize::MAX)
}

/// Requests before the first that counts.
fn warm_up(count: usize) -> usize {
    count / 10
}

/// On how many of the other policies this one lies on the side, better or worse, where the simulator has it.
fn in_order(index: usize, goodput: &[f64], simulated: &[f64]) -> String {
    let others = (0..goodput.len()).filter(|other| *other != index);
    let apart: Vec<usize> = others
        .filter(|other| {
            let (a, b) = (simulated[index], simulated[*other]);
            (a - b).abs() > EQUAL * a.max(b)
        })
        .collect();
    let same = apart.iter().filter(|other| {
        (goodput[index] > goodput[**other]) == (simulated[index] > simulated[**other])
    });
    format!("{}/{}", same.count(), apart.len())
}

/// What a run gave.
struct BurstRun {
    /// Without the warm-up.
    sent: Vec<Sent>,
    span: Duration,
    objective: Duration,
    /// With the warm-up.
    mean_batch: f64,
    busy: f64,
    /// By batch size: executions, and their nanoseconds.
    executed: BTreeMap<u64, (u64, u64)>,
}

/// What executions of these runs took, by size: means.
fn executed(runs: &[BurstRun]) -> Result<LatencyTable> {
    let mut sums: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (size, (count, ns)) in runs.iter().flat_map(|run| &run.executed) {
        let sum = sums.entry(*size).or_default();
        *sum = (sum.0 + count, sum.1 + ns);
    }
    let mut table = String::new();
    for (size, (count, ns)) in sums.iter().filter(|(_, (count, _))| *count > 0) {
        writeln!(table, "{size},{}", *ns as f64 / *count as f64 / 1e6)?;
    }
    Ok(LatencyTable::measured(&table, MAX_BATCH)?)
}

async fn run(
    server: &ServerProcess,
    subject: &BurstSubject,
    contender: &Contender,
    arrivals: &[Time],
) -> Result<BurstRun> {
    let name = model_name(subject.name, contender);
    let client = Client::connect(server.grpc()).await?;
    let mut request = InferRequest::new(name.clone());
    request.inputs.clone_from(&subject.inputs);
    let moments: Vec<Duration> = arrivals.iter().map(|at| at.since(Time::ZERO)).collect();
    let plan = OpenLoop {
        connections: CONNECTIONS,
        patience: PATIENCE,
    };
    let before = statistics(&client, &name).await?;
    let mut sent = open_loop(server.grpc(), &request, plan, &moments).await?;
    let after = statistics(&client, &name).await?;
    let warm_up = warm_up(moments.len());
    sent.drain(..warm_up);
    let last = moments[moments.len() - 1];
    let inferences = after.inference_count - before.inference_count;
    let executions = after.execution_count - before.execution_count;
    let busy = Duration::from_nanos(busy_ns(&after) - busy_ns(&before));
    let known = before.batches.iter();
    let known: BTreeMap<u64, (u64, u64)> =
        known.map(|b| (b.batch_size, executions_of(b))).collect();
    let executed = after.batches.iter().map(|batch| {
        let (count, ns) = executions_of(batch);
        let before = known.get(&batch.batch_size).copied().unwrap_or_default();
        (batch.batch_size, (count - before.0, ns - before.1))
    });
    let executed = executed.collect();
    Ok(BurstRun {
        sent,
        span: last - moments[warm_up - 1],
        objective: subject.objective,
        mean_batch: inferences as f64 / executions.max(1) as f64,
        busy: busy.as_secs_f64() / last.as_secs_f64(),
        executed,
    })
}

/// What is summed up over rounds.
const FIELDS: [&str; 15] = [
    "offered",
    "goodput",
    "simulated_goodput",
    "goodput_ratio",
    "p50_ms",
    "simulated_p50_ms",
    "p99_ms",
    "simulated_p99_ms",
    "refused",
    "simulated_refused",
    "mean_batch",
    "simulated_mean_batch",
    "busy",
    "sender_p50_ms",
    "sender_p99_ms",
];

fn figures(run: &BurstRun, simulated: &TraceOutcome) -> Value {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let count = |wanted: fn(Fate, Duration) -> bool| {
        let sent = run.sent.iter();
        sent.filter(|one| wanted(one.fate, run.objective)).count() as f64
    };
    let good =
        count(|fate, objective| matches!(fate, Fate::Answered(latency) if latency <= objective));
    let goodput = good / run.span.as_secs_f64();
    let refused = count(|fate, _| fate == Fate::Refused) / run.sent.len() as f64;
    // What was not answered took longer than all that was.
    let mut latencies: Vec<Option<Duration>> = Vec::new();
    for one in &run.sent {
        match one.fate {
            Fate::Answered(latency) => latencies.push(Some(latency)),
            Fate::Unanswered => latencies.push(None),
            Fate::Refused => {}
        }
    }
    latencies.sort_by_key(|latency| latency.unwrap_or(Duration::MAX));
    let answered = |share| rank(&latencies, share).flatten().map(ms);
    let mut late: Vec<Duration> = run.sent.iter().map(|one| one.late).collect();
    late.sort_unstable();
    json!({
        "offered": run.sent.len() as f64 / run.span.as_secs_f64(),
        "goodput": goodput, "simulated_goodput": simulated.goodput(),
        "goodput_ratio": (simulated.goodput() > 0.0).then(|| goodput / simulated.goodput()),
        "p50_ms": answered(0.5), "simulated_p50_ms": simulated.quantile(0.5).map(ms),
        "p99_ms": answered(0.99), "simulated_p99_ms": simulated.quantile(0.99).map(ms),
        "refused": refused,
        "simulated_refused": simulated.rejected as f64 / simulated.sent.max(1) as f64,
        "unanswered": count(|fate, _| fate == Fate::Unanswered) / run.sent.len() as f64,
        "mean_batch": run.mean_batch, "simulated_mean_batch": simulated.mean_batch(),
        "busy": run.busy,
        "sender_p50_ms": rank(&late, 0.5).map(ms), "sender_p99_ms": rank(&late, 0.99).map(ms),
        "sender_max_ms": late.last().copied().map(ms),
    })
}

/// What this share of an ascending list does not exceed; none for an empty one.
fn rank<T: Copy>(ascending: &[T], share: f64) -> Option<T> {
    #[expect(clippy::cast_sign_loss, reason = "between 0 and the list's length")]
    let rank = (share * ascending.len() as f64).ceil() as usize;
    ascending.get(rank.saturating_sub(1)).copied()
}
