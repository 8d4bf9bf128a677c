//! The runtime's failures, in Triton's words where its clients depend on them.

use skep_backend::BackendError;

/// What kind of failure it was; the edge's one table turns it into a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is at fault.
    InvalidArgument,
    /// What was asked for does not exist.
    NotFound,
    /// It exists, but cannot be had now; trying again later may help.
    Unavailable,
    /// Skep does not do this.
    Unsupported,
    /// Skep, a backend or a model failed.
    Internal,
}

impl ErrorKind {
    /// The kind as Triton begins its texts with it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "Invalid argument",
            Self::NotFound => "Not found",
            Self::Unavailable => "Unavailable",
            Self::Unsupported => "Unsupported",
            Self::Internal => "Internal",
        }
    }
}

/// A failure, for the client: kind and text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RuntimeError {
    kind: ErrorKind,
    message: String,
}

impl RuntimeError {
    /// A failure with a text for the client.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// What kind of failure it was.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }
}

impl From<BackendError> for RuntimeError {
    fn from(error: BackendError) -> Self {
        use skep_backend::ErrorKind as Backend;
        let kind = match error.kind() {
            Backend::InvalidArgument => ErrorKind::InvalidArgument,
            Backend::Unsupported => ErrorKind::Unsupported,
            Backend::Unavailable => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}
