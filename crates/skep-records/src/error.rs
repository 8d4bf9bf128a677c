//! Errors in files of usage records.

use skep_planner::UsageRecordsError;
use thiserror::Error;

/// Why bytes cannot be read as usage records.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// Nothing is in it.
    #[error("expected usage records, got nothing")]
    Empty,
    /// Compressed data that ends early.
    #[error("gzip data ends early, after {bytes} bytes, of which {plain} could be decompressed")]
    Truncated {
        /// Compressed bytes.
        bytes: usize,
        /// What they gave.
        plain: usize,
    },
    /// Compressed data that is broken.
    #[error("gzip data is broken after {plain} decompressed bytes: {reason}")]
    Gzip {
        /// What could be decompressed.
        plain: usize,
        /// In the decoder's words.
        reason: String,
    },
    /// Compressed data that expands to too much.
    #[error("gzip data expands to more than {limit} bytes, which is the limit")]
    TooLong {
        /// Bytes.
        limit: usize,
    },
    /// Text in another encoding.
    #[error("line {line}: expected UTF-8, got byte {byte:#04x}")]
    Encoding {
        /// From 1.
        line: usize,
        /// The first that is wrong.
        byte: u8,
    },
    /// A heading without a column that is needed.
    #[error("line {line}: expected a column of {what} ({names}), got `{got}`")]
    MissingColumn {
        /// From 1.
        line: usize,
        /// What it would say.
        what: &'static str,
        /// What it may be called.
        names: String,
        /// The heading.
        got: String,
    },
    /// Two columns that say the same.
    #[error("line {line}: columns `{first}` and `{second}` both say {what}, expected one")]
    TwoColumns {
        /// From 1.
        line: usize,
        /// One's name.
        first: String,
        /// The other's name.
        second: String,
        /// What both say.
        what: &'static str,
    },
    /// A line with more or fewer cells than the heading.
    #[error("line {line}: expected {expected} cells, as the heading has, got {got}")]
    Cells {
        /// From 1.
        line: usize,
        /// In the heading.
        expected: usize,
        /// In the line.
        got: usize,
    },
    /// A cell that cannot be read.
    #[error("line {line}, column `{column}`: expected {expected}, got `{got}`")]
    Cell {
        /// From 1.
        line: usize,
        /// The column's name, as in the heading.
        column: String,
        /// What it should have.
        expected: &'static str,
        /// The cell.
        got: String,
    },
    /// A line that cannot be read.
    #[error("line {line}: expected {expected}, got `{got}`")]
    Line {
        /// From 1.
        line: usize,
        /// What it should have.
        expected: &'static str,
        /// The line, shortened where it is long.
        got: String,
    },
    /// A live range without a step.
    #[error(
        "line {line}: buffer `{name}` is live from {start} to before {end}, expected an end after the start"
    )]
    Range {
        /// From 1.
        line: usize,
        /// The buffer, shortened where the name is long.
        name: String,
        /// Its first step.
        start: u64,
        /// The step after its last.
        end: u64,
    },
    /// A name that an earlier line has.
    #[error("line {line}: buffer `{name}` is in line {first} already, expected names that differ")]
    DuplicateLine {
        /// From 1.
        line: usize,
        /// The name, shortened where it is long.
        name: String,
        /// The earlier line.
        first: usize,
    },
    /// A buffer in whose place another may be is not there.
    #[error(
        "line {line}: buffer `{name}` may take the place of `{input}`, expected the name of a buffer"
    )]
    UnknownInput {
        /// From 1.
        line: usize,
        /// The buffer, shortened where the name is long.
        name: String,
        /// What is said of its input.
        input: String,
    },
    /// A line with an error.
    #[error("line {line}: {reason}")]
    AtLine {
        /// From 1.
        line: usize,
        /// What.
        reason: Box<RecordsError>,
    },
    /// A message that cannot be decoded.
    #[error("byte {byte}: expected {expected}")]
    Wire {
        /// Position in the unpacked file.
        byte: usize,
        /// What should be there.
        expected: &'static str,
    },
    /// A value without a live range.
    #[error(
        "line {line}: value `{name}` has no live range, expected one in the file of live ranges of the same run"
    )]
    NoLiveRange {
        /// In the buffer assignment, from 1.
        line: usize,
        /// The value.
        name: String,
    },
    /// A dump in which nothing is left to plan.
    #[error("expected {expected}, got none")]
    NothingToPlan {
        /// What would be planned.
        expected: &'static str,
    },
    /// More buffers than are read.
    #[error("more than {limit} buffers, which is the limit")]
    TooMany {
        /// How many may be.
        limit: usize,
    },
    /// Buffers that cannot be planned.
    #[error(transparent)]
    Buffers(#[from] UsageRecordsError),
}

/// The text of a file.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, RecordsError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = error.valid_up_to();
        RecordsError::Encoding {
            line: 1 + bytes[..valid].iter().filter(|byte| **byte == b'\n').count(),
            byte: bytes[valid],
        }
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}
