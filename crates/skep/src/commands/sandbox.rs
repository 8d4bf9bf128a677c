//! `skep sandbox`: a worker process, which a server starts for an instance of a model with `isolation` `process`; and
//! what flags say of them.

use std::{io, path::Path, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Args;
use skep_sandbox::worker::{self, Opening};
use tracing::level_filters::LevelFilter;

use crate::backends;

/// What a worker process may take to load a model, unless its user says otherwise: many times what the largest models
/// take to be baked.
pub(crate) const DEFAULT_LOAD_LIMIT: Duration = Duration::from_secs(600);

/// Worker processes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Worker processes")]
pub(crate) struct SandboxArgs {
    /// How long a worker process may take to load a model, and another one to bake it; what takes longer is ended. 0:
    /// as long as it likes (Skep's own)
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_LOAD_LIMIT.as_secs())]
    sandbox_load_timeout_secs: u64,
}

impl SandboxArgs {
    /// The limit on loading and on baking, if there is one.
    pub(crate) fn load_limit(&self) -> Option<Duration> {
        let seconds = self.sandbox_load_timeout_secs;
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }
}

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    skep_heap::bound_kept_memory();
    // Warnings and errors, each a level and a text: the server gives each line a place and a time in its own log.
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(LevelFilter::WARN)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        // It would report them on standard error, and panic if that has no reader.
        .log_internal_errors(false)
        .init();
    worker::run(|Opening { backend, library }| {
        backends::open(backend, library.map(Path::to_owned))
    })
    .context("worker process")?;
    Ok(ExitCode::SUCCESS)
}
