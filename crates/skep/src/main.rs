//! The Skep inference server and its tools: one binary, a module per subcommand.

mod backends;
mod check;
mod cli;
mod doctor;
mod generate;
mod infer;
mod logging;
mod serve;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let outcome = match cli::Cli::parse().command {
        cli::Command::Serve(args) => serve::run(*args),
        cli::Command::Check(args) => check::run(&args),
        cli::Command::Doctor(args) => doctor::run(&args),
        cli::Command::Infer(args) => infer::run(&args),
        cli::Command::Generate(args) => generate::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
