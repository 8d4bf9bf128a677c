//! Large blocks, 32 KiB to 32 MiB: the tensors of requests, and what parsing a model takes.
//!
//! ```text
//! alloc   own shard's magazine -> pool's used blocks -> pool's cleared blocks -> a new one from the kernel
//! free    own shard's magazine -> pool's used blocks, up to a bound           -> cleared or unmapped
//! ```
//!
//! A block has one of 21 sizes ([`classes`](crate::classes)), all multiples of a page, and no header: the caller that
//! frees it passes its size. Threads are spread over [`SHARDS`] shards. A shard's *magazine* of a class holds the few
//! blocks that its threads freed last; its lock is nearly always free. The rest goes to the class's *pool*, which all
//! shards share: one thread reads a request and allocates its tensors, another runs it and frees them.
//!
//! Kept blocks still have their pages. Blocks that were not needed from one [`tick`] to the next are given back,
//! without a lock, so that memory follows the server's needs with a second's delay. Below [`UNMAPPED_BYTES`] only the
//! pages are given back, not the addresses: so many holes would exceed the kernel's bound on mappings.

#![allow(
    unsafe_code,
    reason = "an allocator is made of raw memory (invariant 5)"
)]

use std::{
    ptr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    classes::{CLASSES, bytes_of, class_of},
    pages::{self, Stack},
};

/// More than the threads that allocate at the same moment on usual machines.
const SHARDS: usize = 16;

/// The most blocks in a magazine.
const SLOTS: usize = 32;

/// The most bytes in a magazine; a single block may be larger.
const MAGAZINE_BYTES: usize = 1 << 20;

/// The largest blocks in magazines. Filling a larger one takes longer than waiting for a lock.
const LARGEST_IN_MAGAZINES: usize = 4 << 20;

/// Blocks of this size and more are unmapped when they are given back.
const UNMAPPED_BYTES: usize = 1 << 20;

/// Smaller blocks are cut from pieces of this size.
const PIECE_BYTES: usize = 4 << 20;

/// The number of blocks that are taken out of a list under its lock, to be given back without it.
const SLICE: usize = 16;

/// What the pools keep in worker processes, where nothing gives idle blocks back.
pub(crate) const KEPT_WITHOUT_TICKS: usize = 16 << 20;

/// What the pools keep for the next request in a server, where [`tick`] gives idle blocks back.
pub(crate) const KEPT_WITH_TICKS: usize = 128 << 20;

/// Bytes of the blocks with pages in all pools, and their bound.
static POOLED_BYTES: AtomicUsize = AtomicUsize::new(0);
static MAX_POOLED_BYTES: AtomicUsize = AtomicUsize::new(KEPT_WITHOUT_TICKS);

/// Blocks of one class that the threads of a shard freed last.
#[repr(align(128))]
struct Magazine {
    blocks: [*mut u8; SLOTS],
    length: usize,
    /// The smallest length since the last tick: this many blocks were not needed.
    idle: usize,
}

/// Blocks of one class, of all shards.
struct BlockPool {
    /// With pages.
    used: Stack,
    /// The smallest number of used blocks since the last tick.
    idle: usize,
    /// Without pages.
    cleared: Stack,
    /// The rest of the last piece.
    piece: *mut u8,
    piece_bytes: usize,
}

// SAFETY: addresses of unused blocks.
unsafe impl Send for Magazine {}
// SAFETY: as above.
unsafe impl Send for BlockPool {}

static MAGAZINES: [[Mutex<Magazine>; CLASSES]; SHARDS] = [const {
    [const {
        Mutex::new(Magazine {
            blocks: [ptr::null_mut(); SLOTS],
            length: 0,
            idle: 0,
        })
    }; CLASSES]
}; SHARDS];

static POOLS: [Mutex<BlockPool>; CLASSES] = [const {
    Mutex::new(BlockPool {
        used: Stack::new(),
        idle: 0,
        cleared: Stack::new(),
        piece: ptr::null_mut(),
        piece_bytes: 0,
    })
}; CLASSES];

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The shard of this thread.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    // The number is gone when the thread ends.
    SHARD.try_with(|shard| *shard).unwrap_or(0)
}

/// How many blocks of a class a magazine holds.
const fn slots(class: usize) -> usize {
    let bytes = bytes_of(class);
    if bytes > LARGEST_IN_MAGAZINES {
        return 0;
    }
    match MAGAZINE_BYTES / bytes {
        0 => 1,
        slots if slots > SLOTS => SLOTS,
        slots => slots,
    }
}

/// A block for `size` bytes, and whether it is zeroed; null if the kernel has no memory.
pub(crate) fn take(size: usize) -> (*mut u8, bool) {
    let class = class_of(size);
    if slots(class) > 0 {
        let mut magazine = lock(&MAGAZINES[shard()][class]);
        if magazine.length > 0 {
            magazine.length -= 1;
            magazine.idle = magazine.idle.min(magazine.length);
            return (magazine.blocks[magazine.length], false);
        }
    }
    take_from_pool(class)
}

fn take_from_pool(class: usize) -> (*mut u8, bool) {
    let bytes = bytes_of(class);
    let mut pool = lock(&POOLS[class]);
    if let Some(block) = pool.used.pop() {
        pool.idle = pool.idle.min(pool.used.len());
        POOLED_BYTES.fetch_sub(bytes, Ordering::Relaxed);
        return (block, false);
    }
    if let Some(block) = pool.cleared.pop() {
        return (block, true);
    }
    if bytes >= UNMAPPED_BYTES {
        drop(pool);
        return (pages::map(bytes), true);
    }
    if pool.piece_bytes < bytes {
        // The rest is smaller than a block, and its pages were never touched.
        let piece = pages::map(PIECE_BYTES);
        if piece.is_null() {
            return (piece, true);
        }
        (pool.piece, pool.piece_bytes) = (piece, PIECE_BYTES);
    }
    let block = pool.piece;
    pool.piece = block.wrapping_add(bytes);
    pool.piece_bytes -= bytes;
    (block, true)
}

/// Takes back a block that [`take`] gave for this size, or for another one of the same class.
///
/// # Safety
/// The block is not in use.
pub(crate) unsafe fn put(block: *mut u8, size: usize) {
    let class = class_of(size);
    let slots = slots(class);
    let block = if slots > 0 {
        let mut magazine = lock(&MAGAZINES[shard()][class]);
        // The block that was freed first makes room.
        let out = (magazine.length == slots).then(|| {
            let oldest = magazine.blocks[0];
            magazine.blocks.copy_within(1..slots, 0);
            magazine.length -= 1;
            oldest
        });
        let length = magazine.length;
        magazine.blocks[length] = block;
        magazine.length += 1;
        out
    } else {
        Some(block)
    };
    if let Some(block) = block {
        // SAFETY: the caller's promise, or, for the block that made room, an earlier caller's.
        unsafe { put_into_pool(block, class) };
    }
}

/// # Safety
/// The block is not in use.
unsafe fn put_into_pool(block: *mut u8, class: usize) {
    let bytes = bytes_of(class);
    let before = POOLED_BYTES.fetch_add(bytes, Ordering::Relaxed);
    if before + bytes <= MAX_POOLED_BYTES.load(Ordering::Relaxed)
        && lock(&POOLS[class]).used.push(block)
    {
        return;
    }
    POOLED_BYTES.fetch_sub(bytes, Ordering::Relaxed);
    // SAFETY: the caller's promise.
    unsafe { give_back(block, class) };
}

/// Gives a block's pages back to the kernel.
///
/// # Safety
/// The block is not in use.
unsafe fn give_back(block: *mut u8, class: usize) {
    let bytes = bytes_of(class);
    // SAFETY: the caller's promise; blocks of this size are mappings of their own, smaller ones parts of one.
    unsafe {
        if bytes >= UNMAPPED_BYTES {
            pages::unmap(block, bytes);
        } else if !pages::clear(block, bytes) || !lock(&POOLS[class]).cleared.push(block) {
            // Locked pages, or no memory for the list. The block is kept as a used one, and the next tick tries again.
            POOLED_BYTES.fetch_add(bytes, Ordering::Relaxed);
            let _ = lock(&POOLS[class]).used.push(block);
        }
    }
}

/// Which blocks a [`tick`] gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those that were not needed since the last tick.
    Idle,
    /// All kept blocks.
    All,
}

/// Gives blocks back. Returns the bytes that are still kept.
pub(crate) fn tick(which: Which) -> usize {
    let mut kept = 0;
    for class in 0..CLASSES {
        let bytes = bytes_of(class);
        for shard in &MAGAZINES {
            let mut magazine = lock(&shard[class]);
            let going = match which {
                Which::Idle => magazine.idle,
                Which::All => magazine.length,
            };
            let out = magazine.blocks;
            magazine.blocks.copy_within(going.., 0);
            magazine.length -= going;
            magazine.idle = magazine.length;
            kept += magazine.length * bytes;
            drop(magazine);
            for block in &out[..going] {
                // SAFETY: taken out of the list above, so no other thread has it.
                unsafe { give_back(*block, class) };
            }
        }
        let mut going = {
            let pool = lock(&POOLS[class]);
            match which {
                Which::Idle => pool.idle,
                Which::All => pool.used.len(),
            }
        };
        while going > 0 {
            let mut out = [ptr::null_mut(); SLICE];
            let mut taken = 0;
            let mut pool = lock(&POOLS[class]);
            while taken < SLICE.min(going)
                && let Some(block) = pool.used.pop()
            {
                out[taken] = block;
                taken += 1;
            }
            drop(pool);
            POOLED_BYTES.fetch_sub(taken * bytes, Ordering::Relaxed);
            for block in &out[..taken] {
                // SAFETY: as above.
                unsafe { give_back(*block, class) };
            }
            going = if taken == 0 { 0 } else { going - taken };
        }
        let mut pool = lock(&POOLS[class]);
        pool.idle = pool.used.len();
        kept += pool.used.len() * bytes;
    }
    kept
}

/// Sets the bound on the bytes that the pools keep.
pub(crate) fn keep_at_most(bytes: usize) {
    MAX_POOLED_BYTES.store(bytes, Ordering::Relaxed);
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
