//! Sources of real memory for the allocators of `skep_layout::allocator`.
//!
//! | source | chunks | addresses and pages |
//! |---|---|---|
//! | [`MappedSource`] | `mmap`, `munmap` | `mmap`, `mprotect`, `madvise` |
//! | [`HeapSource`] | the process's global allocator | as above, since a heap has neither |
//! | [`CudaSource`] | `cuMemAlloc`, `cuMemFree` | `cuMemAddressReserve`, `cuMemMap` |
//!
//! Each gives back what it still holds when it is dropped.

mod cuda;
mod heap;
mod lines;
mod mapped;

pub use cuda::{CudaError, CudaSource};
pub use heap::HeapSource;
pub use mapped::MappedSource;
