//! How many of the requests at the head of the queue run next, and when.

mod ahead;
mod by_deadline;
mod cap;
pub(crate) mod objective;
mod rate;
mod rehearsal;
pub(crate) mod triton;

use skep_types::Time;

use crate::BatchEnd;

/// What a policy decides for a free instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Execute this many requests together.
    Send {
        /// At least 1.
        requests: usize,
        /// Why not more.
        end: BatchEnd,
    },
    /// Give this many requests up: they cost others more than they are worth.
    Drop {
        /// At least 1.
        requests: usize,
    },
    /// Look again at this moment, or as soon as something happens.
    Wait(Time),
}
