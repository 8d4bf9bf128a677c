//! The Skep inference server and its tools: one binary, a module per subcommand.
// They panic without a reader; `output` has others.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod allocator_libraries;
mod axis;
mod backends;
mod cli;
mod colour;
mod commands;
mod cores;
mod descriptors;
mod flag_values;
mod logging;
mod measured_model;
mod origin;
mod output;
mod pressure;
mod progress;
mod server_flags;
mod signals;
mod table;
mod units;
mod weights;

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use skep_heap::SplitHeap;

use colour::{Colour, Colours};
use output::{OutputError, errln};

#[global_allocator]
static HEAP: SplitHeap = SplitHeap;

fn main() -> ExitCode {
    // First of all: the process must have one thread.
    skep_backend_onnxruntime::switch_off_telemetry();
    let command = match cli::Cli::read(env::args_os()) {
        Ok(cli) => cli.command,
        Err(error) => return refuse(&error),
    };
    let outcome = match command {
        cli::Command::Serve(args) => commands::serve::run(*args),
        cli::Command::Bake(args) => commands::bake::run(&args),
        cli::Command::Check(args) => commands::check::run(&args),
        cli::Command::Doctor(args) => commands::doctor::run(&args),
        cli::Command::Infer(args) => commands::infer::run(&args),
        cli::Command::Status(args) => commands::status::run(&args),
        cli::Command::Profile(args) => commands::profile::run(&args),
        cli::Command::Pack(args) => commands::pack::run(&args),
        cli::Command::Generate(args) => commands::generate::run(&args),
        cli::Command::Simulate(args) => commands::simulate::run(&args),
        cli::Command::Plan(args) => commands::plan::run(&args),
        cli::Command::Replay(args) => commands::replay::run(&args),
        cli::Command::Trace(args) => commands::trace::run(&args),
        cli::Command::Sandbox => commands::sandbox::run(),
        cli::Command::ReplayPlugin => commands::replay::plugin::run(),
        cli::Command::Store(args) => commands::store::run(args),
    };
    outcome.unwrap_or_else(|error| match error.downcast_ref::<OutputError>() {
        Some(error) => error.report(),
        None => {
            let head = Colours::of_errors().paint(Colour::Red, "error:");
            errln!("{head} {error:#}");
            ExitCode::FAILURE
        }
    })
}

/// Says what is wrong with the command line, or gives the help that it asks for. A wrong one ends with 1, as on Triton.
fn refuse(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        errln!("{}", cli::explain(error).trim_end());
        return ExitCode::FAILURE;
    }
    match error.print().and_then(|()| io::stdout().flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => OutputError::from(error).report(),
    }
}
