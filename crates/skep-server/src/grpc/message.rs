//! The messages of each call: how large they may be, and which call a path names.

use crate::{
    bounds::{MANAGEMENT_WEIGHT, MAX_MANAGEMENT_BYTES},
    edge,
};

/// The largest message in either direction: Triton's limit, the range of an `int`. The memory of requests limits
/// messages earlier.
pub(super) const MAX_MESSAGE_BYTES: usize = i32::MAX.unsigned_abs() as usize;

/// The prefix of a message: whether it is compressed, and its length (u32, big-endian).
pub(super) const PREFIX_BYTES: usize = 5;

/// The call of the inference service that a path names.
pub(super) fn method(path: &str) -> Option<&str> {
    path.strip_prefix("/inference.GRPCInferenceService/")
}

/// Whether a call's messages may hold tensors or files; those of all other calls are short.
pub(super) fn is_large(path: &str) -> bool {
    matches!(
        method(path),
        Some("ModelInfer" | "ModelStreamInfer" | "RepositoryModelLoad")
    )
}

/// The bounds on a call's messages. Large ones are charged for their decoded form when its size is known; short ones
/// are charged for the worst case as they arrive.
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

/// Whether a client may send any number of messages, at any time. All other calls take one message.
fn is_stream(path: &str) -> bool {
    method(path) == Some("ModelStreamInfer") || path.ends_with("/ServerReflectionInfo")
}
