//! `skep sandbox`: a worker process, which a server starts for an instance of a model with `isolation` `process`.

use std::{io, path::Path, process::ExitCode};

use anyhow::Context;
use skep_sandbox::worker::{self, Opening};
use tracing::level_filters::LevelFilter;

use crate::backends;

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    skep_heap::bound_kept_memory();
    // Warnings and errors, each a level and a text: the server gives each line a place and a time in its own log.
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(LevelFilter::WARN)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
    worker::run(|Opening { backend, library }| {
        backends::open(backend, library.map(Path::to_owned))
    })
    .context("worker process")?;
    Ok(ExitCode::SUCCESS)
}
