//! What commands print, and files that they write beside it.
//!
//! Everything for standard output goes through [`out!`] and [`outln!`], everything for standard error through
//! [`errln!`]; the library's own macros panic if the reader has gone. A reader may stop, as `head` does: the command
//! then ends at once, without a message and with the exit code that shells use for that ([`CLOSED`]). A full disk is an
//! error.

use std::{
    fmt, fs,
    io::{self, ErrorKind, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, bail};

use crate::progress;

/// The exit code of a command whose output has no reader any more: the code of a process that SIGPIPE ended.
pub(crate) const CLOSED: u8 = 141;

/// Prints to standard output, formatted.
macro_rules! out {
    ($($format:tt)*) => { $crate::output::print(format_args!($($format)*)) };
}

/// Prints a line to standard output, formatted.
macro_rules! outln {
    () => { $crate::output::print(format_args!("\n")) };
    ($($format:tt)*) => {
        $crate::output::print(format_args!("{}\n", format_args!($($format)*)))
    };
}

/// Prints a line to standard error, formatted. If that fails, there is no place to report it.
macro_rules! errln {
    ($($format:tt)*) => { $crate::output::say(format_args!($($format)*)) };
}

pub(crate) use {errln, out, outln};

/// Why standard output took no more.
#[derive(Debug)]
pub(crate) struct OutputError(io::Error);

impl OutputError {
    /// Reports the error, unless the reader has merely stopped. Returns the process's exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if self.0.kind() == ErrorKind::BrokenPipe {
            return ExitCode::from(CLOSED);
        }
        errln!("error: {self}");
        ExitCode::FAILURE
    }
}

impl fmt::Display for OutputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl std::error::Error for OutputError {}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

pub(crate) fn print(text: fmt::Arguments<'_>) -> Result<(), OutputError> {
    progress::beside(|| {
        let mut out = io::stdout().lock();
        out.write_fmt(text)?;
        // A last line without its end would otherwise be written at the process's end, where a failure goes unnoticed.
        out.flush()
    })?;
    Ok(())
}

pub(crate) fn say(text: fmt::Arguments<'_>) {
    drop(progress::beside(|| writeln!(io::stderr(), "{text}")));
}

/// Says before a minute's work what could not be written after it.
pub(crate) fn check(flag: &str, path: Option<&Path>) -> anyhow::Result<()> {
    let directory = path.and_then(Path::parent);
    if let Some(directory) = directory.filter(|d| !d.as_os_str().is_empty() && !d.is_dir()) {
        bail!("{flag}: there is no directory `{}`", directory.display());
    }
    Ok(())
}

/// Writes a file, if one is asked for.
pub(crate) fn write(
    flag: &str,
    path: Option<&Path>,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    match path {
        Some(path) => fs::write(path, text())
            .with_context(|| format!("{flag}: cannot write `{}`", path.display())),
        None => Ok(()),
    }
}
