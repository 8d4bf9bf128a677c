//! A backend's failures.

use std::any::Any;

use skep_tensor::{RunRefused, TensorError};
use skep_weights::baking::BakeError;

/// The kind of a failure; the edge turns it into a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request's values are at fault.
    InvalidArgument,
    /// The model's file is at fault.
    InvalidModel,
    /// This backend does not support the model or a setting.
    Unsupported,
    /// The backend's library is not available.
    Unavailable,
    /// A run needs more memory than it may take, or than there is.
    Exhausted,
    /// The backend failed.
    Internal,
}

/// A failure: its kind and a text for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BackendError {
    kind: ErrorKind,
    message: String,
}

impl BackendError {
    /// A failure with a text that says what failed and where, what was expected and what was got.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The kind of the failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<RunRefused> for BackendError {
    fn from(refused: RunRefused) -> Self {
        Self::new(ErrorKind::Exhausted, refused.to_string())
    }
}

impl From<BakeError> for BackendError {
    fn from(error: BakeError) -> Self {
        Self::new(ErrorKind::Unavailable, error.to_string())
    }
}

impl From<TensorError> for BackendError {
    fn from(error: TensorError) -> Self {
        let kind = match error {
            TensorError::NoMemory { .. } => ErrorKind::Exhausted,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

/// The text of a backend's panic.
#[must_use]
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no text")
}
