//! What intermediate tensors take, and what that costs: `cargo xtask bench arena`.
//!
//! A run's tensors by five means: Skep's planned arena; ONNX Runtime's default, its arena with its memory pattern; its
//! arena alone; its memory pattern alone; `malloc` a tensor. Peak bytes are counted at the allocator where that is
//! Skep's, and read off the library's own log (by `regions.py`, whose rows are merged here) where it is the library's
//! arena; for all of them the growth of the process while it runs is measured as well, each in a process of its own
//! (the kernel's high-water mark of resident pages, reset after loading). Latency: all five in one process, in turn,
//! run by run. Printed: a JSON object for each model, batch size, number of instances and means.
//!
//! Beside the recorded plan, which is what the arena replays, stand the *graph* plans: over the tensors that the file
//! names, each in memory of its own; the same with what operators could do in place; and as ONNX Runtime is predicted
//! to rewrite the graph.

use std::{
    collections::BTreeMap, fs, path::Path, process::Command, sync::Barrier, thread, time::Instant,
};

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use skep_backend::RunMemory;
use skep_backend_onnxruntime::{LibrarySearch, OnnxRuntime};
use skep_bench::{BareModel, named_inputs};
use skep_estimate::{CpuTraits, RewriteLevel, graph_usage};
use skep_models::{Inputs, Kind, Options};
use skep_onnx::OnnxModel;
use skep_perf::median;
use skep_planner::{Budget, auto};
use skep_shapes::{GivenShapes, infer_shapes};

/// Kinds, and of how many runs at batch 1 latency is taken; of fewer where several run at once, or larger ones.
const SUBJECTS: [(&str, usize); 6] = [
    ("mlp", 20_000),
    ("cnn", 4000),
    ("mobilenetv2", 200),
    ("resnet50", 60),
    ("text-recogniser", 60),
    ("bert-base", 24),
];
const MIN_RUNS: usize = 6;
/// Graphs of models need fewer.
const PLANNING_NODES: u64 = 100_000;
const BATCHES: [usize; 2] = [1, 8];
const INSTANCES: [usize; 2] = [1, 4];
/// Tokens of a text, pixels of a line's width divided by the kind's step: as long as usual requests.
const SEQUENCE: usize = 64;
/// Runs of an instance before memory is looked at: the library's arena takes three until it is settled.
const SETTLING: usize = 4;

/// A means, and the parameters that choose it.
const MEANS: [(&str, &[(&str, &str)]); 5] = [
    ("planned", &[("memory_planner", "planned")]),
    ("runtime's default", &[("memory_planner", "runtime")]),
    (
        "runtime's arena",
        &[("memory_planner", "runtime"), ("enable_mem_pattern", "0")],
    ),
    (
        "memory pattern",
        &[("memory_planner", "malloc"), ("enable_mem_pattern", "1")],
    ),
    ("malloc", &[("memory_planner", "malloc")]),
];

/// As in the server.
#[global_allocator]
static HEAP: skep_heap::SplitHeap = skep_heap::SplitHeap;

const USAGE: &str = "usage: arena [KIND...] | arena --memory FILE KIND BATCH INSTANCES MEANS";

fn main() -> Result<()> {
    skep_heap::bound_kept_memory();
    // `cargo xtask bench` passes the server first; none is needed.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("--memory", rest)) = arguments.split_first().map(|(a, b)| (a.as_str(), b)) {
        let [file, kind, batch, instances, means] = rest else {
            anyhow::bail!(USAGE);
        };
        let row = memory(
            Path::new(file),
            kind,
            batch.parse()?,
            instances.parse()?,
            means,
        )?;
        println!("{row}");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    for (kind, runs) in SUBJECTS {
        let named = |argument: &String| kind == argument;
        let any = arguments
            .iter()
            .any(|a| SUBJECTS.iter().any(|(k, _)| k == a));
        if any && !arguments.iter().any(named) {
            continue;
        }
        let parsed: Kind = kind.parse()?;
        let file = directory.path().join(format!("{kind}.onnx"));
        skep_models::generate(&parsed, &Options::default())?.write(&file)?;
        for batch in BATCHES {
            let regions = regions(&file, &parsed, batch)?;
            let graphs = graph_plans(&file, &parsed, batch)?;
            for instances in INSTANCES {
                let mut rows = compare(&file, kind, batch, instances, runs, &regions)?;
                for (field, bytes) in &graphs {
                    rows[0][*field] = json!(instances as f64 * *bytes as f64 / MIB);
                }
                for row in rows {
                    println!("{row}");
                }
            }
        }
        fs::remove_file(&file)?;
    }
    Ok(())
}

/// The rows of one model, batch size and number of instances.
fn compare(
    file: &Path,
    kind: &str,
    batch: usize,
    instances: usize,
    runs: usize,
    regions: &BTreeMap<String, u64>,
) -> Result<Vec<Value>> {
    let runs = (runs / instances / batch.min(4)).max(MIN_RUNS);
    let mut latencies = latencies(file, kind, batch, instances, runs)?;
    let mut rows = Vec::new();
    for (means, _) in MEANS {
        let output = Command::new(std::env::current_exe()?)
            .arg("--memory")
            .arg(file)
            .args([kind, &batch.to_string(), &instances.to_string(), means])
            .output()?;
        ensure!(
            output.status.success(),
            "{means}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut row: Value = serde_json::from_slice(&output.stdout)?;
        if let Some(bytes) = regions.get(means) {
            // One arena serves all instances; how many of their runs meet in it is chance, so only one is compared.
            let known = (instances == 1).then_some(*bytes as f64 / MIB);
            row["peak_mib"] = json!(known);
        }
        let (wall, cpu) = latencies.remove(means).context("a means")?;
        row["wall_ms"] = json!(median(&wall));
        row["cpu_ms"] = json!(median(&cpu));
        row["wall_ms_rounds"] = json!(wall);
        rows.push(row);
    }
    let default = rows[1].clone();
    let least = |field: &str| {
        let others = rows[1..].iter().filter_map(|row| row[field].as_f64());
        others.fold(f64::INFINITY, f64::min)
    };
    let (least_peak, least_grown) = (least("peak_mib"), least("grown_mib"));
    for row in &mut rows {
        let ratio = |field: &str, to: Option<f64>| Some(row[field].as_f64()? / to?);
        let ratios = [
            ("peak_ratio", ratio("peak_mib", Some(least_peak))),
            ("grown_ratio", ratio("grown_mib", Some(least_grown))),
            ("wall_ratio", ratio("wall_ms", default["wall_ms"].as_f64())),
            ("cpu_ratio", ratio("cpu_ms", default["cpu_ms"].as_f64())),
        ];
        for (name, ratio) in ratios {
            row[name] = json!(ratio);
        }
    }
    Ok(rows)
}

const MIB: f64 = (1 << 20) as f64;

fn wanted(batch: usize) -> Inputs {
    Inputs {
        seed: 1,
        batch,
        sequence: SEQUENCE,
    }
}

/// The model loaded so that its tensors lie by these means, and inputs.
fn load(file: &Path, kind: &str, batch: usize, means: &str) -> Result<BareModel> {
    let (runtime, _) = OnnxRuntime::start(&LibrarySearch::from_environment())?;
    let parameters = MEANS.iter().find(|(name, _)| *name == means);
    let parameters = parameters.context("no such means")?.1.iter();
    let parameter = |(key, value): &(&str, &str)| {
        format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}\n")
    };
    let text: String = parameters.map(parameter).collect();
    let config = format!("backend: \"onnxruntime\"\nmax_batch_size: 256\n{text}");
    let inputs = named_inputs(&kind.parse()?, wanted(batch))?;
    let inputs = inputs.into_iter().map(|(_, tensor)| tensor).collect();
    BareModel::load(&runtime, file, &config, inputs)
}

/// What the tensors of runs take by one means, in this process and no other. `instances` run at once, some times; each
/// begins a run when the others do.
fn memory(file: &Path, kind: &str, batch: usize, instances: usize, means: &str) -> Result<Value> {
    let bare = load(file, kind, batch, means)?;
    skep_heap::give_back_freed_memory();
    let mut ready: Vec<_> = (0..instances)
        .map(|_| bare.instance())
        .collect::<Result<_>>()?;
    let before = resident_kib("VmRSS:")?;
    // From here on the high-water mark is of this moment.
    fs::write("/proc/self/clear_refs", "5")?;
    let meet = Barrier::new(instances);
    thread::scope(|scope| {
        let threads: Vec<_> = ready
            .iter_mut()
            .map(|instance| {
                scope.spawn(|| {
                    for _ in 0..SETTLING {
                        meet.wait();
                        bare.run(&mut **instance)?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            let run = thread.join();
            run.unwrap_or_else(|_| anyhow::bail!("a run panicked"))
        })
    })?;
    let grown_kib = resident_kib("VmHWM:")?.saturating_sub(before);
    let held_kib = resident_kib("VmRSS:")?.saturating_sub(before);
    let counted: Option<Vec<RunMemory>> = ready.iter().map(|instance| instance.memory()).collect();
    let sum = |of: fn(&RunMemory) -> u64| {
        let bytes = counted.as_ref()?.iter().map(of).sum::<u64>();
        Some(bytes as f64 / MIB)
    };
    // A plan's bytes are held between runs, a heap's are not: each by what it holds at the most.
    let peak = sum(|memory| match memory.planned_bytes {
        0 => memory.used_bytes,
        planned => planned,
    });
    Ok(json!({
        "model": kind, "batch": batch, "instances": instances, "means": means,
        "peak_mib": peak,
        "used_mib": sum(|memory| memory.used_bytes),
        "each_alone_mib": sum(|memory| memory.planned_bytes + memory.saved_bytes),
        "deviated_runs": sum(|memory| memory.deviated_runs).map(|runs| runs * MIB),
        "grown_mib": grown_kib as f64 / 1024.0,
        "held_mib": held_kib as f64 / 1024.0,
    }))
}

/// A line of this process's status, in KiB.
fn resident_kib(field: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(field));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.context("no such line")?.parse()?)
}

/// Milliseconds of each run: wall time, and CPU time of its thread.
type RunTimes = (Vec<f64>, Vec<f64>);

/// What runs take by each means. All means in this process, in turn.
fn latencies(
    file: &Path,
    kind: &str,
    batch: usize,
    instances: usize,
    runs: usize,
) -> Result<BTreeMap<&'static str, RunTimes>> {
    let mut all = Vec::new();
    for (means, _) in MEANS {
        let bare = load(file, kind, batch, means)?;
        let ready: Vec<_> = (0..instances)
            .map(|_| bare.instance())
            .collect::<Result<_>>()?;
        all.push((means, bare, ready));
    }
    let mut taken: BTreeMap<&str, RunTimes> = BTreeMap::new();
    for round in 0..SETTLING + runs {
        for step in 0..MEANS.len() {
            // Each means follows each other one as often.
            let (means, bare, ready) = &mut all[(step + round) % MEANS.len()];
            let meet = Barrier::new(instances);
            let times = thread::scope(|scope| {
                let threads: Vec<_> = ready
                    .iter_mut()
                    .map(|instance| {
                        scope.spawn(|| {
                            meet.wait();
                            timed(|| bare.run(&mut **instance))
                        })
                    })
                    .collect();
                let join = |thread: thread::ScopedJoinHandle<'_, Result<_>>| {
                    let run = thread.join();
                    run.unwrap_or_else(|_| anyhow::bail!("a run panicked"))
                };
                threads
                    .into_iter()
                    .map(join)
                    .collect::<Result<Vec<(f64, f64)>>>()
            })?;
            if round >= SETTLING {
                let (wall, cpu) = taken.entry(means).or_default();
                wall.extend(times.iter().map(|(wall, _)| wall));
                cpu.extend(times.iter().map(|(_, cpu)| cpu));
            }
        }
    }
    Ok(taken)
}

fn timed(run: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
    let cpu = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
    };
    let (began, before) = (Instant::now(), cpu());
    run()?;
    let wall = began.elapsed().as_secs_f64() * 1e3;
    Ok((wall, cpu() - before))
}

/// What plans over the file's graph need for one run, in bytes, by the field of a row.
fn graph_plans(file: &Path, kind: &Kind, batch: usize) -> Result<Vec<(&'static str, u64)>> {
    let model = OnnxModel::decode(fs::read(file)?.into())?;
    let inputs = skep_models::inputs(kind, wanted(batch)).into_iter();
    let given = GivenShapes {
        inputs: inputs
            .map(|input| (input.name, input.shape.dims().to_vec()))
            .collect(),
        ..GivenShapes::default()
    };
    let inferred = infer_shapes(&model, &given)?;
    let machine = CpuTraits {
        channel_block: skep_backend_onnxruntime::channel_block(),
        cores: 1,
    };
    [
        ("graph_mib", RewriteLevel::AsWritten),
        ("in_place_mib", RewriteLevel::InPlace),
        ("fused_mib", RewriteLevel::Fused),
    ]
    .into_iter()
    .map(|(field, variant)| {
        let usage = graph_usage(&model, &inferred, variant, machine)?;
        let answer = auto(usage.records.problem(), &Budget::nodes(PLANNING_NODES));
        Ok((field, answer.plan.size))
    })
    .collect()
}

/// Bytes that the library's arena takes from the system for tensors, by means, as its log says.
fn regions(file: &Path, kind: &Kind, batch: usize) -> Result<BTreeMap<String, u64>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut shapes = serde_json::Map::new();
    for input in skep_models::inputs(kind, wanted(batch)) {
        shapes.insert(input.name, json!(input.shape.dims()));
    }
    let mut regions = BTreeMap::new();
    for (means, pattern) in [("runtime's default", "1"), ("runtime's arena", "0")] {
        let output = Command::new(root.join("target/venv/bin/python"))
            .arg(root.join("benchmarks/arena/regions.py"))
            .arg(file)
            .args([&Value::from(shapes.clone()).to_string(), pattern])
            .output()
            .context("cannot run target/venv/bin/python; `cargo xtask setup` installs it")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let bytes = text.trim().parse();
        let context = || String::from_utf8_lossy(&output.stderr).into_owned();
        regions.insert(means.to_owned(), bytes.with_context(context)?);
    }
    Ok(regions)
}
