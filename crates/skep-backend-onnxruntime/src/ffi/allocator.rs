//! The allocator that sessions with their own memory of runs take their tensors from: [`skep_alloc`]'s, behind the
//! library's table of functions.

use std::{
    ffi::c_void,
    ptr::{self, NonNull},
};

use ort_sys::{ORT_API_VERSION, OrtAllocator, OrtApi, OrtEnv, OrtMemoryInfo};

use super::{ApiError, check};

/// The table, and behind it what the functions need; the library passes a pointer to the table.
#[repr(C)]
struct Allocator {
    table: OrtAllocator,
    memory: NonNull<OrtMemoryInfo>,
}

/// Makes the process's allocator known to the environment, for sessions that ask for the environment's.
///
/// # Safety
/// `environment` is live, and `memory` describes ordinary memory and is never released.
pub(super) unsafe fn register(
    api: &OrtApi,
    environment: *mut OrtEnv,
    memory: NonNull<OrtMemoryInfo>,
) -> Result<(), ApiError> {
    // SAFETY: an empty table is a valid value of it.
    let mut table = unsafe { OrtAllocator::default() };
    table.version = ORT_API_VERSION;
    table.Alloc = Some(malloc);
    table.Free = Some(free);
    table.Info = Some(info);
    table.Reserve = Some(reserve);
    // Once a process, and used until it ends.
    let allocator = Box::leak(Box::new(Allocator { table, memory }));
    // SAFETY: the environment is live; the allocator lives for ever, begins with the table, and its functions may be
    // called from any thread.
    let status = unsafe { (api.RegisterAllocator)(environment, &raw mut allocator.table) };
    check(api, status)
}

unsafe extern "system" fn malloc(_: *mut OrtAllocator, size: usize) -> *mut c_void {
    skep_alloc::malloc(size).cast()
}

/// What a session asks for once, such as its weights: never part of a run.
unsafe extern "system" fn reserve(_: *const OrtAllocator, size: usize) -> *mut c_void {
    skep_alloc::malloc(size).cast()
}

unsafe extern "system" fn free(_: *mut OrtAllocator, block: *mut c_void) {
    // SAFETY: the library frees what it got from the functions above, once.
    unsafe { skep_alloc::free(block.cast()) };
}

unsafe extern "system" fn info(this: *const OrtAllocator) -> *const OrtMemoryInfo {
    if this.is_null() {
        return ptr::null();
    }
    // SAFETY: the library passes the pointer that it was given: that of an `Allocator`, whose first field the table is.
    unsafe { (*this.cast::<Allocator>()).memory.as_ptr().cast_const() }
}
