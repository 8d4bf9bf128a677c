//! The plain heap: the process's global allocator, with the size of each block in front of it, since the size is not
//! passed to `free`, and bytes behind it that a kernel may read.
#![allow(
    unsafe_code,
    reason = "an allocator is made of raw memory (invariant 5)"
)]

use std::{
    alloc::{Layout, alloc, dealloc},
    ptr,
};

/// In front of each block: as long as the alignment, so that the block is aligned as well.
const HEADER: usize = crate::ALIGNMENT as usize;

fn layout(size: usize) -> Option<Layout> {
    let around = HEADER + crate::OVERRUN as usize;
    Layout::from_size_align(size.checked_add(around)?, HEADER).ok()
}

/// A block of `size` bytes, null when there is no memory.
pub(crate) fn malloc(size: usize) -> *mut u8 {
    let Some(layout) = layout(size) else {
        return ptr::null_mut();
    };
    // SAFETY: the layout is not empty. The header is as large as the alignment, so it holds a `usize` in the block's
    // own memory, and the block begins behind it.
    unsafe {
        let start = alloc(layout);
        if start.is_null() {
            return start;
        }
        start.cast::<usize>().write(size);
        start.add(HEADER)
    }
}

/// The size of a block.
///
/// # Safety
/// `block` comes from [`malloc`] and is live.
pub(crate) unsafe fn size(block: *const u8) -> usize {
    // SAFETY: the header lies there.
    unsafe { block.sub(HEADER).cast::<usize>().read() }
}

/// Frees a block.
///
/// # Safety
/// `block` comes from [`malloc`], is live, and is not used again.
pub(crate) unsafe fn free(block: *mut u8) {
    // SAFETY: the block was allocated with the layout of its size.
    unsafe {
        if let Some(layout) = layout(size(block)) {
            dealloc(block.sub(HEADER), layout);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_its_header_and_the_bytes_that_a_kernel_may_read() {
        let around = HEADER + crate::OVERRUN as usize;
        assert_eq!(layout(100).map(|layout| layout.size()), Some(100 + around));
        assert_eq!(layout(usize::MAX), None);
    }
}
