//! Libraries made of C for tests.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A file of the repository.
pub(crate) fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

/// Compiles a file of C to a shared library in `directory`.
pub(crate) fn library(directory: &Path, source: &Path) -> PathBuf {
    let stem = source.file_stem().expect("a name").to_string_lossy();
    let library = directory.join(format!("lib{stem}.so"));
    // The linker of Rust programs, so it is there.
    let compiled = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args([
            "-std=c99", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-I",
        ])
        .arg(in_repository("include"))
        .arg("-o")
        .args([&library, source])
        .output()
        .expect("a C compiler");
    let text = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "{text}");
    library
}

/// Compiles C from a text.
#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn library_of(directory: &Path, name: &str, text: &str) -> PathBuf {
    let source = directory.join(format!("{name}.c"));
    std::fs::write(&source, text).expect("a file");
    library(directory, &source)
}
