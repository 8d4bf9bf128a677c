//! An allocator for tests and benchmarks: the system's, which counts.
#![allow(
    unsafe_code,
    reason = "an allocator is made of raw memory (invariant 5)"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

thread_local! {
    /// The thread's count. A process has one allocator of this kind.
    static TAKEN_HERE: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting the blocks of at least a given size that are taken from it.
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

    /// Blocks that were allocated, zeroed or resized until now, by all threads.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// The same for the calling thread alone: a test's harness has other threads.
    pub fn taken_here(&self) -> u64 {
        TAKEN_HERE.get()
    }

    fn count(&self, bytes: usize) {
        if bytes >= self.min_bytes {
            self.taken.fetch_add(1, Ordering::Relaxed);
            TAKEN_HERE.set(TAKEN_HERE.get() + 1);
        }
    }
}

// SAFETY: every call is passed to the system's allocator.
unsafe impl GlobalAlloc for CountingHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size());
        // SAFETY: the caller keeps the contract of the system's allocator.
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
