//! The allocator: small blocks from mimalloc, large ones from the system's.
#![allow(
    unsafe_code,
    reason = "an allocator is made of raw memory (invariant 5)"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ptr,
};

use mimalloc::MiMalloc;

/// Blocks of this size and more come from the system's allocator.
///
/// The buffers of usual requests are smaller. With 128 KiB, 256 KiB and 1 MiB in its place, a server of which a
/// ResNet-50 was loaded and unloaded 150 times held 31, 39 and 50 MiB, still growing; with 32 KiB 23 MiB, flat.
pub const LARGE_BYTES: usize = 32 << 10;

/// A [`GlobalAlloc`] that goes by size. A block's layout comes with it when it is freed, so that no block has to be
/// marked.
#[derive(Debug)]
pub struct SplitHeap;

const fn is_large(size: usize) -> bool {
    size >= LARGE_BYTES
}

// SAFETY: every block is freed and resized by the allocator that it came from, since its size decides both times.
unsafe impl GlobalAlloc for SplitHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that both allocators ask for.
        unsafe {
            if is_large(layout.size()) {
                System.alloc(layout)
            } else {
                MiMalloc.alloc(layout)
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe {
            if is_large(layout.size()) {
                System.alloc_zeroed(layout)
            } else {
                MiMalloc.alloc_zeroed(layout)
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above, and a block's layout is the one that it was allocated with.
        unsafe {
            if is_large(layout.size()) {
                System.dealloc(block, layout);
            } else {
                MiMalloc.dealloc(block, layout);
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as above; the caller has checked that `new_size` makes a layout. Where the block moves from one
        // allocator to the other, both blocks are live and apart, and hold what is copied.
        unsafe {
            match (is_large(layout.size()), is_large(new_size)) {
                (true, true) => System.realloc(block, layout, new_size),
                (false, false) => MiMalloc.realloc(block, layout, new_size),
                _ => {
                    let moved =
                        self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
                    if !moved.is_null() {
                        ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
                        self.dealloc(block, layout);
                    }
                    moved
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever way a block takes between the two, its bytes and its alignment stay.
    #[test]
    fn blocks_keep_their_bytes_when_they_move() {
        let sizes = [
            1,
            LARGE_BYTES - 1,
            LARGE_BYTES,
            3 * LARGE_BYTES,
            LARGE_BYTES + 1,
            LARGE_BYTES - 1,
            7,
        ];
        for align in [1, 16, 64, 4096] {
            let layout = |size| Layout::from_size_align(size, align).expect("a layout");
            // SAFETY: each block is used within its size, and freed with its layout.
            unsafe {
                let mut block = SplitHeap.alloc(layout(sizes[0]));
                *block = 42;
                for pair in sizes.windows(2) {
                    block = SplitHeap.realloc(block, layout(pair[0]), pair[1]);
                    assert_eq!(block as usize % align, 0, "{pair:?} at {align}");
                    for index in 1..pair[0].min(pair[1]) {
                        assert_eq!(*block.add(index), index as u8, "{pair:?} at {align}");
                    }
                    for index in 1..pair[1] {
                        *block.add(index) = index as u8;
                    }
                    assert_eq!(*block, 42, "{pair:?} at {align}");
                }
                SplitHeap.dealloc(block, layout(sizes[sizes.len() - 1]));
                let zeroed = SplitHeap.alloc_zeroed(layout(LARGE_BYTES));
                assert!((0..LARGE_BYTES).all(|index| *zeroed.add(index) == 0));
                SplitHeap.dealloc(zeroed, layout(LARGE_BYTES));
            }
        }
    }
}
