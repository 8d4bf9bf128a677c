//! Why a request's body cannot be read.

use std::time::Duration;

use skep_tensor::OverBudget;

/// What must come of a body while the limit on its pauses passes: far below any line that is of use, so that it only
/// ends those who trickle on purpose.
pub(crate) const MIN_PROGRESS_BYTES: usize = 1 << 10;

/// Why a request's body cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The client does not send.
    #[error("less than {MIN_PROGRESS_BYTES} bytes of it arrived within {} s", .0.as_secs_f32())]
    Stalled(Duration),
    /// Other requests fill the memory.
    #[error("the memory of requests is full, try again later: {0}")]
    NoMemory(OverBudget),
    /// A message is longer than this call's may be.
    #[error("a message has {length} bytes, this call accepts at most {limit}")]
    TooLong {
        /// What the message says of itself.
        length: usize,
        /// The bound.
        limit: usize,
    },
    /// The client has ended its sending side too early.
    #[error("the client stopped sending before the end of the body")]
    CutShort,
    /// The connection ended, or what came is no HTTP.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// The same over HTTP/2.
    #[error(transparent)]
    Reset(#[from] h2::Error),
}
