//! Tensors over shared bytes.
//!
//! A [`Tensor`] is a datatype, a shape and a reference-counted slice of bytes, so that the body of a request, a mapped
//! file and a part of a batch's output are the same type and are never copied. [`AlignedBuffer`] is memory that Skep
//! owns and fills: the inputs of a batch are gathered into one, and a backend writes the output of a batch into
//! another, which is then frozen and split into one view per request. [`SharedMemory`] is memory that another process
//! maps as well, from which buffers are made. A [`Charge`] counts what a request holds against the node's
//! [`MemoryBudget`], a [`RunCharge`] what one run takes.
//!
//! Elements lie in row-major order, little-endian. `BYTES` tensors hold the protocol's encoding: for each element its
//! length (u32, little-endian) and then its bytes.

mod batch;
mod budget;
mod buffer;
mod run_charge;
mod shared;
mod strings;
mod tensor;

pub use batch::{gather, split};
pub use budget::{Charge, MemoryBudget, OverBudget};
pub use buffer::{ALIGNMENT, AlignedBuffer};
pub use run_charge::{Limit, RunBound, RunCharge, RunRefused};
pub use shared::{SharedMemory, SharedParts, map_shared};
pub use strings::{StringElements, encode_strings};
pub use tensor::{Tensor, TensorError, TensorView};
