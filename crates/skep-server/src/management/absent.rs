//! Calls of the protocol that Skep refuses.

use crate::error::ApiError;

/// Requests are not traced.
pub(crate) fn tracing() -> ApiError {
    ApiError::unsupported("tracing")
}
