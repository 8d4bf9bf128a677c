//! What a worker process does before anything else.
#![allow(
    unsafe_code,
    reason = "closing descriptors by their numbers ends whatever owns them (invariant 5)"
)]

use std::{fs, io};

use rustix::{
    process::{Signal, set_parent_process_death_signal},
    thread::set_no_new_privs,
};

/// The first descriptor that is none of the standard ones.
const FIRST_OTHER: u32 = 3;

/// Ends with the server, gains no rights by anything it might start, and has no descriptor that the server's own parent
/// left open. The first call of a process.
///
/// # Errors
/// When the kernel refuses: the process then must not load a model.
pub(super) fn confine() -> io::Result<()> {
    // A server that ended before this closed the conversation: the first read says so.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    set_no_new_privs(true)?;
    // SAFETY: the process has just begun and opened nothing but its standard descriptors, so that nobody owns another.
    let closed = unsafe { libc::close_range(FIRST_OTHER, u32::MAX, 0) };
    if closed == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes sure that what is decided for this thread is decided for all that there will be: they are started by it.
///
/// # Errors
/// When there is another one already.
pub(super) fn check_only_thread() -> io::Result<()> {
    match fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        threads => Err(io::Error::other(format!(
            "the process has {threads} threads before it has given up its rights, expected 1"
        ))),
    }
}
