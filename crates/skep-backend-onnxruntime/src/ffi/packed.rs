//! What the library packs while it makes a session, looked at and replaced.

use std::{io, os::fd::BorrowedFd};

use skep_alloc::Loaded;

use super::Session;

/// What block `index` of a session's load holds. The library writes packed weights while it makes the session alone.
pub(crate) fn contents<'a>(_made: &'a Session, loaded: &'a Loaded, index: usize) -> &'a [u8] {
    // SAFETY: the session is made, so that nothing is written any more; runs only read what was packed.
    unsafe { loaded.bytes(index) }
}

/// Maps kept pages over block `index` of a session's load, before anything runs: the exclusive borrow says so.
///
/// The file there is what an earlier load of the same graph with the same library, options and processor had in the block
/// at this place of its sequence: what the library would have packed again.
pub(crate) fn replace(
    _made: &mut Session,
    loaded: &Loaded,
    index: usize,
    file: BorrowedFd<'_>,
    offset: u64,
) -> io::Result<()> {
    // SAFETY: nobody else uses the session, so that nothing reads or writes the block; the file is sealed, and has what the
    // library would have packed, as said above.
    unsafe { loaded.replace(index, file, offset) }
}
