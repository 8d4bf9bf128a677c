//! Reads and replaces the weights that the library packs while it makes a session, and moves weights to other pages.

use std::{io, os::fd::BorrowedFd};

use skep_alloc::LoadedBlocks;
use skep_cache::Mapped;
use skep_store::Lease;

use super::Session;

/// The content of block `index` of a session's load. The library writes packed weights only while it makes the session.
pub(crate) fn contents<'a>(_made: &'a Session, loaded: &'a LoadedBlocks, index: usize) -> &'a [u8] {
    // SAFETY: the session is complete, so nothing writes any more; runs only read packed weights.
    unsafe { loaded.bytes(index) }
}

/// Maps a packed weight's pages over block `index` of a session's load, before the first run, as the exclusive borrow
/// ensures.
///
/// The file contains the block at the same place in the sequence of an earlier load, with the same graph, library,
/// options and processor: exactly what the library would pack again.
pub(crate) fn replace(
    _made: &mut Session,
    loaded: &LoadedBlocks,
    index: usize,
    file: BorrowedFd<'_>,
    offset: u64,
) -> io::Result<()> {
    // SAFETY: the session is not in use, so nothing reads or writes the block; the file is sealed, and its content is
    // what the library would pack, as explained above.
    unsafe { loaded.replace(index, file, offset) }
}

/// Maps the store's pages of tensor `index` of a lease over block `block` of a load, which contains the cache's pages
/// of the same tensor. Runs continue meanwhile.
pub(crate) fn exchange_packed(
    loaded: &LoadedBlocks,
    block: usize,
    lease: &Lease,
    index: usize,
) -> io::Result<()> {
    let place = lease.file_range(index);
    // SAFETY: nothing writes packed weights after the load. Both files hold the tensor with the same digest, so
    // concurrent readers see the same bytes, and the store's file is sealed.
    unsafe { loaded.replace(block, place.descriptor, place.offset) }
}

/// Maps the store's pages of tensor `index` of a lease over the cache's pages of the same tensor. Runs continue
/// meanwhile.
pub(crate) fn exchange(mapped: &Mapped, lease: &Lease, index: usize) -> io::Result<()> {
    let place = lease.file_range(index);
    // SAFETY: both files hold the tensor with the same digest, and the store's file is sealed.
    unsafe { mapped.replace(place.descriptor, place.offset) }
}
