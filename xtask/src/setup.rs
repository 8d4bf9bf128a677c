//! Installs what the wire tests need: a Python environment and real models under `target/`, and with `--all` Debian
//! packages.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::step;

/// Packages of the wire tests, pinned.
const REQUIREMENTS: &str = "tests/requirements.txt";

/// Packages whose wheels hold real models, pinned, and where their files go.
const REAL_MODELS: &str = "tests/real-models-requirements.txt";
const REAL_MODELS_TARGET: &str = "target/real-models";

/// Debian packages of `--all`: a browser for the web page, the library that `perf_analyzer` is linked to, and what
/// shows the connections that a server makes.
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
    environment(root)?;
    real_models(root)
}

/// The Python environment.
fn environment(root: &Path) -> Result<()> {
    let (digest, stamp) = stamp(root, REQUIREMENTS, &venv(root))?;
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
    step(root, pip(root).args(["--requirement", REQUIREMENTS]))?;
    fs::write(&stamp, digest)?;
    Ok(())
}

/// Files of packages that are not imported: no dependencies, no code that runs at installation.
fn real_models(root: &Path) -> Result<()> {
    let target = root.join(REAL_MODELS_TARGET);
    let (digest, stamp) = stamp(root, REAL_MODELS, &target)?;
    if fs::read_to_string(&stamp).is_ok_and(|done| done == digest) {
        println!("{REAL_MODELS_TARGET} is up to date");
        return Ok(());
    }
    if target.exists() {
        fs::remove_dir_all(&target)
            .with_context(|| format!("cannot remove {REAL_MODELS_TARGET}"))?;
    }
    let mut install = pip(root);
    install.args(["--no-deps", "--only-binary", ":all:", "--no-compile"]);
    install.args(["--requirement", REAL_MODELS, "--target"]);
    step(root, install.arg(&target))?;
    fs::write(&stamp, digest)?;
    Ok(())
}

/// The digest of a file of requirements, and the file that holds it once they are installed.
fn stamp(root: &Path, requirements: &str, installed: &Path) -> Result<(String, PathBuf)> {
    let bytes =
        fs::read(root.join(requirements)).with_context(|| format!("cannot read {requirements}"))?;
    let digest = blake3::hash(&bytes).to_hex().to_string();
    Ok((digest, installed.join("requirements.digest")))
}

/// `pip install` of the environment.
fn pip(root: &Path) -> Command {
    let mut pip = Command::new(python(root));
    pip.args(["-m", "pip", "install"]);
    pip.args(["--quiet", "--disable-pip-version-check"]);
    pip
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
