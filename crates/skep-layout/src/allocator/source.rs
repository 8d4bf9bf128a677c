//! Where allocators get their memory.

use std::ops::Range;

/// What every chunk's address is a multiple of, as `cudaMalloc`'s.
pub const CHUNK_ALIGNMENT: u64 = 512;

/// A source of memory: `cudaMalloc` and `cudaFree`, or `mmap`, or none at all in a simulation.
///
/// There are two ways to memory. [`take`](Self::take) and [`give_back`](Self::give_back) handle whole chunks.
/// [`reserve`](Self::reserve) gets addresses alone, and [`commit`](Self::commit) puts memory behind some of their pages
/// (`cuMemAddressReserve` and `cuMemMap`, or `mmap` and `madvise`).
pub trait Source {
    /// A chunk of `bytes`, at an address that is a multiple of [`CHUNK_ALIGNMENT`]; `None` where memory is refused.
    fn take(&mut self, bytes: u64) -> Option<u64>;

    /// Takes a whole chunk back. It may first have to wait for work that is queued on the device.
    fn give_back(&mut self, address: u64, bytes: u64);

    /// Addresses for `bytes`, without memory; a multiple of the page. `None` where the address space is used up.
    fn reserve(&mut self, bytes: u64) -> Option<u64>;

    /// Gives addresses back; none of their pages has memory.
    fn release(&mut self, address: u64, bytes: u64);

    /// Puts memory behind whole pages that have none; false where it is refused, and nothing has changed.
    #[must_use]
    fn commit(&mut self, pages: Range<u64>) -> bool;

    /// Takes the memory of whole pages back.
    fn decommit(&mut self, pages: Range<u64>);

    /// Bytes of a page, a power of two.
    fn page(&self) -> u64;

    /// Bytes that the source would still give; `None` where there is no limit.
    fn available(&self) -> Option<u64>;

    /// Waits until work that is queued on the device is done.
    fn wait(&mut self);

    /// The time in nanoseconds, from any beginning.
    fn now(&self) -> u64;
}
