//! What can go wrong while a model is generated.

use std::{io, path::PathBuf};

/// Why a model was not generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A kind that does not exist.
    #[error("unknown kind of model `{given}`, expected one of {known}")]
    UnknownKind {
        /// What was asked for.
        given: String,
        /// All names, separated by commas.
        known: String,
    },
    /// A parameter that the kind lacks, or a value that it cannot take.
    #[error("parameter `{parameter}` of model kind `{kind}` is `{given}`, expected {expected}")]
    InvalidParameter {
        /// The kind's name.
        kind: String,
        /// The parameter's name.
        parameter: String,
        /// The value that was given.
        given: String,
        /// What it takes.
        expected: String,
    },
    /// A variant of a graph with fewer blocks.
    #[error("a variant of graph `{graph}` has {blocks} blocks of its own, expected at most {most}")]
    TooManyBlocks {
        /// The graph's name.
        graph: String,
        /// Blocks that the variant would have, besides the head.
        blocks: usize,
        /// Blocks that the graph has.
        most: usize,
    },
    /// A model above the limit of its file format.
    #[error(
        "model of {bytes} bytes exceeds the 2147483647 bytes of an ONNX file, expected external data for its weights"
    )]
    TooLarge {
        /// The size that the file would have.
        bytes: u64,
    },
    /// A name that cannot be a model's directory.
    #[error(transparent)]
    InvalidModelName(#[from] skep_types::InvalidModelName),
    /// A file that could not be written.
    #[error("cannot write `{}`: {reason}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
}

/// The class of a [`GenerateError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GenerateErrorKind {
    /// The request makes no sense; another one would succeed.
    Usage,
    /// The system refused to write.
    Io,
}

impl GenerateError {
    /// Whose fault it is.
    #[must_use]
    pub fn kind(&self) -> GenerateErrorKind {
        match self {
            Self::Io { .. } => GenerateErrorKind::Io,
            _ => GenerateErrorKind::Usage,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |reason| Self::Io {
            path: path.into(),
            reason,
        }
    }
}
