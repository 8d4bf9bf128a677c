//! The library's failures as a backend's.

use std::fmt;

use skep_backend::{BackendError, ErrorKind};
use skep_tensor::RunRefused;

use crate::ffi::{ApiError, Code};

/// A model that would not load. The library's text names nodes and operators, so it is passed on.
pub(crate) fn load(path: &std::path::Path, error: ApiError) -> BackendError {
    // Everything but a missing implementation is a fault of the file: the options are our own.
    let kind = match error.code {
        Code::NOT_IMPLEMENTED => ErrorKind::Unsupported,
        _ => ErrorKind::InvalidModel,
    };
    let message = error.message;
    BackendError::new(
        kind,
        format!("ONNX Runtime cannot load `{}`: {message}", path.display()),
    )
}

/// A run that failed.
pub(crate) fn run(error: ApiError) -> BackendError {
    let kind = match error.code {
        Code::INVALID_ARGUMENT => ErrorKind::InvalidArgument,
        Code::NO_MEMORY => return BackendError::new(ErrorKind::Exhausted, error.message),
        _ if lacks_memory(&error.message) => ErrorKind::Exhausted,
        _ => ErrorKind::Internal,
    };
    BackendError::new(kind, format!("ONNX Runtime: {}", error.message))
}

/// Whether the library says that it has no memory of its own, or that C++ has none.
fn lacks_memory(message: &str) -> bool {
    message.contains("bad_alloc") || message.contains("Failed to allocate memory")
}

/// A run that was not given what it asked for.
pub(crate) fn refused(refused: RunRefused) -> ApiError {
    ApiError {
        code: Code::NO_MEMORY,
        message: refused.to_string(),
    }
}

/// Whether a run may have failed because prepared memory has another shape than the output.
pub(crate) fn may_be_output_shape(error: &ApiError) -> bool {
    // Any text, since it differs among versions: a run that fails by the request's fault is only run twice.
    error.code == Code::INVALID_ARGUMENT
        || error.code != Code::NO_MEMORY && error.message.to_ascii_lowercase().contains("shape")
}

/// The library gave something that does not fit together.
pub(crate) fn inconsistent(error: impl fmt::Display) -> ApiError {
    ApiError {
        code: Code::FAIL,
        message: error.to_string(),
    }
}
