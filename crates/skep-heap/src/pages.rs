//! Memory from the kernel, and lists of blocks that need no memory of their blocks.
#![allow(
    unsafe_code,
    reason = "an allocator is made of raw memory (invariant 5)"
)]

use std::{
    alloc::{GlobalAlloc, Layout},
    ptr,
};

use mimalloc::MiMalloc;

/// Maps zeroed memory, in whole pages; null if the kernel has none.
pub(crate) fn map(bytes: usize) -> *mut u8 {
    // SAFETY: a new mapping replaces no other one.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        ptr::null_mut()
    } else {
        address.cast()
    }
}

/// Returns pages and their addresses to the kernel.
///
/// # Safety
/// The range came from [`map`], and is not in use.
pub(crate) unsafe fn unmap(block: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(block.cast(), bytes) };
}

/// Returns pages to the kernel and keeps their addresses; they are zeroed when they are touched again. False if the
/// kernel did not take them: on a machine with large pages, the range may share a page with others.
///
/// # Safety
/// The range came from [`map`], and is not in use.
pub(crate) unsafe fn clear(block: *mut u8, bytes: usize) -> bool {
    // The kernel rounds the length up.
    // SAFETY: reads a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page = usize::try_from(page).unwrap_or(usize::MAX);
    if !block.addr().is_multiple_of(page) || !bytes.is_multiple_of(page) {
        return false;
    }
    // SAFETY: the caller's promise.
    unsafe { libc::madvise(block.cast(), bytes, libc::MADV_DONTNEED) == 0 }
}

/// A stack of addresses. Its memory comes from mimalloc: growing it must not allocate one of the blocks that it lists.
#[derive(Debug)]
pub(crate) struct Stack {
    places: *mut usize,
    length: usize,
    capacity: usize,
}

// SAFETY: the stack owns its memory, and any thread may free memory of mimalloc.
unsafe impl Send for Stack {}

impl Stack {
    pub(crate) const fn new() -> Self {
        Self {
            places: ptr::null_mut(),
            length: 0,
            capacity: 0,
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.length
    }

    /// Pushes a block. False if there is no memory for the stack.
    #[must_use]
    pub(crate) fn push(&mut self, block: *mut u8) -> bool {
        if self.length == self.capacity && !self.grow() {
            return false;
        }
        // SAFETY: the place is within the capacity.
        unsafe {
            self.places
                .add(self.length)
                .write(block.expose_provenance())
        };
        self.length += 1;
        true
    }

    pub(crate) fn pop(&mut self) -> Option<*mut u8> {
        self.length = self.length.checked_sub(1)?;
        // SAFETY: the place was written when the length was raised above it.
        let address = unsafe { self.places.add(self.length).read() };
        Some(ptr::with_exposed_provenance_mut(address))
    }

    fn grow(&mut self) -> bool {
        const PLACE: usize = size_of::<usize>();
        let capacity = (2 * self.capacity).max(32);
        let Ok(layout) = Layout::array::<usize>(capacity) else {
            return false;
        };
        // SAFETY: the sizes are not zero, and the old layout is that of the last growth.
        let grown = unsafe {
            if self.capacity == 0 {
                MiMalloc.alloc(layout)
            } else {
                let old = Layout::from_size_align_unchecked(self.capacity * PLACE, PLACE);
                MiMalloc.realloc(self.places.cast(), old, layout.size())
            }
        };
        if grown.is_null() {
            return false;
        }
        #[allow(
            clippy::cast_ptr_alignment,
            reason = "the layout has the alignment of an address"
        )]
        let places = grown.cast();
        self.places = places;
        self.capacity = capacity;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_last_in_first_out() {
        let mut stack = Stack::new();
        let address = |number: usize| ptr::without_provenance_mut::<u8>(number << 12);
        for number in 1..=1000 {
            assert!(stack.push(address(number)));
        }
        assert_eq!(stack.len(), 1000);
        for number in (1..=1000).rev() {
            let popped = stack.pop().map(|block| block.addr());
            assert_eq!(popped, Some(address(number).addr()));
        }
        assert!(stack.pop().is_none());
    }
}
