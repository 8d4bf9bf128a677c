//! The errors of a cache.

use std::{
    io,
    path::{Path, PathBuf},
};

/// The kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file system refused: no room, no permission.
    Io,
    /// Other users may change the directory.
    Unsafe,
    /// A file does not have its digest.
    Damaged,
    /// The form is larger than the whole budget.
    TooLarge,
    /// A staging directory does not hold a valid form.
    Refused,
}

/// A failure of a cache. The model can always be loaded without it.
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
    /// A directory that other users may change.
    #[error("`{}` is not a safe place for baked models: {why}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Who may, and how to change that.
        why: String,
    },
    /// A file does not have its digest.
    #[error("`{}` is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A staging directory does not hold a valid form.
    #[error("the form in `{}` is not published: {why}", path.display())]
    Refused {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A form larger than the budget.
    #[error("the baked form has {bytes} bytes, more than the cache's budget of {budget_bytes}")]
    TooLarge {
        /// The size of its graph and tensors.
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

    /// Whether a file is missing or damaged, so that it has to be made again. With other errors, such as no descriptor
    /// or no memory, the file may be intact.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Io { error, .. } => error.kind() == io::ErrorKind::NotFound,
            Self::Damaged { .. } => true,
            Self::Unsafe { .. } | Self::TooLarge { .. } | Self::Refused { .. } => false,
        }
    }

    /// The kind of failure.
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
