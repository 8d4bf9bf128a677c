//! The command line.

use std::{
    error::Error,
    ffi::OsString,
    num::{IntErrorKind, ParseFloatError, ParseIntError},
    path::Path,
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{
    bake::BakeArgs, check::CheckArgs, doctor::DoctorArgs, generate::GenerateArgs, infer::InferArgs,
    pack::PackArgs, plan::PlanArgs, profile::ProfileArgs, replay::ReplayArgs, serve::ServeArgs,
    simulate::SimulateArgs, status::StatusArgs, store::StoreArgs, trace::TraceArgs,
};

/// Skep, an inference server: many models, one node, nothing wasted.
#[derive(Debug, Parser)]
#[command(name = "skep", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// What the process was started with.
    ///
    /// # Errors
    /// For a wrong command line, and for one that asks for help.
    pub(crate) fn read(arguments: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = with_negative_numbers(Self::command());
        let matches = command.try_get_matches_from_mut(as_skep(arguments))?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

/// The name that scripts and KServe start a Triton server by.
const TRITON: &str = "tritonserver";

/// The command line of a process that was started as `tritonserver`, such as through a link, with flags alone:
/// `skep serve` with these flags. Any other one stays as it is.
fn as_skep(mut arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let name = arguments.next();
    let mut arguments = arguments.peekable();
    let is_triton = name.as_ref().is_some_and(|name| {
        Path::new(name)
            .file_name()
            .is_some_and(|name| name == TRITON)
    });
    let has_flags_alone = arguments
        .peek()
        .is_none_or(|first| first.as_encoded_bytes().starts_with(b"-"));
    let serve = (is_triton && has_flags_alone).then(|| OsString::from("serve"));
    name.into_iter().chain(serve).chain(arguments)
}

/// The same command, whose flags take `-1` as their value, and lists `-1,2`: errors are then about the
/// number, not about a flag that was not given.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        let takes_values = arg.get_action().takes_values() && !arg.is_positional();
        let takes_lists = takes_values && arg.get_value_delimiter().is_some();
        // One that takes all hyphens takes those of numbers.
        if takes_lists || arg.is_allow_hyphen_values_set() {
            arg.allow_hyphen_values(true)
        } else {
            arg.allow_negative_numbers(takes_values)
        }
    });
    command.mut_subcommands(with_negative_numbers)
}

/// What is wrong with a command line. Numbers are explained: the library's words for them are those of a program. The
/// advice to put `--` before what looks like a flag is left out: for a misspelt flag or a negative number it is wrong.
pub(crate) fn explain(error: &clap::Error) -> String {
    let text = error.to_string();
    let paragraphs = text
        .split("\n\n")
        .filter(|paragraph| !paragraph.starts_with("  tip: to pass '"));
    let text = paragraphs.collect::<Vec<_>>().join("\n\n");
    let Some(source) = error.source() else {
        return text;
    };
    let why = if let Some(error) = source.downcast_ref::<ParseIntError>() {
        match error.kind() {
            IntErrorKind::Zero => "expected a whole number above 0",
            IntErrorKind::PosOverflow => "expected a smaller number",
            _ => "expected a whole number that is not negative",
        }
    } else if source.is::<ParseFloatError>() {
        "expected a number"
    } else {
        return text;
    };
    text.replacen(&source.to_string(), why, 1)
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model repository over HTTP and gRPC
    // Of a flag that is given twice the last one holds, as on Triton: scripts append to what others wrote.
    #[command(args_override_self = true)]
    Serve(Box<ServeArgs>),
    /// Prepare models ahead of time, so that their first load is fast
    Bake(BakeArgs),
    /// Check the models of a repository without serving them
    Check(CheckArgs),
    /// Show what this machine offers: backends, libraries, cores
    Doctor(DoctorArgs),
    /// Send an inference request to a running server and print its answer
    Infer(InferArgs),
    /// Show which models of a running server are in memory, and why
    Status(StatusArgs),
    /// Measure what a model takes and how fast it is, by cores, instances and batch
    Profile(ProfileArgs),
    /// Choose instances that serve given rates within their objectives, and devices for them
    Pack(PackArgs),
    /// Write a generated ONNX model
    Generate(GenerateArgs),
    /// Simulate the server's decisions in virtual time
    Simulate(SimulateArgs),
    /// Plan the memory of tensors whose sizes and live ranges are known
    Plan(PlanArgs),
    /// Replay memory traces over allocators, side by side
    Replay(ReplayArgs),
    /// Make memory traces for `skep replay`
    Trace(TraceArgs),
    /// Run as a worker process of a server (started by the server itself)
    #[command(name = skep_sandbox::COMMAND, hide = true)]
    Sandbox,
    /// Replay a trace over a plug-in (started by `skep replay` itself)
    #[command(name = crate::commands::replay::plugin::COMMAND, hide = true)]
    ReplayPlugin,
    /// Keep one copy of weights on a node, for all its processes
    Store(StoreArgs),
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use expect_test::expect_file;

    fn refused(line: &str) -> String {
        let arguments = line.split_whitespace().map(OsString::from);
        explain(&Cli::read(arguments).expect_err(line))
    }

    #[test]
    fn a_server_that_is_called_tritonserver_serves() {
        let read = |line: &str| Cli::read(line.split_whitespace().map(OsString::from));
        let flags = "--model-store=/mnt/models --grpc-port=9000 --http-port=8080 --allow-grpc=true --allow-http=true";
        for name in [
            "tritonserver",
            "/opt/tritonserver/bin/tritonserver",
            "skep serve",
        ] {
            let cli = read(&format!("{name} {flags}")).expect(name);
            assert!(matches!(cli.command, Command::Serve(_)), "{name}");
        }
        assert!(read(&format!("skep {flags}")).is_err());
        assert!(read("tritonserver --no-such-flag").is_err());
        assert!(
            read("tritonserver check models").is_ok(),
            "a command stays one"
        );
    }

    #[test]
    fn an_error_about_a_number_names_the_number() {
        for (flags, why) in [
            ("serve m --http-port -1", "-1 is not in 0..=65535"),
            ("simulate batching --load -1,2", "expected"),
            (
                "serve m --http-port=x",
                "expected a whole number that is not negative",
            ),
            (
                "serve m --max-connections -1",
                "expected a whole number that is not negative",
            ),
            (
                "serve m --max-connections 0",
                "expected a whole number above 0",
            ),
            (
                "serve m --exit-timeout-secs -1.5",
                "expected a whole number that is not negative",
            ),
            (
                "serve m --exit-timeout-secs 99999999999999999999",
                "expected a smaller number",
            ),
            (
                "serve m --repository-poll-secs -1",
                "expected a number of seconds above 0",
            ),
            (
                "serve m --min-supported-compute-capability x",
                "expected a number",
            ),
            ("infer m --model-version -1", "invalid model version `-1`"),
            ("infer m --shape -1", "expected an input's name"),
            (
                "generate mlp out --seed -1",
                "expected a whole number that is not negative",
            ),
            (
                "plan f --batch -1",
                "expected a whole number that is not negative",
            ),
            (
                "store serve --budget -1",
                "expected a whole number that is not negative",
            ),
        ] {
            let text = refused(&format!("skep {flags}"));
            let flag = flags.split(' ').find(|word| word.starts_with("--"));
            let flag = flag
                .and_then(|flag| flag.split('=').next())
                .expect("a flag");
            assert!(text.contains(why) && text.contains(flag), "{flags}: {text}");
            assert!(!text.contains("tip:"), "{flags}: {text}");
        }
    }

    #[test]
    fn an_unknown_flag_is_not_a_value() {
        for flags in ["infer m --nosuch 1", "infer m -1", "serve m --nosuch"] {
            let text = refused(&format!("skep {flags}"));
            assert!(text.contains("unexpected argument '-"), "{flags}: {text}");
            assert!(!text.contains("tip:"), "{flags}: {text}");
        }
        assert!(
            refused("skep serve m --httpport=1")
                .contains("tip: a similar argument exists: '--http-port'")
        );
    }

    /// Each command's flags under their headings.
    fn headings(command: &clap::Command, path: &str, text: &mut String) {
        let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
        let flags = command.get_arguments().filter(|arg| !arg.is_hide_set());
        for (arg, flag) in flags.filter_map(|arg| Some((arg, arg.get_long()?))) {
            let heading = arg.get_help_heading().unwrap_or("Options");
            match found.iter_mut().find(|(known, _)| *known == heading) {
                Some((_, flags)) => flags.push(flag),
                None => found.push((heading, vec![flag])),
            }
        }
        for (heading, flags) in found {
            writeln!(text, "{path}: {heading}").expect("a string takes all");
            for flag in flags {
                writeln!(text, "    --{flag}").expect("a string takes all");
            }
        }
        let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set());
        for sub in shown {
            headings(sub, &format!("{path} {}", sub.get_name()), text);
        }
    }

    /// `UPDATE_EXPECT=1 cargo test -p skep` writes the file.
    #[test]
    fn every_flag_stands_under_its_heading() {
        let mut text = String::new();
        headings(&Cli::command(), "skep", &mut text);
        expect_file!["cli_headings.txt"].assert_eq(&text);
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
