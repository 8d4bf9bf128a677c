//! Runs a benchmark and writes its folder under `benchmarks/results/`: raw figures, and a README made from them.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{cargo, setup, step};

/// A benchmark: its name, what it measures, the columns of its summary.
struct Bench {
    name: &'static str,
    title: &'static str,
    /// Whose example it is; that of a pure crate needs no server.
    package: &'static str,
    /// The group of criterion's benchmarks that it is instead of an example.
    criterion: Option<&'static str>,
    /// Heading, field, decimals.
    columns: &'static [(&'static str, &'static str, usize)],
}

const BENCHES: [Bench; 10] = [
    Bench {
        name: "scheduler",
        title: "What one call of a scheduler takes, by the length of its queue",
        package: "skep-scheduler",
        criterion: Some("round"),
        columns: &[
            ("policy", "function", 0),
            ("requests waiting", "value", 0),
            ("ns/call", "median_ns", 0),
            ("least", "lower_ns", 0),
            ("most (95 % confidence)", "upper_ns", 0),
        ],
    },
    Bench {
        name: "saturation",
        title: "Served throughput at saturation beside the bare runtime's",
        package: "skep-perf",
        criterion: None,
        columns: &[
            ("model", "model", 0),
            ("rows a request", "batch", 0),
            ("threads", "threads", 0),
            ("instances", "instances", 0),
            ("bare runs/s", "bare", 1),
            ("HTTP requests/s", "http", 1),
            ("gRPC requests/s", "grpc", 1),
            ("HTTP / bare", "http_ratio", 3),
            ("gRPC / bare", "grpc_ratio", 3),
            ("bare CPU us/run", "bare_cpu_us", 0),
            ("server CPU us/request, HTTP", "server_cpu_us", 0),
            ("client CPU us/request, HTTP", "client_cpu_us", 0),
            ("bare / server CPU", "cpu_ratio", 3),
        ],
    },
    Bench {
        name: "request-path",
        title: "What one request costs: identity over 16 floats, 16 requests outstanding",
        package: "skep-perf",
        criterion: None,
        columns: &[
            ("server", "server", 0),
            ("protocol", "protocol", 0),
            ("answered by", "answered_by", 0),
            ("requests/s", "rate", 0),
            ("server CPU us/request", "cpu_us", 1),
            ("p50 us", "p50_us", 0),
            ("p99 us", "p99_us", 0),
        ],
    },
    Bench {
        name: "batching",
        title: "What dynamic batching brings: closed loops of requests of batch 2 over gRPC",
        package: "skep-perf",
        criterion: None,
        columns: &[
            ("model", "model", 0),
            ("batching", "batching", 0),
            ("instances", "instances", 0),
            ("clients", "clients", 0),
            ("inferences/s", "rate", 0),
            ("p50 ms", "p50_ms", 2),
            ("p95 ms", "p95_ms", 2),
            ("the device allows", "formula", 0),
            ("share of it", "formula_ratio", 3),
            ("simulated", "simulated", 0),
            ("share of it", "simulated_ratio", 3),
            ("published for the accelerator", "reference", 0),
            ("mock late by us", "late_us", 1),
            ("turn-around us", "turnaround_us", 0),
            ("server CPU us/request", "cpu_us", 1),
        ],
    },
    Bench {
        name: "bursts",
        title: "Batching policies under bursts: an open loop over gRPC, beside the simulator on the same arrivals",
        package: "skep-perf",
        criterion: None,
        columns: &[
            ("model", "model", 0),
            ("load", "load", 1),
            ("policy", "policy", 0),
            ("requests/s", "offered", 0),
            ("in time/s", "goodput", 0),
            ("simulated", "simulated_goodput", 0),
            ("share of it", "goodput_ratio", 3),
            ("in the simulated order", "in_order", 0),
            ("p50 ms", "p50_ms", 1),
            ("simulated", "simulated_p50_ms", 1),
            ("p99 ms", "p99_ms", 1),
            ("simulated", "simulated_p99_ms", 1),
            ("refused", "refused", 3),
            ("simulated", "simulated_refused", 3),
            ("mean batch", "mean_batch", 1),
            ("simulated", "simulated_mean_batch", 1),
            ("sender late p50 ms", "sender_p50_ms", 2),
            ("sender late p99 ms", "sender_p99_ms", 2),
        ],
    },
    Bench {
        name: "planner",
        title: "Static memory plans: bytes, proofs and CPU time",
        package: "skep-planner",
        criterion: None,
        columns: &[
            ("problem", "instance", 0),
            ("buffers", "buffers", 0),
            ("lower bound", "lower_bound", 0),
            ("greedy by size", "greedy_by_size", 0),
            ("TVM's hill climb", "hill_climb", 0),
            ("ONNX Runtime's memory pattern", "memory_pattern", 0),
            ("SOMAS' best fit", "somas", 0),
            ("ExecuTorch's greedy", "executorch", 0),
            ("auto", "auto", 0),
            ("optimal", "optimal", 0),
            ("gap %", "gap_percent", 3),
            ("CPU s", "cpu_seconds", 3),
            ("MiniMalloc, CPU s", "minimalloc_cpu_seconds", 2),
            ("MiniMalloc / auto", "minimalloc_ratio", 0),
        ],
    },
    Bench {
        name: "footprint",
        title: "What a node costs before it does anything",
        package: "skep-perf",
        criterion: None,
        columns: &[
            ("binary MiB", "binary_mib", 1),
            ("start to ready ms", "ready_ms", 1),
            ("private MiB", "private_mib", 1),
            ("PSS MiB", "pss_mib", 1),
        ],
    },
    Bench {
        name: "estimate",
        title: "Memory estimated before anything runs, beside what a server with one model holds",
        package: "skep-perf",
        criterion: None,
        columns: &[
            ("model", "model", 0),
            ("rows a request", "batch", 0),
            ("instances", "instances", 0),
            ("weights MiB", "weights_mib", 1),
            ("intermediates MiB", "intermediates_mib", 1),
            ("workspace and prepacking MiB", "workspace_mib", 1),
            ("runtime MiB", "runtime_mib", 1),
            ("estimate MiB", "estimate_mib", 1),
            ("measured PSS MiB", "measured_mib", 1),
            ("of it mapped files MiB", "mapped_mib", 1),
            ("of it anonymous MiB", "anonymous_mib", 1),
            ("error %", "error_percent", 1),
        ],
    },
    Bench {
        name: "arena",
        title: "Intermediate tensors with ONNX Runtime: planned arena, the library's own means, malloc",
        package: "skep-perf",
        criterion: None,
        columns: &[
            ("model", "model", 0),
            ("rows", "batch", 0),
            ("runs at once", "instances", 0),
            ("means", "means", 0),
            ("peak MiB", "peak_mib", 2),
            ("/ least other", "peak_ratio", 3),
            ("process grew by MiB", "grown_mib", 1),
            ("/ least other", "grown_ratio", 3),
            ("holds afterwards MiB", "held_mib", 1),
            ("ms a run", "wall_ms", 3),
            ("/ default", "wall_ratio", 3),
            ("CPU ms a run", "cpu_ms", 3),
            ("/ default", "cpu_ratio", 3),
            ("graph plan MiB", "graph_mib", 2),
            ("graph plan, in place", "in_place_mib", 2),
            ("graph plan, fused (predicted)", "fused_mib", 2),
        ],
    },
    Bench {
        name: "load-unload",
        title: "Memory after loading and unloading a model over and over",
        package: "skep-perf",
        criterion: None,
        columns: &[
            ("backend", "backend", 0),
            ("cycles", "cycles", 0),
            ("model file MiB", "file_mib", 1),
            ("private MiB, loaded", "loaded_mib", 1),
            (
                "private MiB, unloaded, first cycles",
                "private_first_mib",
                1,
            ),
            ("private MiB, unloaded, last cycles", "private_last_mib", 1),
            ("growth %", "growth_percent", 2),
            ("anonymous MiB, first cycles", "anonymous_first_mib", 1),
            ("anonymous MiB, last cycles", "anonymous_last_mib", 1),
            ("PSS MiB, last cycles", "pss_last_mib", 1),
            ("ms/cycle", "cycle_ms", 0),
        ],
    },
];

/// Runs the benchmark that the first argument names, with the further ones.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let (name, args) = match args {
        [name, args @ ..] => (Some(name.as_str()), args),
        [] => (None, args),
    };
    let names: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
    let Some(bench) = BENCHES.iter().find(|bench| Some(bench.name) == name) else {
        bail!("usage: cargo xtask bench {} [ARGUMENTS]", names.join("|"));
    };
    let commit = text("git", &["describe", "--always", "--dirty"])?;
    let is_served = bench.package == "skep-perf";
    if is_served {
        setup::run(root, false)?;
        step(
            root,
            cargo().args(["build", "--release", "--locked", "--package", "skep"]),
        )?;
    }
    let raw = match bench.criterion {
        Some(group) => criterion(root, bench.package, group)?,
        None => example(root, bench, is_served, args)?,
    };
    let rows: Vec<Value> = raw
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let folder =
        root.join("benchmarks/results")
            .join(format!("{}-{}", text("date", &["+%F"])?, bench.name));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("raw.jsonl"), &raw)?;
    fs::write(
        folder.join("README.md"),
        readme(bench, args, &commit, &rows)?,
    )?;
    println!("wrote {}", folder.display());
    Ok(())
}

/// What an example prints.
fn example(root: &Path, bench: &Bench, is_served: bool, args: &[String]) -> Result<String> {
    let mut command = cargo();
    command.args([
        "run",
        "--release",
        "--locked",
        "--package",
        bench.package,
        "--example",
        &bench.name.replace('-', "_"),
        "--",
    ]);
    if is_served {
        command.arg(root.join("target/release/skep"));
    }
    command
        .args(args)
        .current_dir(root)
        .stderr(Stdio::inherit());
    let output = command.output().context("cannot run the benchmark")?;
    if !output.status.success() {
        bail!("the benchmark failed: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a package's benchmarks by criterion; a row for each of a group, in time an element of its throughput.
fn criterion(root: &Path, package: &str, group: &str) -> Result<String> {
    step(
        root,
        cargo().args(["bench", "--locked", "--package", package]),
    )?;
    let read = |path: PathBuf| -> Result<Value> {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_str(&text)?)
    };
    let mut rows = Vec::new();
    for function in fs::read_dir(root.join("target/criterion").join(group))? {
        // Beside the functions there are reports.
        for value in fs::read_dir(function?.path())? {
            let folder = value?.path().join("new");
            if !folder.join("estimates.json").exists() {
                continue;
            }
            let benchmark = read(folder.join("benchmark.json"))?;
            let median = &read(folder.join("estimates.json"))?["median"];
            let elements = benchmark["throughput"]["Elements"].as_f64().unwrap_or(1.0);
            let ns = |value: &Value| value.as_f64().map(|ns| ns / elements);
            let interval = &median["confidence_interval"];
            let waiting: u64 = benchmark["value_str"].as_str().unwrap_or("0").parse()?;
            let function = benchmark["function_id"].as_str().unwrap_or_default();
            let row = json!({
                "function": function, "value": waiting, "median_ns": ns(&median["point_estimate"]),
                "lower_ns": ns(&interval["lower_bound"]), "upper_ns": ns(&interval["upper_bound"]),
            });
            rows.push((function.to_owned(), waiting, format!("{row}\n")));
        }
    }
    rows.sort();
    Ok(rows.into_iter().map(|(.., row)| row).collect())
}

fn readme(bench: &Bench, args: &[String], commit: &str, rows: &[Value]) -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("unknown");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let mut page = format!("# {}\n\n", bench.title);
    let command: Vec<&str> = std::iter::once(bench.name)
        .chain(args.iter().map(String::as_str))
        .collect();
    writeln!(page, "- command: `cargo xtask bench {}`", command.join(" "))?;
    writeln!(page, "- date: {}", text("date", &["+%F"])?)?;
    writeln!(page, "- commit: {commit}")?;
    writeln!(
        page,
        "- machine: {} cores of {model}, shared; Linux {}",
        text("nproc", &[])?,
        text("uname", &["-r"])?
    )?;
    writeln!(page, "- compiler: {}", text("rustc", &["--version"])?)?;
    writeln!(
        page,
        "\nMedians; every round is in `raw.jsonl`. Ratios are medians of the rounds' ratios.\n"
    )?;
    let headings: Vec<&str> = bench.columns.iter().map(|(heading, ..)| *heading).collect();
    writeln!(
        page,
        "| {} |\n|{}",
        headings.join(" | "),
        "---|".repeat(headings.len())
    )?;
    for row in rows {
        let cells: Vec<String> = bench
            .columns
            .iter()
            .map(|(_, field, decimals)| cell(&row[*field], *decimals))
            .collect();
        writeln!(page, "| {} |", cells.join(" | "))?;
    }
    Ok(page)
}

fn cell(value: &Value, decimals: usize) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other
            .as_f64()
            .map_or_else(|| "-".to_owned(), |number| format!("{number:.decimals$}")),
    }
}

/// A command's output, trimmed.
fn text(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("cannot run `{program}`"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
