//! The whole pipeline, in the order in which failures are cheapest to find.

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Result;

use crate::{cargo, setup, step, tidy};

/// Runs everything; `fast` leaves the wire tests out.
pub(crate) fn run(root: &Path, fast: bool) -> Result<()> {
    step(root, cargo().args(["fmt", "--all", "--check"]))?;
    // A workspace of its own.
    step(
        root,
        cargo().args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]),
    )?;
    tidy::run(root)?;
    step(
        root,
        cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "--deny",
            "warnings",
        ]),
    )?;
    if !fast {
        // The backends' tests find ONNX Runtime there, and say so when they do not.
        setup::run(root, false)?;
    }
    unit(root)?;
    if fast {
        println!("\nwire tests were left out (--fast)");
        return Ok(());
    }
    wire(root)
}

fn unit(root: &Path) -> Result<()> {
    let arguments: &[&str] = match has_nextest() {
        true => &["nextest", "run", "--workspace", "--locked"],
        false => &["test", "--workspace", "--locked"],
    };
    let mut command = cargo();
    command.args(arguments);
    // What is true of a tree stays true of it: the same cases each time, others when anything changes.
    if env::var_os(SEED).is_none()
        && let Some(seed) = seed(root)
    {
        command.env(SEED, seed.to_string());
    }
    step(root, &mut command)
}

/// Where `proptest` looks for its seed.
const SEED: &str = "PROPTEST_RNG_SEED";

/// The beginning of the name that git has for the committed tree; `None` without git.
fn seed(root: &Path) -> Option<u64> {
    let named = Command::new("git")
        .args(["rev-parse", "HEAD^{tree}"])
        .current_dir(root)
        .output();
    let name = String::from_utf8(named.ok()?.stdout).ok()?;
    u64::from_str_radix(name.get(..16)?, 16).ok()
}

fn has_nextest() -> bool {
    let mut probe = cargo();
    probe
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

/// The server as built here, against clients that others wrote.
fn wire(root: &Path) -> Result<()> {
    step(
        root,
        cargo().args(["build", "--package", "skep", "--locked"]),
    )?;
    // One process each: the browser's driver leaves an event loop behind, in which asyncio clients cannot run.
    for tests in ["tests/wire", "tests/hostile", "tests/page"] {
        let mut pytest = Command::new(setup::python(root));
        pytest.args(["-m", "pytest", "-q", "-ra", tests]);
        pytest
            .env("SKEP_BINARY", root.join("target/debug/skep"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        step(root, &mut pytest)?;
    }
    Ok(())
}
