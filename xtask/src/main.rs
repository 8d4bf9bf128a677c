//! Development tasks: `cargo xtask <task>`.
#![allow(clippy::print_stdout, reason = "a command-line tool speaks on its standard output")]

mod codegen;

use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    match std::env::args().nth(1).as_deref() {
        Some("codegen") => codegen::run(&root),
        _ => anyhow::bail!("usage: cargo xtask codegen"),
    }
}
