//! What a worker process does before anything else.
#![allow(
    unsafe_code,
    reason = "closing descriptors by their numbers ends whatever owns them, and priorities are system calls that nothing else makes (invariant 5)"
)]

use std::{fs, io, ptr};

use rustix::{
    process::{
        Resource, Rlimit, Signal, set_parent_process_death_signal, setpriority_process, setrlimit,
    },
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

/// The lowest priority that the first of the kernel's schedulers knows.
const NICEST: i32 = 19;

/// `IOPRIO_WHO_PROCESS`, and `IOPRIO_CLASS_IDLE` in its place.
const PROCESS: libc::c_long = 1;
const IDLE: libc::c_long = 3 << 13;

/// The kernel ends the process with the highest one first when memory is short.
const OOM_SCORE: &str = "1000";

/// Takes the processor and the disk only while nobody else wants them, and goes first where memory is short. What takes more
/// than `seconds` of the processor is ended.
///
/// # Errors
/// When the kernel does not take the limit. That a priority cannot be changed costs others some time, and is no error.
pub(super) fn let_others_go_first(seconds: u64) -> io::Result<()> {
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let _ = setpriority_process(None, NICEST);
    let idle = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads a structure of the kind that it is told; 0 is this thread, the only one so far, and those that
    // it starts inherit it.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, ptr::from_ref(&idle)) };
    // SAFETY: the kernel looks at no memory.
    unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0 as libc::c_long, IDLE) };
    let limit = Rlimit {
        current: Some(seconds),
        maximum: Some(seconds),
    };
    Ok(setrlimit(Resource::Cpu, limit)?)
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
