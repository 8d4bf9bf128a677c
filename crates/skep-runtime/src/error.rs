//! The runtime's failures, in Triton's words where its clients depend on them.

use std::sync::Arc;

use skep_backend::BackendError;
use skep_config::ConfigError;

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
    /// It needs more memory than it may take.
    Exhausted,
    /// Requests fill the memory that all of them may take; trying again later may help.
    Full,
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
            Self::Exhausted | Self::Full => "Resource exhausted",
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
    /// What in the configuration is at fault, for those who point at it.
    config: Option<Arc<ConfigError>>,
}

impl RuntimeError {
    /// A failure with a text for the client.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            config: None,
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

impl RuntimeError {
    /// The fault in a configuration that this error passes on.
    pub(crate) fn config_error(&self) -> Option<&ConfigError> {
        self.config.as_deref()
    }
}

impl From<ConfigError> for RuntimeError {
    fn from(error: ConfigError) -> Self {
        Self {
            config: Some(Arc::new(error.clone())),
            ..Self::invalid(error.to_string())
        }
    }
}

impl From<BackendError> for RuntimeError {
    fn from(error: BackendError) -> Self {
        use skep_backend::ErrorKind as Backend;
        let kind = match error.kind() {
            Backend::InvalidArgument => ErrorKind::InvalidArgument,
            Backend::Unsupported => ErrorKind::Unsupported,
            Backend::Unavailable => ErrorKind::Unavailable,
            Backend::Exhausted => ErrorKind::Exhausted,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}
