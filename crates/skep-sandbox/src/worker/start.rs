//! What a worker process does before anything else.
#![allow(
    unsafe_code,
    reason = "closing descriptors by their numbers ends whatever owns them, and priorities and signals are system calls that nothing else makes (invariant 5)"
)]

use std::{fs, io, ptr};

use rustix::{
    process::{
        Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setpriority_process,
        setrlimit,
    },
    thread::set_no_new_privs,
};

/// How much sooner than the server the kernel ends a worker when memory is short: as if it had half of all memory
/// beside its own. Between 0 and 1000 (`oom_score_adj`).
const SOONER: i32 = 500;
const SOONEST: i32 = 1000;

/// Memory beside that of runs which an instance takes after it was loaded: stacks of threads, the heap's own.
const HEAD_ROOM_BYTES: u64 = 256 << 20;

/// The first descriptor that is none of the standard ones.
const FIRST_OTHER: u32 = 3;

/// Signals that a server handles without ending. Sent to every process by name, they reach workers too, which ignore
/// them.
const IGNORED: [libc::c_int; 4] = [libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// Ends with the server, gains no rights by anything it might start, and has no descriptor that the server's own parent
/// left open. The first call of a process.
///
/// # Errors
/// When the kernel refuses: the process then must not load a model.
pub(super) fn confine() -> io::Result<()> {
    // A server that ended before this closed the conversation: the first read says so.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    set_no_new_privs(true)?;
    for signal in IGNORED {
        // SAFETY: no handler is installed, and the process has no other thread yet.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: the process has just begun and opened nothing but its standard descriptors, so that nobody owns another.
    let closed = unsafe { libc::close_range(FIRST_OTHER, u32::MAX, 0) };
    if closed == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Leaves no image of its memory when it dies, and is the first to die where memory is short: it can be started again,
/// the server cannot.
pub(super) fn go_first() {
    // A system that refuses either, or hides `/proc`, is no less safe than before.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, none);
    let path = "/proc/self/oom_score_adj";
    let own = fs::read_to_string(path).ok();
    if let Some(own) = own.and_then(|text| text.trim().parse::<i32>().ok()) {
        let _ = fs::write(path, own.saturating_add(SOONER).min(SOONEST).to_string());
    }
}

/// From now on this process gets no more than `bytes`, and some head room, beside the memory that it has: a library
/// that cannot do without more ends this process, not others.
pub(super) fn bound_memory(bytes: u64) {
    let Some(own) = fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| data_bytes(&status))
    else {
        return;
    };
    let limit = own.saturating_add(bytes).saturating_add(HEAD_ROOM_BYTES);
    let maximum = getrlimit(Resource::Data).maximum;
    let limit = maximum.map_or(limit, |maximum| maximum.min(limit));
    let bounded = Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    if let Err(error) = setrlimit(Resource::Data, bounded) {
        tracing::warn!("`max_run_memory` does not bound the process: {error}");
    }
}

/// What counts towards the limit. Source: proc(5), `/proc/pid/status`.
fn data_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmData:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// The lowest priority that the first of the kernel's schedulers knows.
const NICEST: i32 = 19;

/// `IOPRIO_WHO_PROCESS`, and `IOPRIO_CLASS_IDLE` in its place.
const PROCESS: libc::c_long = 1;
const IDLE: libc::c_long = 3 << 13;

/// The kernel ends the process with the highest one first when memory is short.
const OOM_SCORE: &str = "1000";

/// Takes the processor and the disk only while nobody else wants them, and goes first where memory is short. What takes
/// more than `seconds` of the processor is ended.
///
/// # Errors
/// When the kernel does not take the limit. That a priority cannot be changed costs others some time, and is no error.
pub(super) fn let_others_go_first(seconds: u64) -> io::Result<()> {
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let _ = setpriority_process(None, NICEST);
    let idle = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads a structure of the kind that it is told; 0 is this thread, the only one so far, and
    // those that it starts inherit it.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_of_a_process_is_read() {
        let status = "Name:\tskep\nVmPeak:\t  1 kB\nVmData:\t    2048 kB\n";
        assert_eq!(data_bytes(status), Some(2 << 20));
        assert_eq!(data_bytes("VmData: much"), None);
        assert_eq!(data_bytes(""), None);
    }
}
