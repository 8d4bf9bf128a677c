//! The allocator for sessions whose run memory Skep plans: [`skep_alloc`] in the library's table of functions.
//!
//! The library does not check a custom allocator's result: it writes through a null pointer, too. Only its own
//! allocator fails with an exception, which ends the run with an error. So if there is no memory, or a run may not
//! take more, this allocator asks the library's own for more than any machine has. The exception that this throws
//! passes through the frames here, which own nothing.

use std::{
    ffi::c_void,
    ptr::{self, NonNull},
};

use ort_sys::{ORT_API_VERSION, OrtAllocator, OrtApi, OrtEnv, OrtMemoryInfo};

use super::{ApiError, check};

/// The table, followed by what its functions need; the library passes a pointer to the table.
#[repr(C)]
struct RunAllocator {
    table: OrtAllocator,
    memory: NonNull<OrtMemoryInfo>,
    /// The library's own, which throws where it has no memory.
    own: NonNull<OrtAllocator>,
}

/// More than any address space has.
const IMPOSSIBLE_BYTES: usize = 1 << 62;

/// Functions of the table that may throw, which the table's types do not say.
type AllocFunction = unsafe extern "C-unwind" fn(*mut OrtAllocator, usize) -> *mut c_void;
type ReserveFunction = unsafe extern "C-unwind" fn(*const OrtAllocator, usize) -> *mut c_void;

/// Registers the allocator with the environment, for sessions that use the environment's allocators.
///
/// # Safety
/// `environment` is live, `memory` describes ordinary memory and is never released, and `own` is the library's default
/// allocator.
pub(super) unsafe fn register(
    api: &OrtApi,
    environment: *mut OrtEnv,
    memory: NonNull<OrtMemoryInfo>,
    own: NonNull<OrtAllocator>,
) -> Result<(), ApiError> {
    // SAFETY: an empty table is a valid value of it.
    let mut table = unsafe { OrtAllocator::default() };
    table.version = ORT_API_VERSION;
    // SAFETY: the types differ only in what they say about exceptions, which the library, their only caller, expects
    // of its own allocators; on the machines that the library supports, its calling convention is C's.
    unsafe {
        table.Alloc = Some(std::mem::transmute::<
            AllocFunction,
            unsafe extern "system" fn(*mut OrtAllocator, usize) -> *mut c_void,
        >(malloc));
        table.Reserve = Some(std::mem::transmute::<
            ReserveFunction,
            unsafe extern "system" fn(*const OrtAllocator, usize) -> *mut c_void,
        >(reserve));
    }
    table.Free = Some(free);
    table.Info = Some(info);
    // Registered once per process, and used until it ends.
    let allocator = Box::leak(Box::new(RunAllocator { table, memory, own }));
    // SAFETY: the environment is live; the allocator lives for ever, begins with the table, and its functions may be
    // called from any thread.
    let status = unsafe { (api.RegisterAllocator)(environment, &raw mut allocator.table) };
    check(api, status)
}

unsafe extern "C-unwind" fn malloc(this: *mut OrtAllocator, size: usize) -> *mut c_void {
    let block = skep_alloc::malloc(size);
    if block.is_null() && size > 0 {
        // SAFETY: the library passes the pointer that it was given.
        return unsafe { fail(this) };
    }
    block.cast()
}

/// Allocates what a session needs once, such as its weights; never part of a run.
unsafe extern "C-unwind" fn reserve(this: *const OrtAllocator, size: usize) -> *mut c_void {
    // SAFETY: as in `malloc`.
    unsafe { malloc(this.cast_mut(), size) }
}

/// Ends the library's call with its own exception for a lack of memory. Neither this frame nor its callers here have
/// anything to drop.
///
/// # Safety
/// `this` is the pointer to the table of a [`RunAllocator`].
#[cold]
unsafe fn fail(this: *mut OrtAllocator) -> *mut c_void {
    // SAFETY: the table is the first field of a `RunAllocator`, which lives for ever, and so does the library's own.
    let own = unsafe { (*this.cast::<RunAllocator>()).own.as_ptr() };
    // SAFETY: as above.
    let Some(alloc) = (unsafe { (*own).Alloc }) else {
        return ptr::null_mut();
    };
    // SAFETY: the types differ only in what they say about exceptions; this one is correct.
    unsafe {
        let alloc = std::mem::transmute::<
            unsafe extern "system" fn(*mut OrtAllocator, usize) -> *mut c_void,
            AllocFunction,
        >(alloc);
        alloc(own, IMPOSSIBLE_BYTES)
    }
}

unsafe extern "system" fn free(_: *mut OrtAllocator, block: *mut c_void) {
    // SAFETY: the library frees each block from the functions above once.
    unsafe { skep_alloc::free(block.cast()) };
}

unsafe extern "system" fn info(this: *const OrtAllocator) -> *const OrtMemoryInfo {
    if this.is_null() {
        return ptr::null();
    }
    // SAFETY: the library passes the pointer that it was given: that of a `RunAllocator`, whose first field the table
    // is.
    unsafe { (*this.cast::<RunAllocator>()).memory.as_ptr().cast_const() }
}
