//! What a trace consists of.

/// The number of a block within its trace: from 0, in order of allocation, without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// One step of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceEvent {
    /// Allocates a block.
    Malloc {
        /// The next number.
        block: BlockId,
        /// At most [`crate::MAX_BLOCK_BYTES`].
        bytes: u64,
        /// The device's queue of work that uses the block, as the trace numbers it; 0 where it has none.
        stream: u64,
    },
    /// Frees a block that is live.
    Free {
        /// Which one.
        block: BlockId,
    },
}
