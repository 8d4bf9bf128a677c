//! The process of a plug-in.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::FileExt,
    process::ExitCode,
};

use anyhow::Context;
use skep_alloc::plugin::PluginLibrary;
use skep_trace::{BlockId, TraceEvent};

use super::{
    EVENT_BYTES,
    documents::{PluginAnswer, PluginOrder},
};
use crate::commands::replay::lab_source::Stopwatch;

/// Replays what comes from standard input, and answers on standard output.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    // What the library prints goes to standard error: standard output is for the answer.
    let mut answer = File::from(rustix::io::dup(rustix::stdio::stdout())?);
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    let mut input = BufReader::new(io::stdin().lock());
    let mut order = String::new();
    input.read_line(&mut order).context("no order")?;
    let order: PluginOrder = serde_json::from_str(&order).context("a broken order")?;
    let outcome = match replay(order, &mut input) {
        Ok(answer) => answer,
        Err(error) => PluginAnswer::Failed(format!("{error:#}")),
    };
    // The replay that started this process may have ended.
    let _ = answer.write_all(serde_json::to_string(&outcome)?.as_bytes());
    Ok(ExitCode::SUCCESS)
}

fn replay(order: PluginOrder, input: &mut impl Read) -> anyhow::Result<PluginAnswer> {
    let progress = OpenOptions::new().write(true).open(&order.progress);
    let progress = progress.context("cannot tell how far it is")?;
    let allocator = PluginLibrary::open(&order.library)?.build(&order.options)?;
    let stopwatch = Stopwatch::start();
    let clock = || stopwatch.ns();
    let source = order.source.setting()?;
    let mut bench = source.bench(Box::new(allocator), &clock)?;
    let mut bytes = [0; EVENT_BYTES];
    let mut number = 0_u64;
    while is_filled(input, &mut bytes)? {
        number += 1;
        progress.write_all_at(&number.to_le_bytes(), 0)?;
        bench.take(event(&bytes), &clock);
        if let Some(fault) = bench.fault() {
            return Ok(PluginAnswer::Failed(format!("at event {number}, {fault}")));
        }
    }
    Ok(PluginAnswer::Figures(Box::new(bench.finish().into())))
}

/// Fills `bytes`; false at the end of the input.
fn is_filled(input: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match input.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn event(bytes: &[u8; EVENT_BYTES]) -> TraceEvent {
    let number = |at: usize| {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(number)
    };
    let block = BlockId(u32::try_from(number(1)).unwrap_or(u32::MAX));
    match bytes[0] {
        0 => TraceEvent::Free { block },
        _ => TraceEvent::Malloc {
            block,
            bytes: number(9),
            stream: number(17),
        },
    }
}
