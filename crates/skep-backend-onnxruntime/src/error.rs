//! The library's failures as a backend's.

use std::fmt;

use skep_alloc::RunFailure;
use skep_backend::{BackendError, ErrorKind};

use crate::ffi::{ApiError, ApiErrorCode};

/// The error for a model that does not load. It contains the library's text, which names nodes and operators.
pub(crate) fn load(path: &std::path::Path, error: ApiError) -> BackendError {
    // Everything but a missing implementation is the file's fault: the options are correct.
    let kind = match error.code {
        ApiErrorCode::NOT_IMPLEMENTED => ErrorKind::Unsupported,
        _ => ErrorKind::InvalidModel,
    };
    let message = error.message;
    BackendError::new(
        kind,
        format!("ONNX Runtime cannot load `{}`: {message}", path.display()),
    )
}

/// The error for a run that failed.
pub(crate) fn run(error: ApiError) -> BackendError {
    let kind = match error.code {
        ApiErrorCode::INVALID_ARGUMENT => ErrorKind::InvalidArgument,
        ApiErrorCode::NO_MEMORY => return BackendError::new(ErrorKind::Exhausted, error.message),
        _ if lacks_memory(&error.message) => ErrorKind::Exhausted,
        _ => ErrorKind::Internal,
    };
    BackendError::new(kind, format!("ONNX Runtime: {}", error.message))
}

/// Whether the text reports a lack of memory, from the library's allocator or from C++.
fn lacks_memory(message: &str) -> bool {
    message.contains("bad_alloc") || message.contains("Failed to allocate memory")
}

/// The error for a run that failed. If its memory was refused, the library only knows that it got none.
pub(crate) fn of_run(failure: RunFailure<ApiError>) -> ApiError {
    match failure {
        RunFailure::Refused(refused) => ApiError {
            code: ApiErrorCode::NO_MEMORY,
            message: refused.to_string(),
        },
        RunFailure::Failed(error) => error,
    }
}

/// Whether a run may have failed because prepared memory has another shape than the output.
pub(crate) fn may_be_output_shape(error: &ApiError) -> bool {
    // The text differs among versions, so the check is loose: a run that fails for another reason only runs twice.
    error.code == ApiErrorCode::INVALID_ARGUMENT
        || error.code != ApiErrorCode::NO_MEMORY
            && error.message.to_ascii_lowercase().contains("shape")
}

/// The error for an inconsistent result of the library.
pub(crate) fn inconsistent(error: impl fmt::Display) -> ApiError {
    ApiError {
        code: ApiErrorCode::FAIL,
        message: error.to_string(),
    }
}
