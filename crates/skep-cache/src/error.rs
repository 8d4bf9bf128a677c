//! What can go wrong with a cache.

use std::{
    io,
    path::{Path, PathBuf},
};

/// What kind of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file system refused: no room, no permission.
    Io,
    /// Others than the process's user may change what is in the directory.
    Unsafe,
    /// A file is not what was written.
    Damaged,
    /// The form is larger than the whole budget.
    TooLarge,
    /// What a maker left is no form.
    Refused,
}

/// A failure of a cache; none of them keeps a model from being loaded without it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The file system refused.
    #[error("cannot {what} `{}`: {error}", path.display())]
    Io {
        /// A verb.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A directory that others may change.
    #[error("`{}` is no safe place for baked models: {why}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Who may, and what to do.
        why: String,
    },
    /// A file is not what was written.
    #[error("`{}` is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What a maker left in its directory is no form.
    #[error("what was made in `{}` is not published: {why}", path.display())]
    Refused {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A form larger than the budget.
    #[error("the baked form has {bytes} bytes, more than the cache's budget of {budget_bytes}")]
    TooLarge {
        /// Of its graph and tensors.
        bytes: u64,
        /// What the directory may hold.
        budget_bytes: u64,
    },
}

impl CacheError {
    pub(crate) fn io(what: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            error,
        }
    }

    pub(crate) fn not_safe(path: &Path, why: String) -> Self {
        Self::Unsafe {
            path: path.to_owned(),
            why,
        }
    }

    pub(crate) fn refused(path: &Path, why: String) -> Self {
        Self::Refused {
            path: path.to_owned(),
            why,
        }
    }

    pub(crate) fn damaged(path: &Path, why: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            why: why.into(),
        }
    }

    /// Whether a file is gone or not what was written, so that it has to be made again. Otherwise the system gave no
    /// descriptor or no memory for it, say, and it may be as it should.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Io { error, .. } => error.kind() == io::ErrorKind::NotFound,
            Self::Damaged { .. } => true,
            Self::Unsafe { .. } | Self::TooLarge { .. } | Self::Refused { .. } => false,
        }
    }

    /// What kind of failure it was.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::Io,
            Self::Unsafe { .. } => ErrorKind::Unsafe,
            Self::Damaged { .. } => ErrorKind::Damaged,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Refused { .. } => ErrorKind::Refused,
        }
    }
}
