//! Rules of allocators: where the next block lies, what they ask of their source, what they give back. No memory.
//!
//! ```text
//!  user                        layout                           source (heap, mmap, a trace's imagined memory)
//!
//!  malloc 300  ------------->  Grow(64 MiB)   ------------->    maps 64 MiB
//!                              add_chunk(64 MiB) = chunk 0 <--
//!  malloc 300  ------------->  At(chunk 0, offset 0)
//!  free (0, 0) ------------->  300 bytes; pages to release
//! ```
//!
//! A [`BlockLayout`] decides in offsets within numbered *chunks*. `skep-alloc` carries its decisions out over real
//! memory; a trace can be replayed through the same object without any. [`BestFit`] grows by chunks and places blocks
//! wherever they fit; [`Replay`] follows a [`RunPlan`] made from a [`Recording`].
//!
//! [`allocator`] has the allocators of other systems, the classic ones and Skep's own, which may also give chunks back,
//! under one trait: they replay traces in a laboratory and can serve a runtime.

pub mod allocator;
mod best_fit;
#[cfg(test)]
mod conformance;
mod layout;
mod plan;
mod planning;
mod recording;
mod replay;

pub use best_fit::BestFit;
pub use layout::{BlockLayout, BlockPlace, FreedBlock, Placement};
pub use plan::{InvalidRunPlan, RunPlan};
pub use planning::{plan_recording, recorded_buffer};
pub use recording::{BlockEvent, RecordedBlock, Recorder, Recording};
pub use replay::Replay;

/// The alignment of every block: a cache line, and the widest vector register.
pub const ALIGNMENT: u64 = 64;
