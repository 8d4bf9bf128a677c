//! What can go wrong with a store.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::{Digest, Tenant, Wanted};

/// Why a filler could not fill a tensor, in its own words.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct FillError(pub Box<dyn std::error::Error + Send + Sync>);

impl FillError {
    /// Of a text or an error.
    pub fn new(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }
}

/// Why the store did not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A tensor could not be filled; whoever else wants it may now.
    #[error("tensor {index} could not be filled: {cause}")]
    Fill {
        /// Which of those wanted.
        index: usize,
        /// Why.
        cause: FillError,
    },
    /// A tensor was filled with something else than it was said to be.
    #[error("tensor `{wanted}` was filled with bytes whose digest is `{got}`")]
    Content {
        /// What was said.
        wanted: Digest,
        /// What the bytes are.
        got: Digest,
    },
    /// Two descriptions of one digest: one of them is not what was hashed.
    #[error("tensor `{digest}` is {stored}, expected {wanted}")]
    Description {
        /// Whose.
        digest: Digest,
        /// In the store, with its length.
        stored: String,
        /// As asked for, with its length.
        wanted: String,
    },
    /// A tensor that no store takes.
    #[error("tensor `{digest}` has {what}, expected at most {limit}")]
    Oversized {
        /// Whose.
        digest: Digest,
        /// How many of what.
        what: String,
        /// How many may be.
        limit: u64,
    },
    /// More than a bound allows.
    #[error("{bound} of tenant `{tenant}` would be {would_be}, expected at most {limit}")]
    Bound {
        /// Which.
        bound: &'static str,
        /// Whose store.
        tenant: Tenant,
        /// What there would be.
        would_be: u64,
        /// What there may be.
        limit: u64,
    },
    /// The system gives no memory, or no descriptor for it.
    #[error("no memory file of {bytes} bytes ({step}): {cause}")]
    Memory {
        /// What was asked for.
        bytes: u64,
        /// At which step.
        step: &'static str,
        /// In the system's words.
        cause: io::Error,
    },
    /// A descriptor that is no sealed segment.
    #[error("not a segment: {reason}")]
    Segment {
        /// What is wrong with it.
        reason: String,
    },
    /// No daemon can be reached.
    #[error("no tensor store at `{}`: {cause}\nis `skep store serve` running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// In the system's words.
        cause: io::Error,
    },
    /// The daemon is gone.
    #[error("the connection to the tensor store was lost: {reason}")]
    Disconnected {
        /// What is known of it.
        reason: String,
    },
    /// The other side breaks the protocol.
    #[error("malformed message: {reason}")]
    Protocol {
        /// What is wrong.
        reason: String,
    },
    /// The daemon will not, or cannot.
    #[error("{message}")]
    Refused {
        /// The kind that it has there.
        kind: ErrorKind,
        /// The daemon's words.
        message: String,
    },
    /// The connection is another tenant's.
    #[error("the connection is tenant `{connected}`'s, expected `{wanted}`'s")]
    Tenant {
        /// Whose it is.
        connected: Tenant,
        /// Whose it should be.
        wanted: Tenant,
    },
    /// A connection that was handed to this process is the only one that it has.
    #[error("an inherited connection to a tensor store cannot be passed on")]
    Inherited,
    /// A restricted connection asked for more than it may.
    #[error("this connection may not ask for {what}")]
    NotAllowed {
        /// What it asked for.
        what: String,
    },
    /// A daemon cannot begin.
    #[error("cannot serve at `{}`: {reason}", path.display())]
    Serve {
        /// The directory or socket.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The kinds of [`StoreError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// [`StoreError::Fill`].
    Fill,
    /// [`StoreError::Content`], [`StoreError::Description`]: bytes are not what they were said to be.
    Content,
    /// [`StoreError::Bound`], [`StoreError::Oversized`].
    Bound,
    /// [`StoreError::Memory`].
    Memory,
    /// [`StoreError::Segment`], [`StoreError::Protocol`].
    Protocol,
    /// [`StoreError::Connect`], [`StoreError::Disconnected`].
    Unreachable,
    /// [`StoreError::Tenant`], [`StoreError::Inherited`], [`StoreError::NotAllowed`]: not through this connection.
    Tenant,
    /// [`StoreError::Serve`].
    Serve,
}

impl StoreError {
    /// The kind of failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Fill { .. } => ErrorKind::Fill,
            Self::Content { .. } | Self::Description { .. } => ErrorKind::Content,
            Self::Bound { .. } | Self::Oversized { .. } => ErrorKind::Bound,
            Self::Memory { .. } => ErrorKind::Memory,
            Self::Segment { .. } | Self::Protocol { .. } => ErrorKind::Protocol,
            Self::Connect { .. } | Self::Disconnected { .. } => ErrorKind::Unreachable,
            Self::Tenant { .. } | Self::Inherited | Self::NotAllowed { .. } => ErrorKind::Tenant,
            Self::Serve { .. } => ErrorKind::Serve,
            Self::Refused { kind, .. } => *kind,
        }
    }

    pub(crate) fn protocol(reason: impl Into<String>) -> Self {
        Self::Protocol {
            reason: reason.into(),
        }
    }

    pub(crate) fn segment(reason: impl Into<String>) -> Self {
        Self::Segment {
            reason: reason.into(),
        }
    }

    pub(crate) fn description(stored: &Wanted, wanted: &Wanted) -> Self {
        let text = |tensor: &Wanted| format!("{} of {} bytes", tensor.description, tensor.length);
        Self::Description {
            digest: wanted.digest,
            stored: text(stored),
            wanted: text(wanted),
        }
    }

    pub(crate) fn disconnected(reason: impl ToString) -> Self {
        Self::Disconnected {
            reason: reason.to_string(),
        }
    }
}
