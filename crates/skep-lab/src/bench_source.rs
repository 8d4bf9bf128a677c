//! What a bench needs of a source beside memory.

use std::{fmt, ops::Range};

use skep_layout::allocator::Source;

use crate::{BlockUse, SourceCalls};

/// A source with accounts.
pub trait BenchSource: Source + fmt::Debug {
    /// The program queues an operator's work on the device, and does not wait for it.
    fn queue_work(&mut self) {}

    /// The program works for itself.
    fn pass(&mut self, _ns: f64) {}

    /// The time that passed, in nanoseconds: what calls cost, and what [`pass`](Self::pass) said.
    fn time_ns(&self) -> f64;

    /// Its calls so far.
    fn calls(&self) -> SourceCalls;

    /// The most bytes that it had given at once.
    fn peak(&self) -> u64;

    /// The program writes a new block, and reads the one that it allocated before, if that is in use.
    fn use_blocks(&mut self, _new: Range<u64>, _before: Option<Range<u64>>) {}

    /// What using blocks took, if they are used.
    fn used(&self) -> Option<BlockUse> {
        None
    }
}
