//! The end of the process without anybody else's say.
#![allow(
    unsafe_code,
    reason = "the standard library only ends a process after its exit handlers (invariant 5)"
)]

/// Ends the process at once with an exit code. No handler runs, no thread is waited for: native libraries whose threads
/// still work would have their globals destroyed under them, which ends in a crash or never.
pub fn end_process(code: u8) -> ! {
    // SAFETY: `_exit` may be called from any thread at any time.
    unsafe { libc::_exit(i32::from(code)) }
}
