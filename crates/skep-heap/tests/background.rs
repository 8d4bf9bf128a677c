//! The thread that gives memory back: what is freed goes without anybody's asking, and with it.
#![allow(unsafe_code, reason = "pages are looked at where they lie")]

use std::time::{Duration, Instant};

use skep_heap::SplitHeap;

#[global_allocator]
static HEAP: SplitHeap = SplitHeap;

const BYTES: usize = 256 << 10;
/// Much longer than giving back takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// Addresses of blocks that were filled and freed, larger than anything else that this process allocates.
fn freed_blocks() -> Vec<usize> {
    let blocks: Vec<Vec<u8>> = (0..64).map(|_| vec![1; BYTES]).collect();
    blocks.iter().map(|block| block.as_ptr().addr()).collect()
}

/// Pages of the blocks that still have memory.
fn resident_pages(blocks: &[usize]) -> usize {
    let mut pages = [0_u8; BYTES / 4096];
    let mut resident = 0;
    for block in blocks {
        let start = std::ptr::without_provenance_mut(*block);
        // SAFETY: nothing is read but which pages of the range are there; the array has a byte for each.
        let outcome = unsafe { libc::mincore(start, BYTES, pages.as_mut_ptr()) };
        assert_eq!(outcome, 0, "mapped");
        resident += pages.iter().filter(|page| **page & 1 == 1).count();
    }
    resident
}

fn wait_until_given_back(blocks: &[usize]) {
    let began = Instant::now();
    while resident_pages(blocks) > 0 {
        assert!(began.elapsed() < DEADLINE, "kept for good");
        std::thread::yield_now();
    }
}

#[test]
fn freed_memory_is_given_back_every_time() {
    skep_heap::give_back_in_background().expect("a thread");
    let blocks = freed_blocks();
    wait_until_given_back(&blocks);
    // The thread sleeps now: a free wakes it, and so does being asked.
    let blocks = freed_blocks();
    wait_until_given_back(&blocks);
    let blocks = freed_blocks();
    skep_heap::give_back_freed_memory();
    wait_until_given_back(&blocks);
}
