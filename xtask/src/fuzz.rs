//! Fuzzing: `cargo xtask fuzz TARGET` feeds one parser of outside bytes with what libFuzzer makes of its corpus.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{cargo, step};

/// How long a target runs unless told.
const DEFAULT_SECONDS: u32 = 600;

/// Inputs this long reach everything but limits, and longer ones make fuzzing slow.
const MAX_INPUT_BYTES: u32 = 8 << 10;

/// No parser needs this much at once for so short an input; one that does believed a number in it.
const MAX_ALLOCATION_MIB: u32 = 64;

/// What the process may take in all; of that the address sanitizer keeps up to a quarter of a GiB of freed memory.
const MAX_MEMORY_MIB: u32 = 1024;

/// How long one input may take. A thousand times what any does, since machines are shared.
const MAX_INPUT_SECONDS: u32 = 10;

/// Runs the target of the arguments, `TARGET [--seconds N]`.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let targets = targets(root)?;
    let usage = || {
        format!(
            "usage: cargo xtask fuzz {} [--seconds N]",
            targets.join("|")
        )
    };
    let mut seconds = DEFAULT_SECONDS;
    let mut target = None;
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--seconds" => {
                let given = rest.next().with_context(usage)?;
                seconds = given
                    .parse()
                    .with_context(|| format!("`{given}` is no number of seconds"))?;
            }
            name if target.is_none() && targets.iter().any(|known| known == name) => {
                target = Some(name);
            }
            _ => bail!(usage()),
        }
    }
    let target = target.with_context(usage)?;
    check_installed()?;
    same_versions(root)?;

    // New inputs go into the first folder, so that a run does not change the committed ones.
    let found = root.join("target/fuzz/corpus").join(target);
    let committed = root.join("fuzz/corpus").join(target);
    for folder in [&found, &committed] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut command = cargo();
    command
        .args(["fuzz", "run", "--fuzz-dir", "fuzz"])
        .args(["--target-dir", "target/fuzz", target])
        .args([&found, &committed])
        .arg("--")
        // Sanitizers and coverage are unstable flags; the toolchain is the one that builds the server.
        .env("RUSTC_BOOTSTRAP", "1");
    let dictionary = root.join(format!("fuzz/dictionaries/{target}.dict"));
    if dictionary.exists() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    command.args([
        format!("-max_len={MAX_INPUT_BYTES}"),
        format!("-malloc_limit_mb={MAX_ALLOCATION_MIB}"),
        format!("-rss_limit_mb={MAX_MEMORY_MIB}"),
        format!("-timeout={MAX_INPUT_SECONDS}"),
        format!("-max_total_time={seconds}"),
        "-print_final_stats=1".to_owned(),
        // Names of functions that are reached for the first time, pages of them.
        "-print_funcs=0".to_owned(),
    ]);
    step(root, &mut command)
}

/// The names of the targets.
fn targets(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("fuzz/fuzz_targets");
    let files =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for file in files {
        let path = file?.path();
        names.extend(
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned()),
        );
    }
    names.sort_unstable();
    Ok(names)
}

/// The targets are built with the server's dependencies: its lock file, to which cargo adds libFuzzer.
fn same_versions(root: &Path) -> Result<()> {
    let (servers, own) = (root.join("Cargo.lock"), root.join("fuzz/Cargo.lock"));
    let changed = |path: &Path| fs::metadata(path)?.modified();
    let current = changed(&own).ok() >= Some(changed(&servers)?);
    if !current {
        fs::copy(&servers, &own).with_context(|| format!("cannot write {}", own.display()))?;
    }
    Ok(())
}

fn check_installed() -> Result<()> {
    let mut probe = Command::new("cargo-fuzz");
    probe
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if probe.status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    bail!("cargo-fuzz is missing: cargo install cargo-fuzz --locked")
}
