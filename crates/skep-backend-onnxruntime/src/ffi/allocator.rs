//! The allocator that sessions with their own memory of runs take their tensors from: [`skep_alloc`]'s, behind the
//! library's table of functions.
//!
//! The library writes through whatever an allocator of somebody else gives it, a null pointer included; only its own
//! allocator is known to fail by an exception, which ends the run with an error. So where there is no memory, or a run may
//! not take more, the library's own allocator is asked for more than any machine has: the exception that it throws passes
//! through the frames here, which own nothing.

use std::{
    ffi::c_void,
    ptr::{self, NonNull},
};

use ort_sys::{ORT_API_VERSION, OrtAllocator, OrtApi, OrtEnv, OrtMemoryInfo};

use super::{ApiError, check};

/// The table, and behind it what the functions need; the library passes a pointer to the table.
#[repr(C)]
struct RunAllocator {
    table: OrtAllocator,
    memory: NonNull<OrtMemoryInfo>,
    /// The library's own, which throws where it has no memory.
    own: NonNull<OrtAllocator>,
}

/// No address space holds it.
const IMPOSSIBLE_BYTES: usize = 1 << 62;

/// A function of the table that may throw: the table's types do not say so.
type AllocFunction = unsafe extern "C-unwind" fn(*mut OrtAllocator, usize) -> *mut c_void;
type ReserveFunction = unsafe extern "C-unwind" fn(*const OrtAllocator, usize) -> *mut c_void;

/// Makes the process's allocator known to the environment, for sessions that ask for the environment's.
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
    // SAFETY: the types differ in nothing but in what they say of exceptions, which the library, their only caller,
    // expects of its own allocators; on the machines that the library exists for, its convention is C's.
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
    // Once a process, and used until it ends.
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

/// What a session asks for once, such as its weights: never part of a run.
unsafe extern "C-unwind" fn reserve(this: *const OrtAllocator, size: usize) -> *mut c_void {
    // SAFETY: as in `malloc`.
    unsafe { malloc(this.cast_mut(), size) }
}

/// Ends the library's call with the exception that it has for a lack of memory. Nothing in this frame, or in those of its
/// callers here, has to be dropped.
///
/// # Safety
/// `this` is the pointer to the table of an [`RunAllocator`].
#[cold]
unsafe fn fail(this: *mut OrtAllocator) -> *mut c_void {
    // SAFETY: the table is the first field of an `RunAllocator`, which lives for ever, and so does the library's own.
    let own = unsafe { (*this.cast::<RunAllocator>()).own.as_ptr() };
    // SAFETY: as above.
    let Some(alloc) = (unsafe { (*own).Alloc }) else {
        return ptr::null_mut();
    };
    // SAFETY: the types differ in what they say of exceptions alone; this one says the truth.
    unsafe {
        let alloc = std::mem::transmute::<
            unsafe extern "system" fn(*mut OrtAllocator, usize) -> *mut c_void,
            AllocFunction,
        >(alloc);
        alloc(own, IMPOSSIBLE_BYTES)
    }
}

unsafe extern "system" fn free(_: *mut OrtAllocator, block: *mut c_void) {
    // SAFETY: the library frees what it got from the functions above, once.
    unsafe { skep_alloc::free(block.cast()) };
}

unsafe extern "system" fn info(this: *const OrtAllocator) -> *const OrtMemoryInfo {
    if this.is_null() {
        return ptr::null();
    }
    // SAFETY: the library passes the pointer that it was given: that of an `RunAllocator`, whose first field the table is.
    unsafe { (*this.cast::<RunAllocator>()).memory.as_ptr().cast_const() }
}
