//! Calls of the protocol that Skep refuses.

use crate::error::ApiError;

/// Clients cannot register shared-memory regions.
pub(crate) fn shared_memory() -> ApiError {
    ApiError::unsupported("shared memory")
}

/// Requests are not traced.
pub(crate) fn tracing() -> ApiError {
    ApiError::unsupported("tracing")
}
