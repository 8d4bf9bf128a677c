//! An allocator for tests and benchmarks: the system's, with a count.
#![allow(
    unsafe_code,
    reason = "an allocator is made of raw memory (invariant 5)"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU64, Ordering},
};

/// The system's allocator, counting how often blocks of a size and above are taken from it, by all threads.
#[derive(Debug)]
pub struct CountingHeap {
    min_bytes: usize,
    taken: AtomicU64,
}

impl CountingHeap {
    /// Counts blocks of at least this many bytes.
    #[must_use]
    pub const fn of_blocks(min_bytes: usize) -> Self {
        Self {
            min_bytes,
            taken: AtomicU64::new(0),
        }
    }

    /// Blocks that were allocated, zeroed or resized until now.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    fn count(&self, bytes: usize) {
        if bytes >= self.min_bytes {
            self.taken.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: everything is the system allocator's.
unsafe impl GlobalAlloc for CountingHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        self.count(new_size);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, new_size) }
    }
}
