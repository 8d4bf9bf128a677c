//! Restricts the system calls of a worker process to a list (seccomp).
//!
//! Two filters are applied in turn, each permanent and for all threads. While the model loads, it can read files and
//! start threads; once it runs, it cannot open files. Any other call fails with `EPERM`. So at no time can a worker
//! start programs or processes, use sockets, write to files, reach other processes' memory, signal them, or use mounts,
//! namespaces, keys, kernel modules, BPF, io_uring, or looser limits.

use std::{collections::BTreeMap, env::consts::ARCH, io};

use libc::{c_int, c_long};
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

/// The stage of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FilterStage {
    /// It bakes a model, and writes files.
    Baking,
    /// It opens its library and its model.
    Loading,
    /// It runs batches.
    Running,
}

/// What a running model needs: memory, threads, time, its connection and its log.
const RUNNING: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_get_mempolicy,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
];

/// What loading needs in addition: reading files, memory for the tensor store, placing threads, the second filter.
const LOADING: &[c_long] = &[
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getuid,
    libc::SYS_mbind,
    libc::SYS_memfd_create,
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    libc::SYS_sched_setaffinity,
    libc::SYS_seccomp,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_statfs,
    libc::SYS_statx,
];

/// What baking needs in addition: writing, renaming and removing files.
const BAKING: &[c_long] = &[
    libc::SYS_copy_file_range,
    libc::SYS_fchmod,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_openat,
    libc::SYS_pwrite64,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

/// Older forms of the same calls, which some architectures lack.
#[cfg(target_arch = "x86_64")]
const RUNNING_OLD: &[c_long] = &[libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const RUNNING_OLD: &[c_long] = &[];

#[cfg(target_arch = "x86_64")]
const LOADING_OLD: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_stat,
];
#[cfg(not(target_arch = "x86_64"))]
const LOADING_OLD: &[c_long] = &[];

#[cfg(target_arch = "x86_64")]
const BAKING_OLD: &[c_long] = &[
    libc::SYS_chmod,
    libc::SYS_link,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const BAKING_OLD: &[c_long] = &[];

/// Commands of `fcntl` that affect the descriptor alone, and no other process.
const DESCRIPTOR: [c_int; 7] = [
    libc::F_ADD_SEALS,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GET_SEALS,
];

/// Options of `prctl` that name a thread, make its timers exact, and name memory.
const HARMLESS: [c_int; 3] = [libc::PR_SET_NAME, libc::PR_SET_TIMERSLACK, libc::PR_SET_VMA];

/// Queries and requests for large register states: ARCH_GET_XCOMP_SUPP, ARCH_GET_XCOMP_PERM, ARCH_REQ_XCOMP_PERM.
#[cfg(target_arch = "x86_64")]
const TILES: [c_int; 3] = [0x1021, 0x1022, 0x1023];

/// Applies a stage's filters to the whole process.
///
/// # Errors
/// If the kernel has no such filters, or the list does not cover the architecture.
pub(super) fn restrict(stage: FilterStage) -> io::Result<()> {
    for program in programs(stage)? {
        apply_filter_all_threads(&program).map_err(failed)?;
    }
    Ok(())
}

/// A stage's filters, compiled.
fn programs(stage: FilterStage) -> io::Result<Vec<BpfProgram>> {
    let mut programs = Vec::new();
    let arch = TargetArch::try_from(ARCH).map_err(|error| failed(error.into()))?;
    if stage != FilterStage::Running {
        // Its arguments lie in memory, which a filter cannot read. Without `clone3`, glibc uses `clone`.
        let hidden = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        let missing = SeccompAction::Errno(errno(libc::ENOSYS));
        let filter = SeccompFilter::new(hidden, SeccompAction::Allow, missing, arch);
        programs.push(compiled(filter)?);
    }
    let rules = rules(stage).map_err(|error| failed(error.into()))?;
    let refused = SeccompAction::Errno(errno(libc::EPERM));
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, arch);
    programs.push(compiled(filter)?);
    Ok(programs)
}

fn compiled(filter: Result<SeccompFilter, seccompiler::BackendError>) -> io::Result<BpfProgram> {
    let program = filter.and_then(TryInto::try_into);
    program.map_err(|error| failed(error.into()))
}

fn failed(error: Error) -> io::Error {
    io::Error::other(format!("cannot restrict system calls: {error}"))
}

fn errno(number: c_int) -> u32 {
    number.unsigned_abs()
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn rules(stage: FilterStage) -> Result<Rules, seccompiler::BackendError> {
    let always = RUNNING.iter().chain(RUNNING_OLD);
    let mut rules: Rules = always.map(|&call| (call, Vec::new())).collect();
    // The other filter decides.
    rules.insert(libc::SYS_clone3, Vec::new());
    let own = c_int::try_from(std::process::id()).unwrap_or(-1);
    let thread = SeccompCmpOp::MaskedEq(bits(libc::CLONE_THREAD));
    rules.insert(
        libc::SYS_clone,
        vec![rule(&[(0, thread, libc::CLONE_THREAD)])?],
    );
    // `abort` sends a signal to its own thread.
    rules.insert(libc::SYS_tgkill, vec![rule(&[(0, SeccompCmpOp::Eq, own)])?]);
    let reads_own_limit = [(0, SeccompCmpOp::Eq, 0), (2, SeccompCmpOp::Eq, 0)];
    rules.insert(libc::SYS_prlimit64, vec![rule(&reads_own_limit)?]);
    rules.insert(libc::SYS_fcntl, one_of(1, &DESCRIPTOR)?);
    rules.insert(libc::SYS_prctl, one_of(0, &HARMLESS)?);
    if stage != FilterStage::Running {
        let files = LOADING.iter().chain(LOADING_OLD);
        rules.extend(files.map(|&call| (call, Vec::new())));
        let write = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
        let reads = SeccompCmpOp::MaskedEq(bits(write));
        rules.insert(
            libc::SYS_openat,
            vec![rule(&[(2, reads.clone(), libc::O_RDONLY)])?],
        );
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_open, vec![rule(&[(1, reads, libc::O_RDONLY)])?]);
        // Tiles (AMX): the library must choose the same kernels in a worker as in the server.
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_arch_prctl, one_of(0, &TILES)?);
        // The time-outs of the connection to the tensor store.
        let timeout = |option| {
            rule(&[
                (1, SeccompCmpOp::Eq, libc::SOL_SOCKET),
                (2, SeccompCmpOp::Eq, option),
            ])
        };
        let timeouts = vec![timeout(libc::SO_RCVTIMEO)?, timeout(libc::SO_SNDTIMEO)?];
        rules.insert(libc::SYS_setsockopt, timeouts);
        // `max_run_memory`, which is set after the load.
        let limits = rules.entry(libc::SYS_prlimit64).or_default();
        let data = c_int::try_from(libc::RLIMIT_DATA).unwrap_or(-1);
        limits.push(rule(&[
            (0, SeccompCmpOp::Eq, 0),
            (1, SeccompCmpOp::Eq, data),
        ])?);
        // The second filter sets it again.
        let last = rules.entry(libc::SYS_prctl).or_default();
        last.push(rule(&[(0, SeccompCmpOp::Eq, libc::PR_SET_NO_NEW_PRIVS)])?);
    }
    if stage == FilterStage::Baking {
        let files = BAKING.iter().chain(BAKING_OLD);
        rules.extend(files.map(|&call| (call, Vec::new())));
    }
    Ok(rules)
}

/// Matches all of these arguments (position, comparison, value). Compares the lower halves, which is what the kernel
/// reads of 32-bit numbers; a pointer is compared with null in full.
fn rule(
    conditions: &[(u8, SeccompCmpOp, c_int)],
) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = conditions.iter().map(|(argument, operator, value)| {
        let length = match value {
            0 if *operator == SeccompCmpOp::Eq => SeccompCmpArgLen::Qword,
            _ => SeccompCmpArgLen::Dword,
        };
        SeccompCondition::new(*argument, length, operator.clone(), bits(*value))
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// Matches one argument with any of these values.
fn one_of(argument: u8, values: &[c_int]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let equal = |&value: &c_int| rule(&[(argument, SeccompCmpOp::Eq, value)]);
    values.iter().map(equal).collect()
}

/// A 32-bit number as a filter sees it.
fn bits(value: c_int) -> u64 {
    u64::from(value.cast_unsigned())
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
