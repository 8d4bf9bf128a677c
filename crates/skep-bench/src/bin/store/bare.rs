//! Plain loads as a program makes them that calls ONNX Runtime by itself: a process for each, and nothing given back.

use std::{
    env,
    io::{self, BufRead, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use skep_backend_onnxruntime::{LibrarySearch, OnnxRuntime};
use skep_models::Kind;
use skep_perf::tree_memory;

use skep_bench::BareModel;

use crate::node::{Copies, MIB, request};

/// The argument that makes the program such a process.
pub(crate) const WORD: &str = "bare";

/// What it says when it has run.
const READY: &str = "ready";

/// Is such a process: loads a model, runs it twice, and stays until its input ends.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut next = || {
        arguments
            .next()
            .context("usage: store bare LIBRARY FILE KIND")
    };
    let (library, file, kind) = (next()?, next()?, next()?);
    let (runtime, _) =
        OnnxRuntime::start(&LibrarySearch::default().with_flag(Some(library.into())))?;
    let kind: Kind = kind.parse()?;
    let inputs = request("bare", &kind, 0)?.inputs;
    let inputs = inputs.into_iter().map(|(_, tensor)| tensor).collect();
    let model = BareModel::load(&runtime, Path::new(&file), "", inputs)?;
    let mut instance = model.instance()?;
    for _ in 0..2 {
        model.run(&mut *instance)?;
    }
    println!("{READY}");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Processes that are ended when this is dropped.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // An error means that it has ended already.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// What so many of them hold together, in MiB.
pub(crate) fn held(copies: &Copies, file: &Path, kind: &str, count: usize) -> Result<f64> {
    let program: PathBuf = env::current_exe()?;
    let mut processes = Processes(Vec::new());
    for _ in 0..count {
        let mut child = Command::new(&program)
            .arg(WORD)
            .args([copies.library(), file])
            .arg(kind)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("piped above")?;
        processes.0.push(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line.trim() == READY, "a plain load failed");
    }
    let pids: Vec<u32> = processes.0.iter().map(Child::id).collect();
    Ok(tree_memory(&pids)?.held_kib() / MIB)
}
