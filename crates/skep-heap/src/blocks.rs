//! Large blocks, 32 KiB to 32 MiB: the tensors of requests, and what parsing a model takes.
//!
//! ```text
//! alloc   own shard's magazine -> pool's used blocks -> pool's cleared blocks -> a new one of the kernel's
//! free    own shard's magazine -> pool's used blocks, up to a bound           -> cleared or unmapped
//! ```
//!
//! A block is a multiple of a page, of one of 21 sizes ([`classes`](crate::classes)), without a header: whoever frees
//! it says how large it is. Threads are spread over [`SHARDS`] shards. A shard's *magazine* of a class holds the few
//! blocks that its threads freed last; it has a lock that is nearly always free. What it cannot hold goes to the
//! class's *pool*, which all shards share: tensors are allocated by the thread that reads a request, and freed by the
//! one that ran it.
//!
//! Blocks that are kept still have their pages. Those that nobody needed from one [`tick`] to the next are given back,
//! so memory follows what a server needs with a second's delay, and no lock is held while the kernel takes it. Below
//! [`UNMAPPED_BYTES`] pages go and addresses stay, since so many holes would exceed the kernel's bound on mappings.

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
    giving_back,
    pages::{self, Stack},
};

/// More than threads that allocate at the same moment on the cores of usual machines.
const SHARDS: usize = 16;

/// Blocks of a magazine, at most.
const SLOTS: usize = 32;

/// What a magazine holds, at most; one block if that is larger.
const MAGAZINE_BYTES: usize = 1 << 20;

/// The largest blocks that magazines hold. Filling one takes longer than a lock that others want.
const LARGEST_IN_MAGAZINES: usize = 4 << 20;

/// Blocks of this size and more are unmapped when they are given back.
const UNMAPPED_BYTES: usize = 1 << 20;

/// Smaller blocks are cut from pieces of this size.
const PIECE_BYTES: usize = 4 << 20;

/// How many blocks are taken out of a list under its lock and given back without it.
const SLICE: usize = 16;

/// What the pools keep where nothing gives idle blocks back: in worker processes.
pub(crate) const KEPT_WITHOUT_TICKS: usize = 16 << 20;

/// What the pools keep for the next request where [`tick`] gives back what is idle.
pub(crate) const KEPT_WITH_TICKS: usize = 128 << 20;

/// The blocks of all pools that have pages: how many bytes, and how many there may be.
static POOLED_BYTES: AtomicUsize = AtomicUsize::new(0);
static MAX_POOLED_BYTES: AtomicUsize = AtomicUsize::new(KEPT_WITHOUT_TICKS);

/// Blocks of one class that the threads of a shard freed last.
#[repr(align(128))]
struct Magazine {
    blocks: [*mut u8; SLOTS],
    length: usize,
    /// The least length since the last tick: so many were not needed.
    idle: usize,
}

/// Blocks of one class, of all shards.
struct BlockPool {
    /// With pages.
    used: Stack,
    /// The least number of those since the last tick.
    idle: usize,
    /// Without pages.
    cleared: Stack,
    /// What is left of the last piece.
    piece: *mut u8,
    piece_bytes: usize,
}

// SAFETY: addresses of blocks that nobody uses.
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
    // Nothing panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The shard of this thread.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    // A thread that is ending has none any more.
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

/// A block of a class, and whether it is zeros; null where the kernel has none.
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
        // What is left is less than a block: its pages were never touched.
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

/// Takes a block back that [`take`] gave for this size, or for another one of the same class.
///
/// # Safety
/// Nobody uses the block.
pub(crate) unsafe fn put(block: *mut u8, size: usize) {
    let class = class_of(size);
    let slots = slots(class);
    let block = if slots > 0 {
        let mut magazine = lock(&MAGAZINES[shard()][class]);
        // The one that was freed longest ago makes room.
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
        // SAFETY: the caller's promise; of the one that made room, an earlier caller's.
        unsafe { put_into_pool(block, class) };
    }
    giving_back::something_is_kept();
}

/// # Safety
/// Nobody uses the block.
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
/// Nobody uses the block.
unsafe fn give_back(block: *mut u8, class: usize) {
    let bytes = bytes_of(class);
    // SAFETY: the caller's promise; blocks of this size are mappings of their own, smaller ones parts of one.
    unsafe {
        if bytes >= UNMAPPED_BYTES {
            pages::unmap(block, bytes);
        } else if !pages::clear(block, bytes) || !lock(&POOLS[class]).cleared.push(block) {
            // Locked pages, or no memory for the list: as a used one it is not lost, and the next look at it tries
            // again.
            POOLED_BYTES.fetch_add(bytes, Ordering::Relaxed);
            let _ = lock(&POOLS[class]).used.push(block);
        }
    }
}

/// What is given back at a [`tick`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// What nobody needed since the last one.
    Idle,
    /// Everything that is kept.
    All,
}

/// Gives blocks back; how many bytes are kept still.
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
                // SAFETY: taken out of the list above: nobody else has it.
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

/// Lets the pools keep so many bytes.
pub(crate) fn keep_at_most(bytes: usize) {
    MAX_POOLED_BYTES.store(bytes, Ordering::Relaxed);
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
