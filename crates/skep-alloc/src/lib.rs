//! Memory of runs: intermediate tensors come from a *planned arena*, or from a plain heap.
//!
//! ```text
//! first run of a shape class      its Recording            planned by the caller      every later run
//!
//!  malloc 300 -> memory of        + 0: 300 bytes            0 -> offset 0              +--------+ <- an Arena's region
//!  malloc 200    this run alone   + 1: 200 bytes            1 -> offset 320            |   0, 2 |
//!  free   300                     - 0                       2 -> offset 0              +--------+
//!  malloc 250                     + 2: 250 bytes            RunPlan of 576 bytes       |     1  |
//!  free   200, 250                - 1  - 2                                             +--------+
//! ```
//!
//! A runtime whose allocator is [`malloc`] and [`free`] allocates in the same sequence in every run with inputs of the
//! same shapes. [`Arena::run`] with [`RunMode::Record`] writes that sequence down; the caller plans it and hands the
//! offsets to [`RunPlan::new`], and [`RunMode::Replay`] serves the n-th allocation of a run from the n-th planned
//! place. When a run deviates (another size, another count, a place whose planned predecessor is still in use), the
//! heap serves the rest of that run: [`RunReport::deviation`] says so. A deviation costs memory and time, never a wrong
//! value.
//!
//! # Safety of a replay
//!
//! Two live blocks never share a byte, whatever the runtime does: a [`RunPlan`] knows for each block which blocks were
//! the last before it on any of its bytes, and [`Arena`] hands a place out only once these are free. (Older ones were
//! free before those were handed out.) A block that is still live when its run ends, which no plan foresees, keeps its
//! whole region alive, and the arena takes another one; [`free`] finds the region of a block by its address, on any
//! thread.
//!
//! # Allocators by name
//!
//! Instead, an instance may have an allocator of its own: one of `skep_layout::allocator`, or of a library
//! ([`plugin`]). An [`AllocatorFactory`] makes it, [`RunAllocator`] puts it over memory of the system, and
//! [`RunMode::Allocator`] serves a run from it. [`sources`] has what allocators can get memory from.
//!
//! # Loads
//!
//! [`load`] does the same for what a runtime allocates while it loads a model: large blocks are recorded once and kept
//! by the caller, and later loads are served with what was kept.
//!
//! # Threads
//!
//! A run belongs to one thread, which takes its arena out of a [`ArenaPool`] and puts it back: as many arenas as runs
//! are in flight at once serve all instances of all models. Allocations of other threads, such as a runtime's own pool,
//! find no run and come from the heap.

mod arena;
mod factory;
mod heap;
mod load;
mod planned;
pub mod plugin;
mod pool;
mod region;
mod scope;
mod served;
pub mod sources;

pub use arena::{Arena, RunMode, RunReport};
pub use factory::{AllocatorFactory, InvalidAllocator, add_library, library_of};
pub use load::{LOADED_BYTES, LoadMode, LoadedBlock, LoadedBlocks, load};
pub use planned::{PlannedRuns, RunFailure, RunMemory, RunPlanner, RunPlans, ShapeClass};
pub use pool::{ArenaNeed, ArenaPool};
pub use region::reserved_bytes;
pub use scope::{free, malloc};
pub use served::{IDLE, RunAllocator, allocator_bytes};
pub use skep_layout::{ALIGNMENT, BlockEvent, InvalidRunPlan, RecordedBlock, Recording, RunPlan};

/// This many bytes behind every block can be read, whatever they hold: kernels for quantized matrices read up to 30
/// bytes past the end of a tensor (ONNX Runtime's `MLAS_SYMM_QGEMM_BUF_OVERRUN`, on ARM64).
const OVERRUN: u64 = 64;
