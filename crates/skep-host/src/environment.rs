//! Environment variables that libraries read, set before they are opened.
#![allow(
    unsafe_code,
    reason = "the environment has no lock that C libraries share (invariant 5)"
)]

use std::{env, fs};

/// Sets an environment variable of this process, for libraries that are opened later. Call it first in `main`.
///
/// Returns whether it set the variable. It does not if the process has other threads, or if `/proc` does not tell: a
/// thread may read the environment at the same time, inside a C library that takes no lock.
#[must_use]
pub fn set_variable_before_threads(name: &str, value: &str) -> bool {
    let threads = fs::read_dir("/proc/self/task").map(Iterator::count);
    if !matches!(threads, Ok(1)) {
        return false;
    }
    // SAFETY: the calling thread is the only one, so no other reads or writes the environment meanwhile.
    unsafe { env::set_var(name, value) };
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_other_threads_keeps_its_environment() {
        // The harness runs each test on its own thread.
        assert!(!set_variable_before_threads("SKEP_HOST_TEST", "1"));
        assert!(env::var_os("SKEP_HOST_TEST").is_none());
    }
}
