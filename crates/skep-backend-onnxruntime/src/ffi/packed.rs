//! What the library packs while it makes a session, looked at and replaced; and weights that move to other pages.

use std::{io, os::fd::BorrowedFd};

use skep_alloc::LoadedBlocks;
use skep_cache::Mapped;
use skep_store::Lease;

use super::Session;

/// What block `index` of a session's load holds. The library writes packed weights while it makes the session alone.
pub(crate) fn contents<'a>(_made: &'a Session, loaded: &'a LoadedBlocks, index: usize) -> &'a [u8] {
    // SAFETY: the session is made, so that nothing is written any more; runs only read what was packed.
    unsafe { loaded.bytes(index) }
}

/// Maps kept pages over block `index` of a session's load, before anything runs: the exclusive borrow says so.
///
/// The file there is what an earlier load of the same graph with the same library, options and processor had in the block
/// at this place of its sequence: what the library would have packed again.
pub(crate) fn replace(
    _made: &mut Session,
    loaded: &LoadedBlocks,
    index: usize,
    file: BorrowedFd<'_>,
    offset: u64,
) -> io::Result<()> {
    // SAFETY: nobody else uses the session, so that nothing reads or writes the block; the file is sealed, and has what the
    // library would have packed, as said above.
    unsafe { loaded.replace(index, file, offset) }
}

/// Maps the store's pages of tensor `index` of a lease over block `block` of a load, in which are the cache's pages of the
/// same tensor; runs go on meanwhile.
pub(crate) fn exchange_packed(
    loaded: &LoadedBlocks,
    block: usize,
    lease: &Lease,
    index: usize,
) -> io::Result<()> {
    let place = lease.file_range(index);
    // SAFETY: nobody writes packed weights after the load; both files hold the tensor of one digest, so that whoever reads
    // meanwhile reads the same bytes, and the store's are sealed.
    unsafe { loaded.replace(block, place.descriptor, place.offset) }
}

/// Maps the store's pages of tensor `index` of a lease over the cache's of the same tensor; runs go on meanwhile.
pub(crate) fn exchange(mapped: &Mapped, lease: &Lease, index: usize) -> io::Result<()> {
    let place = lease.file_range(index);
    // SAFETY: both files hold the tensor of one digest, and the store's are sealed.
    unsafe { mapped.replace(place.descriptor, place.offset) }
}
