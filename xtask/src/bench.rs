//! Runs a benchmark and writes its folder under `benchmarks/results/`: raw figures, and a README made from them.
//! `cargo xtask bench NAME --from FILE [ARGUMENTS]` takes figures that its program has printed, of a long run in parts.

use std::{
    fmt::Write,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    benches::{BENCHES, Bench},
    cargo, setup, step,
};

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
    let is_served = bench.package == "skep-bench";
    // Figures that the program printed before, part by part: only the page is made.
    let (printed, args) = match args {
        [flag, file, rest @ ..] if flag == "--from" => (Some(fs::read_to_string(file)?), rest),
        _ => (None, args),
    };
    if is_served && printed.is_none() {
        setup::run(root, false)?;
        step(
            root,
            cargo().args(["build", "--release", "--locked", "--package", "skep"]),
        )?;
    }
    let raw = match bench.criterion {
        _ if printed.is_some() => printed.unwrap_or_default(),
        Some(group) => criterion(root, bench.package, group)?,
        None => program(root, bench, is_served, args)?,
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

/// What a benchmark's program prints.
fn program(root: &Path, bench: &Bench, is_served: bool, args: &[String]) -> Result<String> {
    let mut command = cargo();
    command.args([
        "run",
        "--release",
        "--locked",
        "--package",
        bench.package,
        if is_served { "--bin" } else { "--example" },
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
    let mut rows = Vec::new();
    for function in fs::read_dir(root.join("target/criterion").join(group))? {
        // Beside the functions there are reports.
        for value in fs::read_dir(function?.path())? {
            let folder = value?.path().join("new");
            if !folder.join("estimates.json").exists() {
                continue;
            }
            let benchmark = read_json(&folder.join("benchmark.json"))?;
            let median = &read_json(&folder.join("estimates.json"))?["median"];
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

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str(&text)?)
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
    // A benchmark of several tables says in each row which one it belongs to.
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        let name = row["table"].as_str().unwrap_or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for name in names {
        let rows: Vec<&Value> = rows
            .iter()
            .filter(|row| row["table"].as_str().unwrap_or_default() == name)
            .collect();
        table(&mut page, bench, name, &rows)?;
    }
    Ok(page)
}

/// A table of the columns that any row has; of all columns if the table has no name.
fn table(page: &mut String, bench: &Bench, name: &str, rows: &[&Value]) -> Result<()> {
    if !name.is_empty() {
        writeln!(page, "## {name}\n")?;
    }
    let is_shown = |field: &str| name.is_empty() || rows.iter().any(|row| row.get(field).is_some());
    let columns: Vec<_> = bench
        .columns
        .iter()
        .filter(|(_, field, _)| is_shown(field))
        .collect();
    let headings: Vec<&str> = columns.iter().map(|(heading, ..)| *heading).collect();
    writeln!(
        page,
        "| {} |\n|{}",
        headings.join(" | "),
        "---|".repeat(headings.len())
    )?;
    for row in rows {
        let cells: Vec<String> = columns
            .iter()
            .map(|(_, field, decimals)| cell(&row[*field], *decimals))
            .collect();
        writeln!(page, "| {} |", cells.join(" | "))?;
    }
    if !name.is_empty() {
        writeln!(page)?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    const BENCH: Bench = Bench {
        name: "x",
        title: "X",
        package: "p",
        criterion: None,
        columns: &[("model", "model", 0), ("ms", "ms", 1), ("MiB", "mib", 2)],
    };

    fn page(rows: &[Value]) -> String {
        let page = readme(&BENCH, &[], "c", rows).expect("the machine's names can be read");
        let (_, tables) = page
            .split_once("ratios.\n\n")
            .expect("text before the tables");
        tables.to_owned()
    }

    #[test]
    fn rows_without_a_table_show_every_column() {
        let rows = [json!({"model": "m", "ms": 1.25})];
        assert_eq!(
            page(&rows),
            "| model | ms | MiB |\n|---|---|---|\n| m | 1.2 | - |\n"
        );
    }

    #[test]
    fn a_table_shows_the_columns_that_its_rows_have() {
        let rows = [
            json!({"table": "Time", "model": "m", "ms": 1.0}),
            json!({"table": "Memory", "model": "m", "mib": 2.0}),
            json!({"table": "Time", "model": "n", "ms": 3.0}),
        ];
        assert_eq!(
            page(&rows),
            "## Time\n\n| model | ms |\n|---|---|\n| m | 1.0 |\n| n | 3.0 |\n\n\
             ## Memory\n\n| model | MiB |\n|---|---|\n| m | 2.00 |\n\n"
        );
    }
}
