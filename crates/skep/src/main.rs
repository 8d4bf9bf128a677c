//! The Skep inference server and its tools: one binary, a module per subcommand.

mod axis;
mod backends;
mod bake;
mod check;
mod cli;
mod cores;
mod descriptors;
mod doctor;
mod generate;
mod infer;
mod logging;
mod output;
mod plan;
mod pressure;
mod sandbox;
mod serve;
mod signals;
mod simulate;
mod store;
mod units;
mod weights;

use std::process::ExitCode;

use clap::Parser;
use skep_heap::SplitHeap;

#[global_allocator]
static HEAP: SplitHeap = SplitHeap;

fn main() -> ExitCode {
    let command = match cli::Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return refuse(&error),
    };
    let outcome = match command {
        cli::Command::Serve(args) => serve::run(*args),
        cli::Command::Bake(args) => bake::run(&args),
        cli::Command::Check(args) => check::run(&args),
        cli::Command::Doctor(args) => doctor::run(&args),
        cli::Command::Infer(args) => infer::run(&args),
        cli::Command::Generate(args) => generate::run(&args),
        cli::Command::Simulate(args) => simulate::run(&args),
        cli::Command::Plan(args) => plan::run(&args),
        cli::Command::Sandbox => sandbox::run(),
        cli::Command::Store(args) => store::run(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Says what is wrong with the command line, or gives the help that it asks for. A wrong one ends with 1, as on Triton.
fn refuse(error: &clap::Error) -> ExitCode {
    // Nobody is left to tell if this cannot be written.
    drop(error.print());
    if error.use_stderr() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
