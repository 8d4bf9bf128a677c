//! Blocks of a host, used as a program would use them.
#![allow(
    unsafe_code,
    reason = "an allocator is made of raw memory (invariant 5)"
)]

use std::{hint::black_box, ops::Range, ptr};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Writes to each cache line of a block.
///
/// # Safety
/// The block lies in memory that may be written, and that nobody else uses.
pub(super) unsafe fn write(block: Range<u64>) {
    for address in block.step_by(LINE) {
        // SAFETY: the caller promises it.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(address as usize).write_volatile(1) };
    }
}

/// Reads from each cache line of a block.
///
/// # Safety
/// The block lies in memory that may be read.
pub(super) unsafe fn read(block: Range<u64>) {
    for address in block.step_by(LINE) {
        // SAFETY: the caller promises it.
        black_box(unsafe { ptr::with_exposed_provenance::<u8>(address as usize).read_volatile() });
    }
}
