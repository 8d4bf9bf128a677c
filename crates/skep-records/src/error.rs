//! What is wrong with a file of usage records.

use skep_planner::ProblemError;
use thiserror::Error;

/// Why bytes are no usage records.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// Two buffers of one name: a plan by name could not tell them apart.
    #[error("buffers {first} and {second} are both called `{name}`, expected names that differ")]
    Duplicate {
        /// The name, shortened where it is long.
        name: String,
        /// Position of the first, from 0.
        first: usize,
        /// Position of the second, from 0.
        second: usize,
    },
    /// Buffers that cannot be planned.
    #[error("buffer `{name}`: {source}")]
    Problem {
        /// Name of the buffer that breaks an invariant, shortened where it is long.
        name: String,
        /// The invariant; it numbers buffers from 0.
        source: ProblemError,
    },
}

/// So much of a text that a line can hold it.
pub(crate) fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
