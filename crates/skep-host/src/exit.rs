//! Ends the process unconditionally.
#![allow(
    unsafe_code,
    reason = "the standard library only ends a process after its exit handlers (invariant 5)"
)]

/// Ends the process at once with an exit code, without exit handlers and without waiting for threads. Exit handlers
/// would destroy the globals of native libraries under their running threads, which crashes or hangs.
pub fn end_process(code: u8) -> ! {
    // SAFETY: `_exit` may be called from any thread at any time.
    unsafe { libc::_exit(i32::from(code)) }
}
