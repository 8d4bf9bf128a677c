//! Allocators of device memory, by their rules: blocks at addresses, chunks from a source. No memory.
//!
//! ```text
//!  a trace, a runtime             Allocator                        Source (simulated, mmap, CUDA)
//!
//!  malloc 300 of stream 0 -----> rounds, searches, splits
//!                                found none: take(2 MiB)  -------> a chunk at an address, or none
//!  address <-------------------- places the block in it
//!  free address ---------------> merges with its neighbours
//!                                may give_back(chunk)     ------->
//! ```
//!
//! [`Allocator`] is one trait for the allocators of TensorFlow, ONNX Runtime, PyTorch, MXNet and RAPIDS, for the classic
//! ones, and for Skep's own. They are rules over numbers: the same object replays a trace over an imagined device and
//! serves a runtime over real memory, because the source is an argument. [`AllocatorSpec`] names one, with its options.
//!
//! What each reports is the same for all: the bytes that users asked for, what rounding adds to them, and what the source
//! has given ([`MemoryFigures`]).

mod bfc;
mod binning;
mod buddy;
mod catalogue;
#[cfg(test)]
mod conformance;
mod contiguous;
mod cuda_async;
mod dlmalloc;
mod mxnet;
mod options;
mod ort_arena;
mod pages;
mod pieces;
mod planned;
mod pytorch;
mod rmm_arena;
mod rmm_pool;
mod segregated;
mod skep;
mod slab;
mod source;
mod tlsf;
mod validated;
#[cfg(test)]
mod vectors;

pub use catalogue::{AllocatorSpec, CATALOGUE, CatalogueEntry, InvalidSpec};
pub use options::OptionSpec;
pub use planned::PlannedAllocator;
pub use source::{CHUNK_ALIGNMENT, Source};
pub use validated::{CheckedBlock, ContractFault, ValidatedAllocator};

use std::fmt;

/// A request for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRequest {
    /// Bytes, at least 1.
    pub bytes: u64,
    /// The block's address is a multiple of this power of two.
    pub alignment: u64,
    /// The queue of the device in whose order the block is used.
    pub stream: u64,
}

impl BlockRequest {
    /// A block of the default stream, without any demand on its address.
    #[must_use]
    pub const fn of(bytes: u64) -> Self {
        Self {
            bytes,
            alignment: 1,
            stream: 0,
        }
    }

    /// The error of a request that gets no memory.
    const fn refused(self) -> OutOfMemory {
        OutOfMemory { bytes: self.bytes }
    }

    /// What a chunk needs beyond the block's size, so that the block can be aligned within it. Pieces of chunks begin at
    /// multiples of `unit`.
    const fn slack(self, unit: u64) -> u64 {
        if self.alignment > unit {
            self.alignment
        } else {
            0
        }
    }
}

/// The source refused memory, or the request is larger than any address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory for a block of {bytes} bytes")]
pub struct OutOfMemory {
    /// What was asked for.
    pub bytes: u64,
}

/// No block in use begins at the address: it was freed before, or never allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no block in use begins at {address:#x}")]
pub struct NotInUse {
    /// What was to be freed.
    pub address: u64,
}

/// The three figures of an allocator, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryFigures {
    /// What users asked for and have not freed.
    pub in_use: u64,
    /// What these blocks take beyond that.
    pub padding: u64,
    /// What the source has given.
    pub reserved: u64,
}

impl MemoryFigures {
    /// Bytes from the source that no block takes.
    #[must_use]
    pub const fn idle(&self) -> u64 {
        self.reserved
            .saturating_sub(self.in_use)
            .saturating_sub(self.padding)
    }
}

/// An allocator: decides where blocks lie. Blocks in use never share a byte, and each lies in memory that the source has
/// given and not got back.
///
/// All calls of one allocator get the same source. After an error the allocator goes on as before the call.
pub trait Allocator: fmt::Debug + Send {
    /// Places a block and returns its address.
    ///
    /// # Errors
    /// The source refuses memory.
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory>;

    /// Frees the block at `address` and returns the bytes that were asked for.
    ///
    /// # Errors
    /// No block in use begins there.
    fn free(&mut self, address: u64, source: &mut dyn Source) -> Result<u64, NotInUse>;

    /// Gives back to the source what no block needs, as far as the rules of the allocator allow.
    fn trim(&mut self, source: &mut dyn Source);

    /// What it holds now.
    fn figures(&self) -> MemoryFigures;

    /// The largest piece of free memory that a block could take, in bytes.
    fn largest_free(&self) -> u64;

    /// How it broke its contract, if its answers are checked. It serves no requests any more then.
    fn fault(&self) -> Option<&ContractFault> {
        None
    }
}

/// What an allocator with this limit may still take.
fn available(limit: Option<u64>, reserved: u64, source: &dyn Source) -> u64 {
    let own = limit.map(|limit| limit.saturating_sub(reserved));
    let both = [own, source.available()].into_iter().flatten().min();
    both.unwrap_or(1 << 62)
}

/// The next multiple of a power of two; `None` beyond the address space.
fn rounded(bytes: u64, unit: u64) -> Option<u64> {
    // Addresses are below 2^63: sums of two never overflow.
    bytes
        .checked_next_multiple_of(unit)
        .filter(|bytes| *bytes < 1 << 62)
}
