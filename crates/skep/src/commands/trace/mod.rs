//! `skep trace record`: a memory trace of a model, from a real run; `skep trace show`: what traces are like.

mod show;

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use skep_alloc::{BlockEvent, Recording};
use skep_trace::{BlockId, TraceEvent, write_events};

use super::plan::{
    onnx::{ShapeArgs, recorded_run},
    source::onnx_model,
};
use crate::{
    backends,
    output::{self, outln},
    units::human,
};

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    #[command(subcommand)]
    what: TraceCommand,
}

#[derive(Debug, Subcommand)]
enum TraceCommand {
    /// Write what runs of an ONNX model with ONNX Runtime allocate for intermediate tensors, as a table of events
    Record(RecordArgs),
    /// Show sizes, lifetimes and reuse distances of memory traces
    Show(show::ShowArgs),
}

#[derive(Debug, Args)]
struct RecordArgs {
    /// An ONNX model, or a directory with one ONNX model
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The table's file
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// How many runs are recorded, one after another
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// ONNX Runtime's library
    #[arg(long, value_name = "FILE")]
    onnxruntime_library: Option<PathBuf>,
    #[command(flatten)]
    shapes: ShapeArgs,
}

pub(crate) fn run(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        TraceCommand::Record(args) => record(args),
        TraceCommand::Show(args) => show::run(args),
    }
}

fn record(args: &RecordArgs) -> anyhow::Result<ExitCode> {
    output::check("--output", Some(&args.output))?;
    if args.shapes.batches().len() > 1 {
        bail!("--batch: a recording is of one batch size, expected one number");
    }
    let (path, bytes) = onnx_model(&args.model)?;
    let search = backends::search(args.onnxruntime_library.clone());
    let mut events = Vec::new();
    let (mut blocks, mut peak) = (0, 0);
    for _ in 0..args.runs {
        let recording = recorded_run(&path, bytes.clone(), &args.shapes, &search)?;
        peak = recording.peak().max(peak);
        blocks = append(&mut events, &recording, blocks);
    }
    let unwritable = || format!("--output: cannot write `{}`", args.output.display());
    let mut file = BufWriter::new(File::create(&args.output).with_context(unwritable)?);
    let written = write_events(&mut file, &events).and_then(|()| file.flush());
    let is_file = fs::metadata(&args.output).is_ok_and(|kind| kind.is_file());
    if written.is_err() && is_file {
        // A part of a trace is no trace.
        let _ = fs::remove_file(&args.output);
    }
    written.with_context(unwritable)?;
    outln!(
        "{}: {blocks} blocks, at most {} in use at once",
        args.output.display(),
        human(peak)
    )?;
    Ok(ExitCode::SUCCESS)
}

/// The events of a run, whose blocks are counted on from `first`; returns the number of the next block.
fn append(events: &mut Vec<TraceEvent>, recording: &Recording, first: u32) -> u32 {
    let mut next = first;
    for event in recording.events() {
        events.push(match *event {
            BlockEvent::Malloc(bytes) => {
                let block = BlockId(next);
                next += 1;
                TraceEvent::Malloc {
                    block,
                    bytes,
                    stream: 0,
                }
            }
            BlockEvent::Free(block) => TraceEvent::Free {
                block: BlockId(first + block),
            },
        });
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_follow_each_other() {
        let run = vec![
            BlockEvent::Malloc(8),
            BlockEvent::Malloc(9),
            BlockEvent::Free(0),
        ];
        let recording = Recording::new(run).expect("a recording");
        let mut events = Vec::new();
        let next = append(&mut events, &recording, 0);
        assert_eq!(append(&mut events, &recording, next), 4);
        let last = TraceEvent::Free { block: BlockId(2) };
        assert_eq!((events.len(), events.last()), (6, Some(&last)));
    }
}
