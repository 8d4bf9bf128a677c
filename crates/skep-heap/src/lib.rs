//! The heap of a server process.
//!
//! A server allocates in two ways. Requests take small blocks, get them on one thread and free them on another, tens of
//! thousands of times a second. Models take large ones, at loading, and free them at unloading. One allocator does not
//! serve both:
//!
//! | | small blocks across threads | large blocks |
//! |---|---|---|
//! | glibc's | takes locks | maps them, and unmaps them when they are freed |
//! | mimalloc | 2 to 3 us less of CPU a request | keeps them: after 1,000 loads of a 100 MB model 1.7 GB |
//!
//! So [`SplitHeap`] goes by size: below [`LARGE_BYTES`] mimalloc, from there on glibc's. [`give_back_freed_memory`]
//! makes both return what they hold; [`bound_kept_memory`] bounds what glibc's keeps by itself. [`CountingHeap`] is for
//! tests that show that something allocates nothing.

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
