//! The checks that a program can make of ARCHITECTURE.md's invariants and of the house's habits.

mod commits;
mod errors;
mod names;
mod purity;

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{
    codegen, figures,
    rust_source::{self, RustSource},
};

/// Crates from the bottom up: (layer, name). A crate may depend on those above it in this list.
const ORDER: &[(u8, &str)] = &[
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
    (1, "skep-trace"),
    (1, "skep-lab"),
    (1, "skep-placer"),
    (1, "skep-sim"),
    (2, "skep-host"),
    (2, "skep-ipc"),
    (2, "skep-tensor"),
    (2, "skep-regions"),
    (2, "skep-heap"),
    (2, "skep-alloc"),
    (2, "skep-store"),
    (2, "skep-cache"),
    (2, "skep-models"),
    (3, "skep-weights"),
    (3, "skep-backend"),
    (3, "skep-backend-onnxruntime"),
    (3, "skep-backend-embedded"),
    (3, "skep-backend-mock"),
    (3, "skep-sandbox"),
    (3, "skep-runtime"),
    (4, "skep-wire"),
    (4, "skep-tls"),
    (4, "skep-tracing"),
    (4, "skep-server"),
    (4, "skep-client"),
    (4, "skep-perf"),
    (4, "skep-bench"),
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

/// Modules of other layers that are pure as well: decisions, and messages to bytes and back. A folder or a file each.
const PURE_MODULES: &[&str] = &[
    "crates/skep-ipc/src/encode.rs",
    "crates/skep-runtime/src/serving/response_cache/table.rs",
    "crates/skep-store/src/availability.rs",
    "crates/skep-store/src/ledger/",
    "crates/skep-store/src/order.rs",
    "crates/skep-store/src/wire/fields.rs",
    "crates/skep-store/src/wire/message.rs",
    "crates/skep-tracing/src/parent.rs",
    "crates/skep-tracing/src/settings.rs",
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
        for file in rust_source::rust_files(&directory)? {
            source(root, &file, *layer, name, &mut findings)?;
        }
    }
    for entry in fs::read_dir(root.join("crates"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !ORDER.iter().any(|(_, known)| *known == name) {
            findings.push(format!("crates/{name}: has no layer, give it a place in xtask/src/tidy/mod.rs and ARCHITECTURE.md"));
        }
    }
    for module in PURE_MODULES {
        if !root.join(module).exists() {
            findings.push(format!(
                "{module}: moved away, mend PURE_MODULES in xtask/src/tidy/mod.rs"
            ));
        }
    }
    generated_code(root, &mut findings)?;
    profiles(root, &mut findings)?;
    commits::check(root, &mut findings);
    if findings.is_empty() {
        println!("tidy");
        return Ok(());
    }
    bail!("untidy:\n  {}", findings.join("\n  "))
}

/// Layers: dependencies point down or left, and backends are known by their trait only. Tests may look anywhere.
fn dependencies(directory: &Path, position: usize, findings: &mut Vec<String>) -> Result<()> {
    let path = directory.join("Cargo.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (_, own) = ORDER[position];
    for name in figures::own_dependencies(&text) {
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
    let source = RustSource::parse(&text).with_context(|| format!("cannot parse {shown}"))?;
    let is_for_tests = rust_source::is_test_file(file.strip_prefix(root).unwrap_or(file));
    let path = shown.to_string();
    let in_pure_module = PURE_MODULES.iter().any(|module| path.starts_with(module));
    if !is_for_tests {
        for (word, owner) in names::check(crate_name, &source.syntax) {
            findings.push(format!(
                "{shown}: the type `{word}` has the name of one of {owner} (docs/glossary.md), expected a name of two words"
            ));
        }
    }
    if (layer <= 1 || in_pure_module) && !is_for_tests {
        for word in purity::impure(&source, in_pure_module) {
            findings.push(format!(
                "{shown}: `{word}` in code that is pure: it has no I/O and no clock"
            ));
        }
    }
    for said in errors::said_twice(&source.text) {
        findings.push(format!(
            "{shown}: `{said}` says its source, which is then said again behind it: name the field `reason`, without `#[source]` and `#[from]`"
        ));
    }
    if layer <= 3 && source.text.contains("Serialize") {
        findings.push(format!(
            "{shown}: internal types are not serialisable, the edge converts"
        ));
    }
    Ok(())
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

/// Panics in backends: a panic must unwind, so that it ends a batch and not the server.
fn profiles(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    if fs::read_to_string(root.join("Cargo.toml"))?.contains("panic = \"abort\"") {
        findings.push(
            "Cargo.toml: `panic = \"abort\"` would let one model's panic end the server".to_owned(),
        );
    }
    Ok(())
}
