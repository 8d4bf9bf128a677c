//! The heap of a server process.
//!
//! A server allocates in two ways. Requests allocate small blocks on one thread and free them on another, tens of
//! thousands of times a second. Models allocate large blocks when they are loaded, and free them when they are
//! unloaded. No single allocator is good at both:
//!
//! | | small blocks across threads | large blocks |
//! |---|---|---|
//! | glibc's | takes locks | one arena: a lock for all threads; several: memory that never comes back |
//! | mimalloc | 2 to 3 us less of CPU a request | keeps them: after 1,000 loads of a 100 MB model 1.7 GB |
//!
//! So [`SplitHeap`] chooses by size: mimalloc below [`LARGE_BYTES`]; up to 32 MiB Skep's own blocks, which it keeps by
//! size for a second to use them again; above that the kernel's, through glibc. An allocation and a free of 32 KiB to 4
//! MiB, measured on two threads, take 38 ns of CPU time together. With glibc they take 150 ns (one arena) or 140
//! (several), with mimalloc 1,000 from 256 KiB on (`benchmarks/results/2026-11-29-heap`).
//!
//! [`give_back_freed_memory`] makes all of them return what they hold. After [`give_back_in_background`] a thread does
//! that: an allocation then waits at most 0.15 ms for it, and 29 ms without the thread. [`bound_kept_memory`] bounds
//! what glibc keeps for C++ libraries. [`CountingHeap`] is for tests that show that something does not allocate.

mod blocks;
mod classes;
mod counting;
mod giving_back;
mod pages;
mod split;
mod system;

pub use counting::CountingHeap;
pub use giving_back::{give_back_freed_memory, give_back_in_background, hurry_giving_back};
pub use split::{LARGE_BYTES, SplitHeap};
pub use system::bound_kept_memory;
