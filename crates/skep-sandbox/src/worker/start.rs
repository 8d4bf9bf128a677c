//! The first steps of a worker process.
#![allow(
    unsafe_code,
    reason = "closing descriptors by number ignores their owners, and some system calls for priorities and signals have no safe interface (invariant 5)"
)]

use std::{fs, io, ptr};

use rustix::{
    process::{
        Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setpriority_process,
        setrlimit,
    },
    thread::set_no_new_privs,
};

/// Makes the kernel kill a worker before the server when memory is short: as if the worker used half of all memory in
/// addition to its own. Between 0 and 1000 (`oom_score_adj`).
const SOONER: i32 = 500;
const SOONEST: i32 = 1000;

/// Memory that an instance takes after loading in addition to its runs: stacks of threads, the heap's own.
const HEAD_ROOM_BYTES: u64 = 256 << 20;

/// The first descriptor behind the standard ones.
const FIRST_OTHER: u32 = 3;

/// Signals that a server handles without ending. Sent to all processes of its name, they reach workers as well, which
/// ignore them.
const IGNORED: [libc::c_int; 4] = [libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// Makes the process end with the server, gain no rights through anything that it might start, and lose every
/// descriptor that the server's parent left open. Call this first.
///
/// # Errors
/// If the kernel refuses. The process must not load a model then.
pub(super) fn confine() -> io::Result<()> {
    // If the server has ended already, the first read reports a closed connection.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    set_no_new_privs(true)?;
    for signal in IGNORED {
        // SAFETY: no handler is installed, and the process has no other thread yet.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: the process has just started and has opened nothing but its standard descriptors, so no other one has an
    // owner.
    let closed = unsafe { libc::close_range(FIRST_OTHER, u32::MAX, 0) };
    if closed == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Leaves no core dump, and lets the kernel kill this process first when memory is short: it can be started again, the
/// server cannot.
pub(super) fn go_first() {
    // If the system refuses either, or hides `/proc`, the process is as safe as before.
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

/// Limits this process to `bytes`, and some head room, in addition to the memory that it has. A library that needs more
/// ends this process, and no other.
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
        tracing::warn!("cannot limit the process to `max_run_memory`: {error}");
    }
}

/// The memory that counts towards the limit. Source: proc(5), `/proc/pid/status`.
fn data_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmData:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// The lowest priority of the default scheduler.
const NICEST: i32 = 19;

/// `IOPRIO_WHO_PROCESS`, and `IOPRIO_CLASS_IDLE` shifted into place.
const PROCESS: libc::c_long = 1;
const IDLE: libc::c_long = 3 << 13;

/// The kernel kills the process with the highest score first when memory is short.
const OOM_SCORE: &str = "1000";

/// Uses the processor and the disk only while they are idle, and is killed first when memory is short. The kernel also
/// kills it after `seconds` of CPU time.
///
/// # Errors
/// If the kernel refuses the limit. A priority that cannot be changed only costs other processes some time.
pub(super) fn let_others_go_first(seconds: u64) -> io::Result<()> {
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let _ = setpriority_process(None, NICEST);
    let idle = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads a structure of the kind that it is told; 0 is this thread, the only one so far, and
    // those that it starts inherit it.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, ptr::from_ref(&idle)) };
    // SAFETY: the kernel reads no memory.
    unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0 as libc::c_long, IDLE) };
    let limit = Rlimit {
        current: Some(seconds),
        maximum: Some(seconds),
    };
    Ok(setrlimit(Resource::Cpu, limit)?)
}

/// Checks that this is the only thread, so that all later ones inherit its restrictions.
///
/// # Errors
/// If there is another thread.
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
    fn the_data_size_of_a_process_is_read() {
        let status = "Name:\tskep\nVmPeak:\t  1 kB\nVmData:\t    2048 kB\n";
        assert_eq!(data_bytes(status), Some(2 << 20));
        assert_eq!(data_bytes("VmData: much"), None);
        assert_eq!(data_bytes(""), None);
    }
}
