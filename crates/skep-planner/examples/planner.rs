//! Planning benchmark: `cargo xtask bench planner [--budget SECONDS] [--rounds N] [DIRECTORY...]`.
//!
//! Plans every `id,lower,upper,size` CSV file of the directories given, and generated problems, with every strategy,
//! and puts each plan before the validator. Prints a JSON object a problem; times are CPU seconds of this process.

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use common::{at_random, cut_rectangle, loose_rectangle, network_like, read_csv, training_like};
use serde_json::{Map, Value, json};
use skep_planner::{BoundedPlan, Budget, Plan, Problem, Strategy, auto, bounds, validate};

/// CPU seconds in which MiniMalloc decides that capacity 1048576 is enough for these problems of its challenging suite
/// (its authors publish 4.9, 0.64, 2.7, 3.7, 1.2, 3.9 and 0.63).
const MINIMALLOC: [(&str, f64); 7] = [
    ("A.1048576", 4.7),
    ("C.1048576", 0.67),
    ("D.1048576", 2.6),
    ("E.1048576", 3.4),
    ("G.1048576", 1.1),
    ("I.1048576", 3.1),
    ("K.1048576", 0.61),
];

/// Buffers of the large generated problems.
const LARGE: u64 = 30_000;

fn main() {
    let mut budget = Duration::from_secs(2);
    let mut rounds = 3;
    let mut problems = generated();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().and_then(|value| value.parse().ok());
            value.unwrap_or_else(|| panic!("`{argument}` needs a whole number"))
        };
        match argument.as_str() {
            "--budget" => budget = Duration::from_secs(number()),
            "--rounds" => rounds = number(),
            directory => problems.extend(files(Path::new(directory))),
        }
    }
    for (name, problem) in &problems {
        println!("{}", row(name, problem, budget, rounds));
    }
}

fn row(name: &str, problem: &Problem, budget: Duration, rounds: u64) -> Value {
    let (mut best, mut seconds): (Option<BoundedPlan>, Vec<f64>) = (None, Vec::new());
    for _ in 0..rounds.max(1) {
        let (answer, took) = timed(budget, |budget| auto(problem, budget));
        let plan = Plan::Offsets(answer.plan.clone());
        validate(problem, &plan).expect("a valid plan");
        seconds.push(took);
        best = Some(answer);
    }
    let answer = best.expect("at least one round");
    seconds.sort_by(f64::total_cmp);
    let mut strategies = Map::new();
    for strategy in Strategy::ALL
        .iter()
        .filter(|strategy| strategy.name != "auto")
    {
        let (plan, took) = timed(budget, |budget| strategy.plan(problem, budget));
        let entry = match plan {
            Ok(plan) => {
                validate(problem, &plan).expect("a valid plan");
                json!({ "size": plan.size(), "cpu_seconds": took })
            }
            Err(refusal) => json!({ "refused": refusal.to_string(), "cpu_seconds": took }),
        };
        strategies.insert(strategy.name.to_owned(), entry);
    }
    let size = |name: &str| strategies[name]["size"].clone();
    let cpu = seconds[seconds.len() / 2];
    let published = MINIMALLOC.iter().find(|(known, _)| *known == name);
    let minimalloc = published.map(|(_, seconds)| *seconds);
    json!({
        "instance": name,
        "buffers": problem.len(),
        "max_load": bounds::max_load(problem),
        "lower_bound": answer.lower_bound,
        "greedy_by_size": size("offsets.greedy_by_size"),
        "hill_climb": size("tvm.hill_climb"),
        "memory_pattern": size("onnxruntime.memory_pattern"),
        "somas": size("somas.best_fit"),
        "executorch": size("executorch.greedy"),
        "auto": answer.plan.size,
        "optimal": if answer.is_optimal() { "yes" } else { "no" },
        "gap_percent": 100.0 * answer.gap() as f64 / answer.lower_bound.max(1) as f64,
        "nodes": answer.nodes,
        "cpu_seconds": cpu,
        "cpu_seconds_rounds": seconds,
        "minimalloc_cpu_seconds": minimalloc,
        "minimalloc_ratio": minimalloc.map(|seconds| seconds / cpu),
        "strategies": strategies,
    })
}

/// Runs under a budget of wall time, and tells the CPU time.
fn timed<T>(limit: Duration, run: impl FnOnce(&Budget<'_>) -> T) -> (T, f64) {
    let began = Instant::now();
    let cpu = cpu_seconds();
    let should_stop = || began.elapsed() > limit;
    let budget = Budget {
        nodes: u64::MAX,
        should_stop: &should_stop,
    };
    let result = run(&budget);
    (result, cpu_seconds() - cpu)
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The problems in a directory, by name.
fn files(directory: &Path) -> Vec<(String, Problem)> {
    let entries = fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut problems = Vec::new();
    for path in paths
        .iter()
        .filter(|path| path.extension().is_some_and(|end| end == "csv"))
    {
        let text = fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        if text.starts_with("id,lower,upper,size") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            problems.push((name.into_owned(), read_csv(&text)));
        }
    }
    problems
}

fn generated() -> Vec<(String, Problem)> {
    let mut problems = Vec::new();
    for (cuts, seed) in [(160, 1), (160, 2), (300, 3)] {
        let problem = cut_rectangle(cuts, 1024, 1024, seed);
        problems.push((format!("rectangle cut {cuts} times, seed {seed}"), problem));
    }
    problems.push((
        "training-like, 60000 buffers".to_owned(),
        training_like(60_000, 1),
    ));
    for (cuts, seed) in [(400, 1), (600, 2), (1_000, 3), (2_000, 4)] {
        let problem = cut_rectangle(cuts, 1 << 20, 1 << 20, seed);
        problems.push((
            format!("rectangle finely cut {cuts} times, seed {seed}"),
            problem,
        ));
    }
    for seed in 1..=10 {
        let problem = loose_rectangle(230, seed);
        problems.push((format!("loose rectangle of 230 cuts, seed {seed}"), problem));
        let problem = loose_rectangle(430, seed);
        problems.push((format!("loose rectangle of 430 cuts, seed {seed}"), problem));
    }
    for (name, problem) in [
        ("training-like", training_like(LARGE, 1)),
        ("network-like", network_like(LARGE, 1)),
        ("random, up to 20 steps", at_random(LARGE, 20, 1)),
        ("random, up to 300 steps", at_random(LARGE, 300, 1)),
        ("random, up to 5000 steps", at_random(LARGE, 5_000, 1)),
        ("random, up to 30000 steps", at_random(LARGE, 30_000, 1)),
    ] {
        problems.push((format!("{name}, {LARGE} buffers"), problem));
    }
    problems
}
