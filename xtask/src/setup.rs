//! Installs what the wire tests need: a Python environment under `target/`, and with `--all` Debian packages.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::step;

/// Packages of the wire tests, pinned.
const REQUIREMENTS: &str = "tests/requirements.txt";

/// Debian packages of `--all`: a browser for the web page, the library that `perf_analyzer` is linked to, and what shows
/// the connections that a server makes.
const DEBIAN_PACKAGES: [&str; 3] = ["chromium", "libb64-0d", "strace"];

/// Where the Python environment lies.
pub(crate) fn venv(root: &Path) -> PathBuf {
    root.join("target/venv")
}

/// The environment's interpreter.
pub(crate) fn python(root: &Path) -> PathBuf {
    venv(root).join("bin/python")
}

/// Installs; does nothing that is already done.
pub(crate) fn run(root: &Path, all: bool) -> Result<()> {
    if all {
        debian(root)?;
    }
    let requirements =
        fs::read(root.join(REQUIREMENTS)).with_context(|| format!("cannot read {REQUIREMENTS}"))?;
    let digest = blake3::hash(&requirements).to_hex().to_string();
    let stamp = venv(root).join("requirements.digest");
    if fs::read_to_string(&stamp).is_ok_and(|done| done == digest) && python(root).exists() {
        println!("target/venv is up to date");
        return Ok(());
    }
    step(
        root,
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(venv(root)),
    )?;
    let mut pip = Command::new(python(root));
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--requirement",
        REQUIREMENTS,
    ]);
    step(root, &mut pip)?;
    fs::write(&stamp, digest)?;
    Ok(())
}

/// Installs the Debian packages that are missing.
fn debian(root: &Path) -> Result<()> {
    let missing: Vec<&str> = DEBIAN_PACKAGES
        .into_iter()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        println!("Debian packages are up to date");
        return Ok(());
    }
    step(root, Command::new("apt-get").args(["update", "-qq"]))?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install
        .args(["install", "-qq", "--yes", "--no-install-recommends"])
        .args(missing);
    step(root, &mut install)
}

fn is_installed(package: &str) -> bool {
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output();
    query.is_ok_and(|output| output.stdout == b"installed")
}
