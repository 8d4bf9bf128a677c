//! The checks that a program can make of ARCHITECTURE.md's invariants.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::codegen;

/// Crates from the bottom up: (layer, name). A crate may depend on those above it in this list.
const ORDER: [(u8, &str); 32] = [
    (0, "skep-types"),
    (0, "skep-proto"),
    (0, "skep-onnx"),
    (0, "skep-config"),
    (1, "skep-scheduler"),
    (1, "skep-planner"),
    (1, "skep-shapes"),
    (1, "skep-layout"),
    (1, "skep-estimate"),
    (1, "skep-records"),
    (1, "skep-sim"),
    (2, "skep-host"),
    (2, "skep-tensor"),
    (2, "skep-heap"),
    (2, "skep-alloc"),
    (2, "skep-store"),
    (2, "skep-cache"),
    (3, "skep-weights"),
    (3, "skep-backend"),
    (3, "skep-backend-onnxruntime"),
    (3, "skep-backend-embedded"),
    (3, "skep-backend-mock"),
    (3, "skep-sandbox"),
    (3, "skep-runtime"),
    (4, "skep-wire"),
    (4, "skep-tls"),
    (4, "skep-server"),
    (4, "skep-client"),
    (4, "skep-perf"),
    (4, "skep-testkit"),
    (4, "skep"),
    (5, "xtask"),
];

/// Crates that may hold `unsafe`: layer 2, the mapping of model files, the FFI of backends, and what a worker process
/// does at its start.
const UNSAFE_ALLOWED: [&str; 10] = [
    "skep-host",
    "skep-tensor",
    "skep-heap",
    "skep-alloc",
    "skep-store",
    "skep-cache",
    "skep-backend",
    "skep-backend-onnxruntime",
    "skep-backend-embedded",
    "skep-sandbox",
];

/// What layers 0 and 1 never mention: time and randomness are arguments, and there is no I/O.
const IMPURE: [&str; 10] = [
    "tokio::",
    "std::net",
    "std::fs",
    "std::thread",
    "std::env",
    "Instant::now",
    "SystemTime",
    "rand::rng",
    "println!",
    "eprintln!",
];

/// A file longer than this has more than one room in it.
const MAX_LINES: usize = 800;

/// Runs every check and reports all findings at once.
pub(crate) fn run(root: &Path) -> Result<()> {
    println!("\n==> tidy");
    let mut findings = Vec::new();
    for (position, (layer, name)) in ORDER.iter().enumerate() {
        let directory = if *name == "xtask" {
            root.join(name)
        } else {
            root.join("crates").join(name)
        };
        if !directory.exists() {
            continue;
        }
        dependencies(&directory, position, &mut findings)?;
        for file in rust_files(&directory)? {
            source(root, &file, *layer, name, &mut findings)?;
        }
    }
    for entry in fs::read_dir(root.join("crates"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !ORDER.iter().any(|(_, known)| *known == name) {
            findings.push(format!("crates/{name}: has no layer, give it a place in xtask/src/tidy.rs and ARCHITECTURE.md"));
        }
    }
    generated_code(root, &mut findings)?;
    profiles(root, &mut findings)?;
    if findings.is_empty() {
        println!("tidy");
        return Ok(());
    }
    bail!("untidy:\n  {}", findings.join("\n  "))
}

/// Invariants 4 and 5, and the layers: dependencies point down or left. Tests may look anywhere.
fn dependencies(directory: &Path, position: usize, findings: &mut Vec<String>) -> Result<()> {
    let path = directory.join("Cargo.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (_, own) = ORDER[position];
    let mut in_dependencies = false;
    for line in text.lines() {
        if line.starts_with('[') {
            in_dependencies = line == "[dependencies]";
        }
        let Some(name) = line
            .split(['.', ' ', '='])
            .next()
            .filter(|name| in_dependencies && name.starts_with("skep"))
        else {
            continue;
        };
        if !ORDER[..position].iter().any(|(_, lower)| *lower == name) {
            findings.push(format!("{own} depends on {name}, which is not below it"));
        }
        let is_backend = own.starts_with("skep-backend-");
        if is_backend && name.starts_with("skep-backend-") {
            findings.push(format!(
                "{own} depends on {name}: backends do not know each other"
            ));
        }
        if own == "skep-runtime" && name.starts_with("skep-backend-") {
            findings.push(format!(
                "{own} depends on {name}: the runtime knows backends by their trait only"
            ));
        }
    }
    Ok(())
}

fn source(
    root: &Path,
    file: &Path,
    layer: u8,
    crate_name: &str,
    findings: &mut Vec<String>,
) -> Result<()> {
    let text = fs::read_to_string(file)?;
    let shown = file.strip_prefix(root).unwrap_or(file).display();
    if !text.starts_with("//!") {
        findings.push(format!(
            "{shown}: does not begin with `//!`, which says what the file is for"
        ));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        findings.push(format!(
            "{shown}: {lines} lines, expected at most {MAX_LINES}"
        ));
    }
    // This file names what it forbids.
    if crate_name == "xtask" {
        return Ok(());
    }
    let may_be_unsafe = UNSAFE_ALLOWED.contains(&crate_name);
    if text.contains("unsafe {") && !may_be_unsafe {
        findings.push(format!(
            "{shown}: `unsafe` belongs to layer 2 and to backends' FFI"
        ));
    }
    // Of `mpsc`, by its path or imported; those of `oneshot` are named with theirs.
    let unbounded = [
        "mpsc::channel()",
        "mpsc::channel::<",
        " channel()",
        " channel::<",
    ];
    let is_there = unbounded.iter().any(|call| text.contains(call));
    if text.contains("unbounded_channel") || is_there && !text.contains("// Bounded:") {
        findings.push(format!("{shown}: a channel without a bound (or without a `// Bounded:` line that says why it is one)"));
    }
    let code = text.split("#[cfg(test)]").next().unwrap_or(&text);
    let is_test = file
        .components()
        .any(|part| part.as_os_str() == "tests" || part.as_os_str() == "examples")
        || ["_tests.rs", "/tests.rs"]
            .iter()
            .any(|end| shown.to_string().ends_with(end));
    if layer <= 1 && !is_test {
        for word in IMPURE.iter().filter(|word| code.contains(**word)) {
            findings.push(format!(
                "{shown}: `{word}` in layer {layer}, which has no I/O and no clock"
            ));
        }
    }
    for said in said_twice(code) {
        findings.push(format!(
            "{shown}: `{said}` says its source, which is then said again behind it: name the field `reason`, without `#[source]` and `#[from]`"
        ));
    }
    if layer <= 3 && code.contains("Serialize") {
        findings.push(format!(
            "{shown}: internal types are not serialisable, the edge converts"
        ));
    }
    Ok(())
}

/// Texts of errors (thiserror's) that hold what [`std::error::Error::source`] gives besides: chains are printed whole.
fn said_twice(code: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for part in code.split("#[error(").skip(1) {
        let Some((text, item)) = part.split_once(")]") else {
            continue;
        };
        // As far as the variant or the structure goes.
        let end = item.find("\n    },").or_else(|| item.find("\n}"));
        let item = &item[..end.unwrap_or(item.len())];
        let has_source = ["#[source]", "#[from]", " source:"]
            .iter()
            .any(|mark| item.contains(mark));
        if has_source && ["{source}", "{0}"].iter().any(|name| text.contains(name)) {
            found.push(text.trim());
        }
    }
    found
}

/// The committed code is what the `.proto` files say.
fn generated_code(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let committed = fs::read_to_string(codegen::digest_path(root)).unwrap_or_default();
    if committed.trim() != codegen::digest(root)? {
        findings.push(
            "crates/skep-proto: the .proto files changed, run `cargo xtask codegen`".to_owned(),
        );
    }
    Ok(())
}

/// Invariant 8: a panic must unwind, so that it ends a batch and not the server.
fn profiles(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    if fs::read_to_string(root.join("Cargo.toml"))?.contains("panic = \"abort\"") {
        findings.push(
            "Cargo.toml: `panic = \"abort\"` would let one model's panic end the server".to_owned(),
        );
    }
    Ok(())
}

fn rust_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                if !path.ends_with("generated") {
                    pending.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_says_its_source_is_found() {
        let found = |item: &str| said_twice(item).len();
        assert_eq!(found("#[error(\"a: {source}\")]\n    A { source: E },"), 1);
        assert_eq!(found("#[error(\"a: {0}\")]\n    A(#[from] E),"), 1);
        assert_eq!(found("#[error(transparent)]\n    A(#[from] E),"), 0);
        assert_eq!(found("#[error(\"a\")]\n    A(#[source] E),"), 0);
        assert_eq!(found("#[error(\"a: {reason}\")]\n    A { reason: E },"), 0);
        let several =
            "#[error(\"{0}\")]\n    A(E),\n    #[error(transparent)]\n    B(#[from] E),\n}";
        assert_eq!(found(several), 0);
    }
}
