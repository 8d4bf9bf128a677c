//! The one interface of all layouts.

use std::ops::Range;

/// Where a block lies: bytes from the start of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockPlace {
    /// The number of the chunk, as [`BlockLayout::add_chunk`] gave it.
    pub chunk: usize,
    /// Bytes from the chunk's start, a multiple of [`crate::ALIGNMENT`].
    pub offset: u64,
}

/// A layout's answer to a request for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The block lies here, and is in use from now on.
    At(BlockPlace),
    /// No chunk has room. The layout wants a chunk of at least so many bytes from its source: call
    /// [`BlockLayout::add_chunk`] and ask again, or [`BlockLayout::refused`].
    Grow(u64),
    /// The layout leaves this block to another allocator.
    Elsewhere,
    /// The same, because requests no longer follow the layout's plan.
    Deviating,
}

/// What a freed block leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreedBlock {
    /// The bytes that the user asked for.
    pub size: u64,
    /// Bytes of the block's chunk whose whole pages the source should take back; empty where the layout keeps them.
    pub released: Range<u64>,
}

/// Decides where blocks lie, in offsets of chunks. Blocks in use never share a byte, and each lies within its chunk.
pub trait BlockLayout {
    /// Places a block of `size` bytes, which are more than 0.
    fn malloc(&mut self, size: u64) -> Placement;

    /// Takes a chunk of `length` bytes over from the source, and gives it the next number, from 0 on.
    fn add_chunk(&mut self, length: u64) -> usize;

    /// The source refused a chunk of `wanted` bytes for a block of `size` bytes: what to do instead. A layout may ask
    /// for less; by default it leaves the block to another allocator.
    fn refused(&mut self, size: u64, wanted: u64) -> Placement {
        let _ = (size, wanted);
        Placement::Elsewhere
    }

    /// Frees the block at `place`; `None` when no block in use begins there.
    fn free(&mut self, place: BlockPlace) -> Option<FreedBlock>;

    /// Offset and size of each block in use in a chunk, in order of address.
    fn blocks(&self, chunk: usize) -> Vec<(u64, u64)>;

    /// Whether a block of the chunk is in use: a source may take a chunk back only when none is.
    fn in_use(&self, chunk: usize) -> bool;
}
