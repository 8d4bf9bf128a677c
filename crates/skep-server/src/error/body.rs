//! Why a request's body cannot be read.

use std::time::Duration;

use skep_tensor::OverBudget;

/// Bytes of a body that must arrive within the limit on its pauses: far less than any usable line carries, so it only
/// ends clients that trickle on purpose.
pub(crate) const MIN_PROGRESS_BYTES: usize = 1 << 10;

/// Why a request's body cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The client sends too little.
    #[error("less than {MIN_PROGRESS_BYTES} bytes of it arrived within {} s", .0.as_secs_f32())]
    Stalled(Duration),
    /// Other requests fill the memory.
    #[error("the memory of requests is full, try again later: {0}")]
    NoMemory(OverBudget),
    /// A message is longer than the call allows.
    #[error("a message has {length} bytes, this call accepts at most {limit}")]
    TooLong {
        /// The declared length of the message.
        length: usize,
        /// The bound.
        limit: usize,
    },
    /// The client closed its sending side too early.
    #[error("the client stopped sending before the end of the body")]
    CutShort,
    /// The connection ended, or its bytes are not HTTP.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// The same over HTTP/2.
    #[error(transparent)]
    Reset(#[from] h2::Error),
}
