//! Aligned memory that Skep owns and fills.
#![allow(unsafe_code, reason = "layer 2 owns raw memory (invariant 5)")]

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
    sync::Arc,
};

use bytes::Bytes;
use memmap2::MmapRaw;

use crate::TensorError;

/// The alignment of every buffer, in bytes: a cache line, and the widest vector register of today's processors.
pub const ALIGNMENT: usize = 64;

/// The allocator's natural alignment. For a larger one it zeroes the memory itself; for this one it takes zeroed pages
/// from the system, so that the code that fills a large buffer is the first to touch it.
const NATURAL_ALIGNMENT: usize = 16;

/// Memory aligned to [`ALIGNMENT`]: zeroed, or a part of memory shared with another process.
///
/// ```text
/// start          pointer                          start + length + SLACK
///   |<- padding ->|<---------- length ---------->|...|
/// ```
#[derive(Debug)]
pub struct AlignedBuffer {
    pointer: NonNull<u8>,
    length: usize,
    padding: usize,
    /// The mapping that the buffer is a part of; `None` if it owns its memory.
    mapping: Option<Arc<MmapRaw>>,
}

/// Room to move from the natural alignment to the larger one.
const SLACK: usize = ALIGNMENT - NATURAL_ALIGNMENT;

// SAFETY: the buffer owns its memory exclusively, like a `Vec<u8>`.
unsafe impl Send for AlignedBuffer {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// Allocates `length` zero bytes, or ends the process. For lengths that clients do not choose.
    ///
    /// # Panics
    /// If `length` is near `isize::MAX`, which no checked shape reaches.
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        let layout = || Self::layout(length).expect("a buffer's length fits isize");
        Self::try_zeroed(length).unwrap_or_else(|_| handle_alloc_error(layout()))
    }

    /// Allocates `length` zero bytes.
    ///
    /// # Errors
    /// [`TensorError::NoMemory`].
    pub fn try_zeroed(length: usize) -> Result<Self, TensorError> {
        if length == 0 {
            // Aligned, never dereferenced.
            let pointer = NonNull::new(ALIGNMENT as *mut u8).expect("the alignment is not zero");
            return Ok(Self {
                pointer,
                length,
                padding: 0,
                mapping: None,
            });
        }
        let no_memory = TensorError::NoMemory { bytes: length };
        let Some(layout) = Self::layout(length) else {
            return Err(no_memory);
        };
        // SAFETY: the layout's size is not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(raw).ok_or(no_memory)?;
        let padding = start.addr().get().next_multiple_of(ALIGNMENT) - start.addr().get();
        // SAFETY: `start` is a multiple of the natural alignment, so the padding is at most `SLACK`, within the layout.
        let pointer = unsafe { start.add(padding) };
        Ok(Self {
            pointer,
            length,
            padding,
            mapping: None,
        })
    }

    /// `length` bytes of a mapping, from `offset` on.
    ///
    /// # Safety
    /// The bytes lie within the mapping, and no other buffer or reference to them exists while this one does.
    pub(crate) unsafe fn part_of(mapping: &Arc<MmapRaw>, offset: usize, length: usize) -> Self {
        if length == 0 {
            return Self::zeroed(0);
        }
        // SAFETY: the caller promises that the offset lies within the mapping.
        let start = unsafe { mapping.as_mut_ptr().add(offset) };
        Self {
            pointer: NonNull::new(start).expect("a mapping does not begin at address zero"),
            length,
            padding: 0,
            mapping: Some(Arc::clone(mapping)),
        }
    }

    /// Makes the buffer immutable and shareable, without a copy.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    fn layout(length: usize) -> Option<Layout> {
        Layout::from_size_align(length.checked_add(SLACK)?, NATURAL_ALIGNMENT).ok()
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        if self.length != 0
            && self.mapping.is_none()
            && let Some(layout) = Self::layout(self.length)
        {
            // SAFETY: `zeroed` allocated this very layout and went `padding` bytes on from its start; freed once.
            unsafe {
                let start = self.pointer.sub(self.padding);
                dealloc(start.as_ptr(), layout);
            }
        }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `length` initialised bytes from `pointer` belong to this buffer; a length of zero reads nothing.
        unsafe { slice::from_raw_parts(self.pointer.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the exclusive borrow rules out other references.
        unsafe { slice::from_raw_parts_mut(self.pointer.as_ptr(), self.length) }
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_beyond_any_machine_are_an_error() {
        for length in [1 << 60, isize::MAX as usize, usize::MAX] {
            let error = AlignedBuffer::try_zeroed(length).map(drop);
            assert_eq!(error, Err(TensorError::NoMemory { bytes: length }));
        }
    }

    #[test]
    fn buffers_are_zeroed_aligned_and_freeze_in_place() {
        for length in [0, 1, 63, 64, 4097] {
            let mut buffer = AlignedBuffer::zeroed(length);
            assert!(buffer.iter().all(|&b| b == 0));
            assert_eq!(buffer.as_ptr().addr() % ALIGNMENT, 0);
            buffer.fill(7);
            let address = buffer.as_ptr().addr();
            let frozen = buffer.freeze();
            assert_eq!(frozen.len(), length);
            assert!(frozen.iter().all(|&b| b == 7));
            assert!(length == 0 || frozen.as_ptr().addr() == address);
        }
    }
}
