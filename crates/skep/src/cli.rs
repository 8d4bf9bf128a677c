//! The command line.

use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    bake::BakeArgs, check::CheckArgs, doctor::DoctorArgs, generate::GenerateArgs, infer::InferArgs,
    plan::PlanArgs, serve::ServeArgs, simulate::SimulateArgs, store::StoreArgs,
};

/// Skep, an inference server: many models, one node, nothing wasted.
#[derive(Debug, Parser)]
#[command(name = "skep", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model repository over HTTP and gRPC
    // Of a flag that is given twice the last one holds, as on Triton: scripts append to what others wrote.
    #[command(args_override_self = true)]
    Serve(Box<ServeArgs>),
    /// Make what the first load of a model makes, ahead of time
    Bake(BakeArgs),
    /// Check the models of a repository without serving them
    Check(CheckArgs),
    /// Say what this machine offers: backends, libraries, cores
    Doctor(DoctorArgs),
    /// Ask a running server, and print what it sees
    Infer(InferArgs),
    /// Write a generated ONNX model
    Generate(GenerateArgs),
    /// Try decisions of the server over virtual time
    Simulate(SimulateArgs),
    /// Plan the memory of tensors whose sizes and live ranges are known
    Plan(PlanArgs),
    /// Be a worker process of a server, which starts it so
    #[command(name = skep_sandbox::COMMAND, hide = true)]
    Sandbox,
    /// Keep weights once on a node, for every process on it
    Store(StoreArgs),
}

impl Cli {
    /// What the process was called with.
    ///
    /// # Errors
    /// What is wrong with it, or the help that it asks for.
    pub(crate) fn of_process() -> Result<Self, clap::Error> {
        let matches = with_negative_numbers(Self::command()).try_get_matches()?;
        Self::from_arg_matches(&matches)
    }
}

/// Lets each flag that has a value take a negative number, so that the flag's own parser says what it expects. Otherwise the
/// number is an unknown flag, and the advice is to pass it as a file.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let takes = |arg: Arg| {
        let takes_value = arg.get_action().takes_values() && !arg.is_positional();
        if takes_value && !arg.is_allow_hyphen_values_set() {
            arg.allow_negative_numbers(true)
        } else {
            arg
        }
    };
    let command = command.mut_args(takes);
    command.mut_subcommands(with_negative_numbers)
}

/// Triton's booleans: true, false, 1, 0, in any case.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" => Ok(true),
        "false" | "0" | "off" => Ok(false),
        _ => Err(format!("expected true or false, got `{text}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        with_negative_numbers(Cli::command()).debug_assert();
    }

    #[test]
    fn tritons_spellings_of_booleans() {
        for text in ["true", "True", "1", "TRUE"] {
            assert_eq!(boolean(text), Ok(true));
        }
        assert_eq!(boolean("false"), Ok(false));
        assert!(boolean("yes please").is_err());
    }
}
