//! Errors in memory traces.

use skep_planner::shortened_name;
use skep_records::RecordsError;
use thiserror::Error;

/// Why input cannot be read as a memory trace. Positions are those of the decompressed input: bytes count from 0, lines
/// from 1.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// Nothing is in it, or nothing but white space at its beginning.
    #[error("expected a memory trace, got nothing")]
    Empty,
    /// No format begins like this.
    #[error("expected a memory trace ({}), got `{got}`", crate::format::NAMES)]
    UnknownFormat {
        /// How it begins, shortened.
        got: String,
    },
    /// Another file of a tool whose traces are read.
    #[error(
        "expected {expected}, got {got}, which does not say in which order blocks are allocated"
    )]
    OtherFile {
        /// The file to take.
        expected: &'static str,
        /// What this one is.
        got: &'static str,
    },
    /// The caller's input failed.
    #[error("cannot read beyond byte {byte}: {reason}")]
    Read {
        /// Of the input as it is stored, compressed or not.
        byte: u64,
        /// In the system's words.
        reason: String,
    },
    /// Compressed data that ends early.
    #[error("gzip data ends early, after {bytes} bytes ({plain} decompressed)")]
    Truncated {
        /// Compressed bytes.
        bytes: u64,
        /// What they gave.
        plain: u64,
    },
    /// Compressed data that is broken.
    #[error("gzip data is broken after {plain} decompressed bytes: {reason}")]
    Gzip {
        /// What could be decompressed.
        plain: u64,
        /// In the decoder's words.
        reason: String,
    },
    /// A line that cannot be read.
    #[error("line {line}: expected {expected}, got `{got}`")]
    Line {
        /// From 1.
        line: u64,
        /// What it should have.
        expected: &'static str,
        /// The line, or the part that is wrong, shortened where it is long.
        got: String,
    },
    /// A line that is longer than any should be.
    #[error("line {line}: expected at most {limit} bytes")]
    LineTooLong {
        /// From 1.
        line: u64,
        /// Bytes.
        limit: usize,
    },
    /// Text in another encoding.
    #[error("line {line}: expected UTF-8, got byte {byte:#04x}")]
    Encoding {
        /// From 1.
        line: u64,
        /// The first that is wrong.
        byte: u8,
    },
    /// A cell of a table that cannot be read.
    #[error("line {line}, column `{column}`: expected {expected}, got `{got}`")]
    Cell {
        /// From 1.
        line: u64,
        /// As in the heading.
        column: &'static str,
        /// What it should have.
        expected: &'static str,
        /// The cell, shortened where it is long.
        got: String,
    },
    /// JSON or a pickle that cannot be read.
    #[error("byte {byte}: expected {expected}, got {got}")]
    Byte {
        /// From 0.
        byte: u64,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        got: String,
    },
    /// A pickle that would do more than hold data.
    #[error(
        "byte {byte}: opcode {name} is refused, expected a pickle of dicts, lists, tuples, texts and numbers alone"
    )]
    Opcode {
        /// From 0.
        byte: u64,
        /// In the words of Python's `pickletools`.
        name: &'static str,
    },
    /// An entry of a snapshot that cannot be read.
    #[error("device {device}, entry {entry}: expected {expected}")]
    Entry {
        /// From 0.
        device: usize,
        /// From 0.
        entry: usize,
        /// What should be there.
        expected: &'static str,
    },
    /// More of something than is read.
    #[error("more than {limit} {what}, which is the limit")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many may be.
        limit: u64,
    },
    /// Input of the right kind, with nothing in it that tells of memory.
    #[error("expected {expected}, got none")]
    NothingFound {
        /// What was looked for, and how it gets there.
        expected: &'static str,
    },
    /// Said by the reader of tables or of XLA's dumps.
    #[error(transparent)]
    Records(#[from] RecordsError),
}

/// Bytes of the input for an error.
pub(crate) fn shown(bytes: &[u8]) -> String {
    shortened_name(String::from_utf8_lossy(bytes).trim())
}
