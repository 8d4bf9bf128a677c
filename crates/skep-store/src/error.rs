//! The errors of a store.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::{Digest, Tenant, Wanted};

/// The error of a filler.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct FillError(pub Box<dyn std::error::Error + Send + Sync>);

impl FillError {
    /// Wraps a text or an error.
    pub fn new(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }
}

/// Why a store did not do what it was asked to.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A tensor could not be filled. Others that want it may fill it now.
    #[error("tensor {index} could not be filled: {cause}")]
    Fill {
        /// Its index in what was asked for.
        index: usize,
        /// Why.
        cause: FillError,
    },
    /// A tensor was filled with bytes that do not have its digest.
    #[error("tensor `{wanted}` was filled with bytes whose digest is `{got}`")]
    Content {
        /// The digest that was asked for.
        wanted: Digest,
        /// The digest of the bytes.
        got: Digest,
    },
    /// One digest with two descriptions: one of them is not what was hashed.
    #[error("tensor `{digest}` is {stored}, expected {wanted}")]
    Description {
        /// The digest.
        digest: Digest,
        /// In the store, with its length.
        stored: String,
        /// As asked for, with its length.
        wanted: String,
    },
    /// A tensor whose description is too large for any store.
    #[error("tensor `{digest}` has {what}, expected at most {limit}")]
    Oversized {
        /// The tensor's digest.
        digest: Digest,
        /// What there is too much of, with its number.
        what: String,
        /// The largest number.
        limit: u64,
    },
    /// A bound would be exceeded.
    #[error("{bound} of tenant `{tenant}` would be {would_be}, expected at most {limit}")]
    Bound {
        /// What is bounded.
        bound: &'static str,
        /// The tenant of the store.
        tenant: Tenant,
        /// The amount that there would be.
        would_be: u64,
        /// The bound.
        limit: u64,
    },
    /// The system has no memory, or no descriptor for it.
    #[error("cannot make a memory file of {bytes} bytes ({step}): {cause}")]
    Memory {
        /// The size that was asked for.
        bytes: u64,
        /// The step that failed.
        step: &'static str,
        /// The system's error.
        cause: io::Error,
    },
    /// A descriptor that is not a sealed segment.
    #[error("not a segment: {reason}")]
    Segment {
        /// What is wrong with it.
        reason: String,
    },
    /// The daemon cannot be reached.
    #[error("no tensor store at `{}`: {cause}\nis `skep store serve` running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// The daemon is gone.
    #[error("the connection to the tensor store was lost: {reason}")]
    Disconnected {
        /// What happened.
        reason: String,
    },
    /// The other side broke the protocol.
    #[error("malformed message: {reason}")]
    Protocol {
        /// What is wrong.
        reason: String,
    },
    /// The daemon refused the request.
    #[error("{message}")]
    Refused {
        /// The kind of the daemon's error.
        kind: ErrorKind,
        /// The daemon's message.
        message: String,
    },
    /// The connection belongs to another tenant.
    #[error("the connection is tenant `{connected}`'s, expected `{wanted}`'s")]
    Tenant {
        /// The tenant of the connection.
        connected: Tenant,
        /// The tenant that was asked for.
        wanted: Tenant,
    },
    /// This process inherited its connection, and has no other.
    #[error("an inherited connection to a tensor store cannot be passed on")]
    Inherited,
    /// A restricted connection asked for something that it may not have.
    #[error("this connection may not ask for {what}")]
    NotAllowed {
        /// What it asked for.
        what: String,
    },
    /// A daemon cannot start.
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
    /// [`StoreError::Content`], [`StoreError::Description`]: the bytes do not match their digest or description.
    Content,
    /// [`StoreError::Bound`], [`StoreError::Oversized`].
    Bound,
    /// [`StoreError::Memory`].
    Memory,
    /// [`StoreError::Segment`], [`StoreError::Protocol`].
    Protocol,
    /// [`StoreError::Connect`], [`StoreError::Disconnected`].
    Unreachable,
    /// [`StoreError::Tenant`], [`StoreError::Inherited`], [`StoreError::NotAllowed`]: this connection does not allow
    /// it.
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
        Self::Description {
            digest: wanted.digest,
            stored: described(stored),
            wanted: described(wanted),
        }
    }

    pub(crate) fn disconnected(reason: impl ToString) -> Self {
        Self::Disconnected {
            reason: reason.to_string(),
        }
    }
}

fn described(tensor: &Wanted) -> String {
    format!("{} of {} bytes", tensor.description, tensor.length)
}
