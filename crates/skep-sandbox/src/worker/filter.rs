//! What a worker process may ask of the kernel: a list, and nothing else.
//!
//! Two filters lie over each other, each for all threads and for good: while the model loads, files can be read and
//! threads started; when it runs, no file can be opened any more. What is not on the list fails with `EPERM`. So
//! nothing of this works at any time: starting programs or processes, sockets, writing to files, other processes'
//! memory, signals to them, mounts, namespaces, keys, kernel modules, BPF, io_uring, or looser limits.

use std::{collections::BTreeMap, env::consts::ARCH, io};

use libc::{c_int, c_long};
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

/// How far a worker has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FilterStage {
    /// It is there to bake a model, and writes files.
    Baking,
    /// It opens its library and its model.
    Loading,
    /// It runs batches.
    Running,
}

/// What a running model asks for: memory, threads, time, its one conversation and its log.
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

/// What loading asks for beyond that: looking at files, memory for the tensor store, placing threads, its second
/// filter.
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

/// What baking asks for beyond that: writing, naming and removing files.
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

/// Older forms of the same, which not every processor's Linux has.
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

/// Commands of `fcntl` that concern the descriptor alone: none names another process.
const DESCRIPTOR: [c_int; 7] = [
    libc::F_ADD_SEALS,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GET_SEALS,
];

/// Names a thread, makes its timers exact, names memory.
const HARMLESS: [c_int; 3] = [libc::PR_SET_NAME, libc::PR_SET_TIMERSLACK, libc::PR_SET_VMA];

/// What is asked about large register states, and for them: ARCH_GET_XCOMP_SUPP, ARCH_GET_XCOMP_PERM,
/// ARCH_REQ_XCOMP_PERM.
#[cfg(target_arch = "x86_64")]
const TILES: [c_int; 3] = [0x1021, 0x1022, 0x1023];

/// Puts a stage's filter over the whole process.
///
/// # Errors
/// When the kernel has no such filters, or the processor is one that the list is not made for.
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
        // Its arguments lie in memory, where no filter can see them: glibc takes `clone` where there is no `clone3`.
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
    // Decided by the other filter.
    rules.insert(libc::SYS_clone3, Vec::new());
    let own = c_int::try_from(std::process::id()).unwrap_or(-1);
    let thread = SeccompCmpOp::MaskedEq(bits(libc::CLONE_THREAD));
    rules.insert(
        libc::SYS_clone,
        vec![rule(&[(0, thread, libc::CLONE_THREAD)])?],
    );
    // `abort` sends a signal to the thread that it is called on.
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
        // Tiles (AMX): a worker's kernels must be those that the same library chooses in the server.
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_arch_prctl, one_of(0, &TILES)?);
        // How long the tensor store may take to hear and to answer.
        let timeout = |option| {
            rule(&[
                (1, SeccompCmpOp::Eq, libc::SOL_SOCKET),
                (2, SeccompCmpOp::Eq, option),
            ])
        };
        let timeouts = vec![timeout(libc::SO_RCVTIMEO)?, timeout(libc::SO_SNDTIMEO)?];
        rules.insert(libc::SYS_setsockopt, timeouts);
        // `max_run_memory`, once what was loaded is known.
        let limits = rules.entry(libc::SYS_prlimit64).or_default();
        let data = c_int::try_from(libc::RLIMIT_DATA).unwrap_or(-1);
        limits.push(rule(&[
            (0, SeccompCmpOp::Eq, 0),
            (1, SeccompCmpOp::Eq, data),
        ])?);
        // Said again by the second filter.
        let last = rules.entry(libc::SYS_prctl).or_default();
        last.push(rule(&[(0, SeccompCmpOp::Eq, libc::PR_SET_NO_NEW_PRIVS)])?);
    }
    if stage == FilterStage::Baking {
        let files = BAKING.iter().chain(BAKING_OLD);
        rules.extend(files.map(|&call| (call, Vec::new())));
    }
    Ok(rules)
}

/// All of these arguments (position, comparison, value); only their lower halves, which is what the kernel looks at in
/// numbers of 32 bits. A pointer that is compared with null is compared whole.
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

/// One argument has one of these values.
fn one_of(argument: u8, values: &[c_int]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let equal = |&value: &c_int| rule(&[(argument, SeccompCmpOp::Eq, value)]);
    values.iter().map(equal).collect()
}

/// A number of 32 bits as a filter sees it.
fn bits(value: c_int) -> u64 {
    u64::from(value.cast_unsigned())
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
