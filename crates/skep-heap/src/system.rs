//! Bounds what other allocators keep, and makes them give it back.
#![allow(
    unsafe_code,
    reason = "calls of allocators that have no safe interface (invariant 5)"
)]

/// Makes mimalloc give back what it holds of this thread and of ended ones.
pub(crate) fn collect_small() {
    // SAFETY: `mi_collect` may be called from any thread at any time.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// Makes glibc give back what it holds. Locks its arena meanwhile.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: glibc's `malloc_trim` may be called from any thread at any time.
        unsafe { malloc_trim(0) };
    }
}

/// Bounds what glibc's heap keeps. Call it once, at the start of the process.
///
/// By default glibc keeps, in each of its many arenas, up to twice the largest block that was ever freed: 40 MB after
/// some loads and unloads of a ResNet-50, and more after more of them. Only its first arena gives back the free memory
/// at its end ([`give_back_freed_memory`](crate::give_back_freed_memory)); the others keep up to a trim threshold each.
/// With one arena and these bounds it keeps a few megabytes. Its lock is rarely contended: blocks of the server come
/// from elsewhere, and those of C++ libraries stay in their threads' caches. Settings in the environment
/// (`MALLOC_ARENA_MAX`, `MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`) win.
pub fn bound_kept_memory() {
    #[cfg(target_env = "gnu")]
    {
        use std::ffi::c_int;

        /// Numbers of `<malloc.h>`.
        const M_TRIM_THRESHOLD: c_int = -1;
        const M_MMAP_THRESHOLD: c_int = -3;
        const M_ARENA_MAX: c_int = -8;
        /// What an arena may keep at its end: more than tensors of usual requests take, so that these do not fault
        /// their pages in every time.
        const KEPT_BYTES: c_int = 8 << 20;
        /// Larger blocks are mapped, and unmapped when they are freed. This is the largest value that glibc accepts,
        /// and the one that it would reach by itself.
        const MAPPED_BYTES: c_int = 32 << 20;

        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        let set = [
            "MALLOC_ARENA_MAX",
            "MALLOC_TRIM_THRESHOLD_",
            "MALLOC_MMAP_THRESHOLD_",
            "GLIBC_TUNABLES",
        ];
        if set.iter().any(|name| std::env::var_os(name).is_some()) {
            return;
        }
        // SAFETY: `mallopt` takes any numbers, and may be called from any thread at any time.
        unsafe {
            mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES);
            mallopt(M_TRIM_THRESHOLD, KEPT_BYTES);
            mallopt(M_ARENA_MAX, 1);
        }
    }
}
