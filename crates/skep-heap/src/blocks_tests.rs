//! Blocks are exclusive, zeroed when they should be, and given back when they are not needed.

use std::{sync::Barrier, thread};

use super::*;

/// The tests share the kept blocks, so they run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Pages of a range that have memory.
fn resident_bytes(block: *mut u8, bytes: usize) -> usize {
    let mut pages = vec![0_u8; bytes / 4096];
    // SAFETY: the range is mapped, and the vector holds a byte a page of it.
    let outcome = unsafe { libc::mincore(block.cast(), bytes, pages.as_mut_ptr()) };
    assert_eq!(outcome, 0);
    pages.iter().filter(|page| **page & 1 == 1).count() * 4096
}

#[test]
fn freed_blocks_are_used_again_or_given_back_after_a_tick() {
    let _alone = lock(&ALONE);
    tick(Which::All);
    let bytes = 256 << 10;
    let blocks: Vec<*mut u8> = (0..64).map(|_| take(bytes).0).collect();
    // SAFETY: the blocks are this test's, and of this size.
    unsafe {
        blocks.iter().for_each(|block| block.write_bytes(1, bytes));
        blocks.iter().for_each(|block| put(*block, bytes));
    }
    assert!(
        tick(Which::Idle) >= 16 << 20,
        "all were freed since the last tick"
    );
    let (again, is_zeros) = take(bytes);
    assert!(!is_zeros && blocks.contains(&again), "one of those");
    // SAFETY: as above.
    unsafe { put(again, bytes) };
    // One was needed, the others were not.
    assert_eq!(tick(Which::Idle), bytes);
    assert_eq!(tick(Which::Idle), 0);
    let resident: usize = blocks
        .iter()
        .map(|block| resident_bytes(*block, bytes))
        .sum();
    assert_eq!(resident, 0);
    // Their addresses are used again, and hold zeros.
    let (cleared, is_zeros) = take(bytes);
    assert!(is_zeros && blocks.contains(&cleared));
    // SAFETY: the block is this test's.
    unsafe {
        assert!((0..bytes).all(|index| *cleared.add(index) == 0));
        put(cleared, bytes);
    }
    assert_eq!(tick(Which::All), 0);
}

#[test]
fn pools_keep_no_more_than_their_bound() {
    let _alone = lock(&ALONE);
    tick(Which::All);
    let bytes = 8 << 20;
    let blocks: Vec<*mut u8> = (0..16).map(|_| take(bytes).0).collect();
    // SAFETY: the blocks are this test's, and of this size.
    blocks
        .iter()
        .for_each(|block| unsafe { put(*block, bytes) });
    assert_eq!(POOLED_BYTES.load(Ordering::Relaxed), KEPT_WITHOUT_TICKS);
    assert_eq!(tick(Which::All), 0);
    assert_eq!(POOLED_BYTES.load(Ordering::Relaxed), 0);
}

/// Threads take and free blocks, also each other's: no two ever have the same block.
#[test]
fn threads_that_hand_each_other_blocks_never_share_one() {
    let _alone = lock(&ALONE);
    const THREADS: usize = 4;
    const ROUNDS: usize = 3000;
    let between: Vec<Mutex<Vec<(usize, usize, u64)>>> =
        (0..THREADS).map(|_| Mutex::default()).collect();
    let start = Barrier::new(THREADS + 1);
    thread::scope(|scope| {
        for me in 0..THREADS {
            let (between, start) = (&between, &start);
            scope.spawn(move || {
                let mut random = me as u64 + 1;
                start.wait();
                for round in 0..ROUNDS {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let size = (32 << 10) + (random >> 33) as usize % (2 << 20);
                    let (block, is_zeros) = take(size);
                    let mark = (me * ROUNDS + round + 1) as u64;
                    // SAFETY: the block is this thread's until it is handed on; its ends lie in it.
                    unsafe {
                        let last = block.add(size - 8).cast::<u64>();
                        if is_zeros {
                            assert_eq!(
                                (block.cast::<u64>().read_unaligned(), last.read_unaligned()),
                                (0, 0)
                            );
                        }
                        block.cast::<u64>().write_unaligned(mark);
                        last.write_unaligned(mark);
                    }
                    let next = (random >> 20) as usize % THREADS;
                    lock(&between[next]).push((block.expose_provenance(), size, mark));
                    if let Some((block, size, mark)) = { lock(&between[me]).pop() } {
                        let block = ptr::with_exposed_provenance_mut::<u8>(block);
                        // SAFETY: the thread that took the block handed it to this one.
                        unsafe {
                            assert_eq!(block.cast::<u64>().read_unaligned(), mark);
                            assert_eq!(block.add(size - 8).cast::<u64>().read_unaligned(), mark);
                            put(block, size);
                        }
                    }
                }
            });
        }
        start.wait();
        for _ in 0..200 {
            tick(Which::Idle);
            tick(Which::All);
        }
    });
    for (block, size, mark) in between
        .iter()
        .flat_map(|list| std::mem::take(&mut *lock(list)))
    {
        let block = ptr::with_exposed_provenance_mut::<u8>(block);
        // SAFETY: the remaining blocks belong to this thread.
        unsafe {
            assert_eq!(block.cast::<u64>().read_unaligned(), mark);
            put(block, size);
        }
    }
    assert_eq!(tick(Which::All), 0);
}
