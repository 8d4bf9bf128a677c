//! Development tasks: `cargo xtask <task>`. `cargo xtask help` lists them.

mod bench;
mod benches;
mod codegen;
mod figures;
mod fuzz;
mod mutants;
mod rust_source;
mod setup;
mod test;
mod tidy;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

const HELP: &str = "\
usage: cargo xtask <task>

  setup [--all]   install what the wire and page tests need into target/venv and target/real-models; --all also what needs apt (Chromium, libb64, strace)
  test [--fast]   the whole pipeline: format, lints, tidy, unit tests, wire and page tests; --fast leaves those two out
  tidy            the checks that a program can make of ARCHITECTURE.md's invariants
  figures [FOLDER] [--names]
                  print figures of the source tree: files, arrows and circles among them, names with several meanings, long functions
  mutants [CRATE] [-- OPTIONS]
                  change the crates that decide, one mutation after the other, and fail where tests notice less than 95 %; installs cargo-mutants, takes hours
  bench NAME ...  run a benchmark, with its arguments, and write its folder under benchmarks/results
  fuzz TARGET [--seconds N]
                  feed a parser of outside bytes with what libFuzzer makes of fuzz/corpus, for ten minutes unless told
  operators       run ONNX's own node tests on each backend and through shape inference, and write docs/operators.md
  codegen         write crates/skep-proto/src/generated from the .proto files";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    let mut args = std::env::args().skip(1);
    let task = args.next();
    let flags: Vec<String> = args.collect();
    match task.as_deref() {
        Some("setup") => setup::run(&root, flag(&flags, "--all")?),
        Some("test") => test::run(&root, flag(&flags, "--fast")?),
        Some("tidy") => tidy::run(&root),
        Some("figures") => figures::run(&root, &flags),
        Some("mutants") => mutants::run(&root, &flags),
        Some("bench") => bench::run(&root, &flags),
        Some("fuzz") => fuzz::run(&root, &flags),
        Some("operators") => operators(&root),
        Some("codegen") => codegen::run(&root),
        Some("help" | "--help" | "-h") | None => {
            println!("{HELP}");
            Ok(())
        }
        Some(other) => bail!("unknown task `{other}`\n{HELP}"),
    }
}

/// ONNX's node tests come with its Python package.
fn operators(root: &Path) -> Result<()> {
    setup::run(root, false)?;
    let find = "import onnx, os; print(os.path.join(os.path.dirname(onnx.__file__), 'backend/test/data/node'))";
    let found = Command::new(setup::python(root))
        .args(["-c", find])
        .output()
        .context("cannot run Python")?;
    let data = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    let mut command = cargo();
    command.args([
        "run",
        "--release",
        "--package",
        "skep-backend-embedded",
        "--example",
        "node_tests",
        "--",
        &data,
    ]);
    step(root, command.args(["--markdown", "docs/operators.md"]))?;
    let mut command = cargo();
    command.args([
        "run",
        "--package",
        "skep-shapes",
        "--example",
        "node_shapes",
        "--",
        &data,
    ]);
    step(root, command.args(["--markdown", "docs/operators.md"]))
}

/// Whether the one flag that a task knows was given.
fn flag(given: &[String], known: &str) -> Result<bool> {
    if let Some(unknown) = given.iter().find(|flag| *flag != known) {
        bail!("unknown flag `{unknown}`, expected {known} or nothing");
    }
    Ok(!given.is_empty())
}

/// Runs a command in the repository's root, showing what it is; an error if it fails.
fn step(root: &Path, command: &mut Command) -> Result<()> {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let line = words.join(" ");
    println!("\n==> {line}");
    let status = command
        .current_dir(root)
        .status()
        .with_context(|| format!("cannot run `{line}`"))?;
    if status.success() {
        Ok(())
    } else {
        bail!("`{line}` failed: {status}")
    }
}

fn cargo() -> Command {
    Command::new(env!("CARGO"))
}
