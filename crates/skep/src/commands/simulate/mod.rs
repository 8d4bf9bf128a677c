//! `skep simulate WHAT`: the server's own decisions over virtual time.

mod batching;
mod chart;
mod flags;
mod measure;
mod place;
mod saved;
mod show;

use std::process::ExitCode;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Compare batching policies under a latency objective
    Batching(batching::BatchingArgs),
}

pub(crate) fn run(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Batching(args) => batching::run(args),
    }
}
