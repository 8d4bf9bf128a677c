//! The whole pipeline, in the order in which failures are cheapest to find.

use std::{
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
    if has_nextest() {
        step(
            root,
            cargo().args(["nextest", "run", "--workspace", "--locked"]),
        )
    } else {
        step(root, cargo().args(["test", "--workspace", "--locked"]))
    }
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
    for tests in ["tests/wire", "tests/page"] {
        let mut pytest = Command::new(setup::python(root));
        pytest.args(["-m", "pytest", "-q", "-ra", tests]);
        pytest
            .env("SKEP_BINARY", root.join("target/debug/skep"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        step(root, &mut pytest)?;
    }
    Ok(())
}
