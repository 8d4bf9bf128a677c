//! Mappings whose pages are exchanged for those of a file.
#![allow(
    unsafe_code,
    reason = "replacing a mapping while others read it has no safe interface (invariant 5)"
)]

use std::{io, os::fd::BorrowedFd, ptr::NonNull};

use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Maps pages of a file over existing pages, read-only: addresses stay valid, and from now on hold the file's bytes.
/// `start` and `offset` are multiples of the page size; `length` is in bytes, of which the last page is mapped whole.
///
/// # Errors
/// The system's, such as too many mappings; the old pages then stay.
///
/// # Safety
/// - The caller owns the mapping of these pages, and no code writes them any more.
/// - The file's bytes there do not change while the mapping lives.
/// - Concurrent readers see either the old or the new bytes: both must be valid for them.
pub unsafe fn replace_pages(
    start: NonNull<u8>,
    length: usize,
    file: BorrowedFd<'_>,
    offset: u64,
) -> io::Result<()> {
    // A private read-only mapping shares the file's pages. Kernels before 6.7 refuse a shared mapping of a sealed file, but only after they have removed the old pages under their readers.
    let flags = MapFlags::PRIVATE | MapFlags::FIXED;
    // SAFETY: the range is the caller's own, and the system swaps the pages without a gap; the caller promises the
    // rest.
    unsafe {
        mmap(
            start.as_ptr().cast(),
            length,
            ProtFlags::READ,
            flags,
            file,
            offset,
        )
    }?;
    Ok(())
}
