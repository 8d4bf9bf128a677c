//! Why a call failed.

use std::fmt;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made.
    #[error("could not reach `{address}`: {reason}\nis the server running?")]
    Connect {
        /// `host:port`.
        address: String,
        /// The operating system's reason.
        reason: String,
    },
    /// The server answered, but the TLS handshake failed.
    #[error("no encrypted connection to `{address}`: {reason}")]
    Handshake {
        /// `host:port`.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The connection ended before the answer did.
    #[error("the connection to `{address}` was lost: {reason}")]
    Disconnected {
        /// `host:port`.
        address: String,
        /// The reason, as far as it is known.
        reason: String,
    },
    /// The server answered with an error.
    #[error("{message} ({code})")]
    Status {
        /// The status.
        code: AnswerCode,
        /// The server's words.
        message: String,
    },
    /// The answer violates the protocol.
    #[error("malformed answer from `{address}`: {reason}")]
    Protocol {
        /// `host:port`.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The request cannot be sent.
    #[error("{reason}")]
    InvalidArgument {
        /// What is wrong with it.
        reason: String,
    },
}

/// The kinds of [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// [`Error::Connect`].
    Connect,
    /// [`Error::Handshake`].
    Handshake,
    /// [`Error::Disconnected`].
    Disconnected,
    /// [`Error::Status`].
    Status,
    /// [`Error::Protocol`].
    Protocol,
    /// [`Error::InvalidArgument`].
    InvalidArgument,
}

impl Error {
    /// The kind of failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Connect { .. } => ErrorKind::Connect,
            Self::Handshake { .. } => ErrorKind::Handshake,
            Self::Disconnected { .. } => ErrorKind::Disconnected,
            Self::Status { .. } => ErrorKind::Status,
            Self::Protocol { .. } => ErrorKind::Protocol,
            Self::InvalidArgument { .. } => ErrorKind::InvalidArgument,
        }
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::InvalidArgument {
            reason: reason.into(),
        }
    }

    /// The error of a connection that could not be made.
    pub(crate) fn connect(address: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        let address = address.to_owned();
        let reason = root_cause(error);
        if chain(error).any(|error| error.is::<HandshakeError>()) {
            Self::Handshake { address, reason }
        } else {
            Self::Connect { address, reason }
        }
    }

    pub(crate) fn protocol(address: &str, reason: impl Into<String>) -> Self {
        Self::Protocol {
            address: address.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn too_large(address: &str, limit_bytes: usize) -> Self {
        Self::protocol(
            address,
            format!("it is larger than the limit of {limit_bytes} bytes"),
        )
    }
}

/// The server answered, but the TLS handshake failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct HandshakeError(pub(crate) String);

/// A status that a server answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AnswerCode {
    /// An HTTP status.
    Http(u16),
    /// A gRPC code.
    Grpc(i32),
}

/// What a status means, in either protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StatusMeaning {
    /// The request is wrong.
    InvalidArgument,
    /// The model or version does not exist.
    NotFound,
    /// Try later: the model is not ready, or its queue is full.
    Unavailable,
    /// The server cannot do this.
    Unsupported,
    /// The server failed.
    Internal,
    /// Anything else.
    Other,
}

impl AnswerCode {
    /// What the status means.
    #[must_use]
    pub const fn meaning(self) -> StatusMeaning {
        match self {
            Self::Http(400) | Self::Grpc(3) => StatusMeaning::InvalidArgument,
            Self::Http(404) | Self::Grpc(5) => StatusMeaning::NotFound,
            Self::Http(503) | Self::Grpc(14) => StatusMeaning::Unavailable,
            Self::Http(501) | Self::Grpc(12) => StatusMeaning::Unsupported,
            Self::Http(500) | Self::Grpc(13) => StatusMeaning::Internal,
            _ => StatusMeaning::Other,
        }
    }
}

impl fmt::Display for AnswerCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Http(status) => write!(f, "HTTP {status}"),
            // Written as `NotFound`: tonic has the names only as identifiers.
            Self::Grpc(code) => write!(f, "gRPC {:?}", tonic::Code::from_i32(code)),
        }
    }
}

/// The innermost cause: outer layers only say that something failed.
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error).last().unwrap_or(error).to_string()
}

/// An error and its sources, outermost first.
pub(crate) fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_protocols_codes_mean_the_same() {
        for (http, grpc, meaning) in [
            (
                400,
                tonic::Code::InvalidArgument,
                StatusMeaning::InvalidArgument,
            ),
            (404, tonic::Code::NotFound, StatusMeaning::NotFound),
            (503, tonic::Code::Unavailable, StatusMeaning::Unavailable),
            (501, tonic::Code::Unimplemented, StatusMeaning::Unsupported),
            (500, tonic::Code::Internal, StatusMeaning::Internal),
            (418, tonic::Code::DataLoss, StatusMeaning::Other),
        ] {
            assert_eq!(AnswerCode::Http(http).meaning(), meaning);
            assert_eq!(AnswerCode::Grpc(grpc.into()).meaning(), meaning);
        }
    }

    #[test]
    fn texts_say_where_and_what() {
        let status = Error::Status {
            code: AnswerCode::Grpc(5),
            message: "no `m`".to_owned(),
        };
        assert_eq!(status.to_string(), "no `m` (gRPC NotFound)");
        let connect = Error::Connect {
            address: "h:1".to_owned(),
            reason: "refused".to_owned(),
        };
        assert_eq!(
            connect.to_string(),
            "could not reach `h:1`: refused\nis the server running?"
        );
    }
}
