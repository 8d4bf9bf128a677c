//! The runtime's failures, in Triton's words where its clients depend on them.

use std::sync::Arc;

use skep_backend::BackendError;
use skep_config::{ConfigError, Position};
use skep_tensor::OverBudget;

/// Triton's words for a queue that holds as many requests as it may.
pub(crate) const QUEUE_FULL: &str = "Exceeds maximum queue size";

/// The kind of a failure. The edge has one table that turns it into a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is at fault.
    InvalidArgument,
    /// The requested thing does not exist.
    NotFound,
    /// It exists, but is not available now; trying again later may help.
    Unavailable,
    /// Skep does not support this.
    Unsupported,
    /// It needs more memory than it may take.
    Exhausted,
    /// Requests fill the memory that they may take together; trying again later may help.
    Full,
    /// Skep, a backend or a model failed.
    Internal,
}

impl ErrorKind {
    /// The kind as Triton's texts begin.
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

/// A failure: a kind, and a text for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RuntimeError {
    kind: ErrorKind,
    message: String,
    /// The fault in the configuration, if there is one, to find its place in the file.
    config: Option<Arc<ConfigError>>,
    /// Its place in a file, if the text does not say it.
    place: Option<Arc<Position>>,
}

impl RuntimeError {
    /// A failure with a text for the client.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            config: None,
            place: None,
        }
    }

    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether a model's queue had no room for a request.
    pub(crate) fn is_queue_full(&self) -> bool {
        self.kind == ErrorKind::Unavailable && self.message == QUEUE_FULL
    }

    /// The same failure, at this place in a file.
    pub(crate) fn at(self, place: Option<Position>) -> Self {
        Self {
            place: place.map(Arc::new),
            ..self
        }
    }

    /// The same failure, at the place of another one.
    pub(crate) fn at_place_of(self, other: &Self) -> Self {
        Self {
            place: other.place.clone(),
            ..self
        }
    }

    /// The text for the server's log, which begins with the place. Clients get Triton's texts, without the server's
    /// paths.
    pub(crate) fn for_log(&self) -> String {
        let text = self.message.trim_end();
        match &self.place {
            Some(place) if !text.contains(&format!("{place}: ")) => format!("{place}: {text}"),
            _ => text.to_owned(),
        }
    }

    /// The same failure with a line that says what to do.
    pub(crate) fn with_hint(self, hint: Option<String>) -> Self {
        let Some(hint) = hint else { return self };
        Self {
            message: format!("{}\n{hint}", self.message),
            ..self
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// The memory of requests has no room.
    pub(crate) fn memory_is_full(over: OverBudget) -> Self {
        let text = format!("the memory of requests is full, try again later: {over}");
        Self::new(ErrorKind::Full, text)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }
}

impl RuntimeError {
    /// The fault in a configuration that this error reports.
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
