//! The messages of each call: how large they may be, and which call a path names.

use crate::{
    bounds::{MANAGEMENT_WEIGHT, MAX_MANAGEMENT_BYTES},
    edge,
};

/// The largest message either way: Triton's, which is what an `int` holds. What a server has memory for bounds it first.
pub(super) const MAX_MESSAGE_BYTES: usize = i32::MAX.unsigned_abs() as usize;

/// What a message begins with: whether it is compressed, and its length (u32, big-endian).
pub(super) const PREFIX_BYTES: usize = 5;

/// The call of the inference service that a path names.
pub(super) fn method(path: &str) -> Option<&str> {
    path.strip_prefix("/inference.GRPCInferenceService/")
}

/// Whether a call's messages are as large as tensors and files are; those of all others are short.
pub(super) fn is_large(path: &str) -> bool {
    matches!(
        method(path),
        Some("ModelInfer" | "ModelStreamInfer" | "RepositoryModelLoad")
    )
}

/// What bounds the messages of a call. Large ones are charged again for what they become, when that is known; short ones
/// for the worst of it as they come.
pub(crate) fn message_bounds(path: &str) -> edge::MessageBounds {
    if is_large(path) {
        edge::MessageBounds {
            bytes: MAX_MESSAGE_BYTES,
            weight: 1,
            many: is_stream(path),
        }
    } else {
        edge::MessageBounds {
            bytes: MAX_MANAGEMENT_BYTES,
            weight: MANAGEMENT_WEIGHT,
            many: is_stream(path),
        }
    }
}

/// Whether a client may send a call's messages whenever it likes. All other calls take one.
fn is_stream(path: &str) -> bool {
    method(path) == Some("ModelStreamInfer") || path.ends_with("/ServerReflectionInfo")
}
