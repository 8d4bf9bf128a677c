//! The heap of a server process.
//!
//! A server allocates in two ways. Requests take small blocks, get them on one thread and free them on another, tens of
//! thousands of times a second. Models take large ones, at loading, and free them at unloading. One allocator does not
//! serve both:
//!
//! | | small blocks across threads | large blocks |
//! |---|---|---|
//! | glibc's | takes locks | one arena: a lock for all threads; several: memory that never comes back |
//! | mimalloc | 2 to 3 us less of CPU a request | keeps them: after 1,000 loads of a 100 MB model 1.7 GB |
//!
//! So [`SplitHeap`] goes by size: below [`LARGE_BYTES`] mimalloc; up to 32 MiB blocks of Skep's own, kept by size for
//! whoever needs one within a second; above that the kernel's, through glibc. Measured on two threads, a pair of an
//! allocation and a free of 32 KiB to 4 MiB takes 38 ns of CPU time, 150 ns with glibc's one arena, 140 with several,
//! and 1,000 with mimalloc from 256 KiB on (`benchmarks/results/2026-11-29-heap`).
//!
//! [`give_back_freed_memory`] makes all of them return what they hold, where [`give_back_in_background`] was called on
//! a thread of its own: with it an allocation waits for 0.15 ms at most, where it waited for 29. [`bound_kept_memory`]
//! bounds what glibc's keeps by itself, for C++ libraries. [`CountingHeap`] is for tests that show that something
//! allocates nothing.

mod blocks;
mod classes;
mod counting;
mod giving_back;
mod pages;
mod split;
mod system;

pub use counting::CountingHeap;
pub use giving_back::{give_back_freed_memory, give_back_in_background};
pub use split::{LARGE_BYTES, SplitHeap};
pub use system::bound_kept_memory;
