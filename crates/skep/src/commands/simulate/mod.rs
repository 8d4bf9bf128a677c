//! `skep simulate WHAT`: the server's own decisions over virtual time.

mod batching;
mod chart;
mod cluster;
mod flags;
mod measure;
mod residency;
mod rows;
mod saved;
mod show;

use std::process::ExitCode;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    #[command(subcommand)]
    what: SimulateCommand,
}

#[derive(Debug, Subcommand)]
enum SimulateCommand {
    /// Compare batching policies under a latency objective
    Batching(Box<batching::BatchingArgs>),
    /// Compare eviction policies for many models under a memory budget
    Residency(residency::ResidencyArgs),
    /// Compare platforms that run applications on a cluster: memory, cores, late requests, cost
    Cluster(Box<cluster::ClusterArgs>),
}

pub(crate) fn run(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        SimulateCommand::Batching(args) => batching::run(args),
        SimulateCommand::Residency(args) => residency::run(args),
        SimulateCommand::Cluster(args) => cluster::run(args),
    }
}
