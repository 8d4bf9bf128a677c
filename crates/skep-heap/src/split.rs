//! The allocator: small blocks from mimalloc, large ones from `blocks`, the largest from the system's.
#![allow(
    unsafe_code,
    reason = "an allocator is made of raw memory (invariant 5)"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ptr,
};

use mimalloc::MiMalloc;

use crate::{
    blocks,
    classes::{MAX_BYTES, class_of},
    giving_back,
};

/// Blocks of this size and above do not come from mimalloc.
///
/// The buffers of usual requests are smaller. After 150 loads and unloads of a ResNet-50 a server held 23 MiB, no
/// longer growing; with 128 KiB, 256 KiB and 1 MiB instead it held 31, 39 and 50 MiB, still growing.
pub const LARGE_BYTES: usize = 32 << 10;

/// Blocks begin at a page.
const PAGE: usize = 4096;

/// The allocator that a block belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    Small,
    Kept,
    System,
}

const fn home(size: usize, align: usize) -> Home {
    if size < LARGE_BYTES {
        Home::Small
    } else if size <= MAX_BYTES && align <= PAGE {
        Home::Kept
    } else {
        Home::System
    }
}

/// A [`GlobalAlloc`] that chooses an allocator by size. The layout comes with a block when it is freed, so blocks need
/// no mark.
#[derive(Debug)]
pub struct SplitHeap;

// SAFETY: every block is freed and resized by the allocator that it came from, since its layout decides in both cases.
unsafe impl GlobalAlloc for SplitHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of all allocators.
        unsafe {
            match home(layout.size(), layout.align()) {
                Home::Small => MiMalloc.alloc(layout),
                Home::Kept => blocks::take(layout.size()).0,
                Home::System => System.alloc(layout),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above; a kept block has at least the size that was asked for.
        unsafe {
            match home(layout.size(), layout.align()) {
                Home::Small => MiMalloc.alloc_zeroed(layout),
                Home::System => System.alloc_zeroed(layout),
                Home::Kept => {
                    let (block, is_zeros) = blocks::take(layout.size());
                    if !is_zeros {
                        block.write_bytes(0, layout.size());
                    }
                    block
                }
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above, and a block's layout is the one that it was allocated with.
        unsafe {
            match home(layout.size(), layout.align()) {
                Home::Small => MiMalloc.dealloc(block, layout),
                Home::Kept => {
                    blocks::put(block, layout.size());
                    giving_back::something_is_kept();
                }
                Home::System => System.dealloc(block, layout),
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: as above; the caller has checked that `new_size` makes a layout. Where the block moves from one
        // allocator to the other, both blocks are live and apart, and hold what is copied.
        unsafe {
            match (home(size, align), home(new_size, align)) {
                (Home::Small, Home::Small) => MiMalloc.realloc(block, layout, new_size),
                (Home::System, Home::System) => System.realloc(block, layout, new_size),
                (Home::Kept, Home::Kept) if class_of(size) == class_of(new_size) => block,
                _ => {
                    let moved = self.alloc(Layout::from_size_align_unchecked(new_size, align));
                    if !moved.is_null() {
                        ptr::copy_nonoverlapping(block, moved, size.min(new_size));
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

    /// A block keeps its bytes and its alignment, whichever allocators it moves between.
    #[test]
    fn blocks_keep_their_bytes_when_they_move() {
        let sizes = [
            1,
            LARGE_BYTES - 1,
            LARGE_BYTES,
            3 * LARGE_BYTES,
            LARGE_BYTES + 1,
            LARGE_BYTES - 1,
            4 * LARGE_BYTES,
            4 * LARGE_BYTES - 100,
            MAX_BYTES,
            MAX_BYTES + 1,
            MAX_BYTES - 1,
            7,
        ];
        for align in [1, 16, 64, 4096, 8192] {
            let layout = |size| Layout::from_size_align(size, align).expect("a layout");
            // SAFETY: each block is used within its size, and freed with its layout.
            unsafe {
                let mut block = SplitHeap.alloc(layout(sizes[0]));
                *block = 42;
                for pair in sizes.windows(2) {
                    block = SplitHeap.realloc(block, layout(pair[0]), pair[1]);
                    assert_eq!(block as usize % align, 0, "{pair:?} at {align}");
                    // Not each byte of the largest: this is the slowest test otherwise.
                    for index in (1..pair[0].min(pair[1])).step_by(61) {
                        assert_eq!(*block.add(index), index as u8, "{pair:?} at {align}");
                    }
                    for index in (1..pair[1]).step_by(61) {
                        *block.add(index) = index as u8;
                    }
                    assert_eq!(*block, 42, "{pair:?} at {align}");
                }
                SplitHeap.dealloc(block, layout(sizes[sizes.len() - 1]));
                // The second time the first block is used again.
                for _ in 0..2 {
                    let zeroed = SplitHeap.alloc_zeroed(layout(LARGE_BYTES));
                    assert!((0..LARGE_BYTES).all(|index| *zeroed.add(index) == 0));
                    zeroed.write_bytes(1, LARGE_BYTES);
                    SplitHeap.dealloc(zeroed, layout(LARGE_BYTES));
                }
            }
        }
    }
}
