//! Tries what a filter refuses, each time on a new thread, whose filter ends with it.
#![allow(unsafe_code, reason = "system calls by number have no safe interface")]

use std::{
    fs::File,
    io::{self, ErrorKind},
    net::UdpSocket,
    os::unix::net::UnixStream,
    process::Command,
    thread,
};

use libc::c_long;
use seccompiler::apply_filter;

use super::{FilterStage, programs};

/// Calls that a worker may never make. With arguments of zero none of them fails with `EPERM` for root, or does any
/// harm.
const NEVER: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bind,
    libc::SYS_bpf,
    libc::SYS_capset,
    libc::SYS_chroot,
    libc::SYS_connect,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fanotify_init,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_inotify_init1,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_ioctl,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_kill,
    libc::SYS_linkat,
    libc::SYS_listen,
    libc::SYS_mkdirat,
    libc::SYS_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pipe2,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_pwrite64,
    libc::SYS_reboot,
    libc::SYS_renameat2,
    libc::SYS_request_key,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sendto,
    libc::SYS_setns,
    libc::SYS_setpgid,
    libc::SYS_setpriority,
    libc::SYS_setrlimit,
    libc::SYS_shmget,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_swapon,
    libc::SYS_symlinkat,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    libc::SYS_umount2,
    libc::SYS_unlinkat,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Calls that a worker may make only while it loads; as above.
const BEFORE_RUNNING: &[c_long] = &[
    libc::SYS_ftruncate,
    libc::SYS_memfd_create,
    libc::SYS_newfstatat,
    libc::SYS_seccomp,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// Runs `body` on a thread under the filters of these stages.
fn under<T: Send>(stages: &[FilterStage], body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            for stage in stages {
                for program in programs(*stage).expect("filter") {
                    apply_filter(&program).expect("applied");
                }
            }
            body()
        });
        thread.join().expect("a thread that ends by itself")
    })
}

const STAGES: [&[FilterStage]; 2] = [
    &[FilterStage::Loading],
    &[FilterStage::Loading, FilterStage::Running],
];

fn refused<T>(outcome: io::Result<T>) -> bool {
    outcome.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

fn call(number: c_long, arguments: [usize; 3]) -> io::Result<c_long> {
    let [first, second, third] = arguments;
    // SAFETY: refused by the filter; without it, its null pointers are refused by the kernel.
    let result = unsafe { libc::syscall(number, first, second, third, 0, 0, 0) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[test]
fn calls_that_no_worker_needs_are_refused_at_every_stage() {
    for stages in STAGES {
        let done = under(stages, || not_refused(NEVER));
        assert!(done.is_empty(), "not refused at {stages:?}: {done:?}");
    }
    let done = under(STAGES[1], || not_refused(BEFORE_RUNNING));
    assert!(done.is_empty(), "not refused when it runs: {done:?}");
}

fn not_refused(calls: &[c_long]) -> Vec<c_long> {
    let calls = calls.iter().copied();
    calls
        .filter(|&number| !refused(call(number, [0; 3])))
        .collect()
}

#[test]
fn programs_sockets_and_writing_are_refused() {
    let file = std::env::temp_dir().join("skep-filter-test");
    let baking: &[FilterStage] = &[FilterStage::Baking];
    for stages in STAGES.into_iter().chain([baking]) {
        let others = under(stages, || {
            [
                refused(Command::new("/bin/true").spawn()),
                refused(UnixStream::connect("/nowhere")),
                refused(UdpSocket::bind("127.0.0.1:0")),
            ]
        });
        assert_eq!(others, [true; 3], "{stages:?}");
        // A process that bakes has to write.
        let written = under(stages, || File::create(&file).map(drop));
        assert_eq!(refused(written), stages != baking, "{stages:?}");
    }
    std::fs::remove_file(file).expect("the baking stage wrote it");
}

#[test]
fn files_can_be_opened_only_while_the_model_loads() {
    let open = || File::open("/proc/self/status").map(drop);
    assert!(under(&[FilterStage::Loading], open).is_ok());
    assert!(refused(under(
        &[FilterStage::Loading, FilterStage::Running],
        open
    )));
}

#[test]
fn arguments_are_checked_where_a_call_can_do_too_much() {
    let prlimit = |limits: usize| call(libc::SYS_prlimit64, [0, 7, limits]);
    let own =
        [libc::F_GETFD, libc::F_SETOWN].map(|command| usize::try_from(command).expect("command"));
    let fcntl = |command: usize| call(libc::SYS_fcntl, [0, command, 0]);
    let prctl = |option: i32| {
        call(
            libc::SYS_prctl,
            [usize::try_from(option).expect("option"), 1, 0],
        )
    };
    let process = usize::try_from(std::process::id()).expect("process");
    for stages in STAGES {
        under(stages, || {
            assert!(prlimit(0).is_ok());
            assert!(refused(prlimit(8)));
            assert!(!refused(fcntl(own[0])));
            assert!(refused(fcntl(own[1])));
            assert!(prctl(libc::PR_SET_TIMERSLACK).is_ok());
            assert!(refused(prctl(libc::PR_SET_PDEATHSIG)));
            assert!(refused(prctl(libc::PR_SET_DUMPABLE)));
            // No such thread or signal: the process's own number is not refused.
            let error = call(libc::SYS_tgkill, [process, 0, 0]).expect_err("no thread");
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        });
    }
}

#[test]
fn only_the_memory_limit_can_be_set_and_only_while_the_model_loads() {
    let set = |resource: u32| call(libc::SYS_prlimit64, [0, resource as usize, 8]);
    for stages in STAGES {
        let loads = stages.last() != Some(&FilterStage::Running);
        under(stages, || {
            // A bad address: the kernel read it.
            assert_eq!(!refused(set(libc::RLIMIT_DATA)), loads);
            assert!(refused(set(libc::RLIMIT_NOFILE)));
        });
    }
}

#[test]
fn threads_and_memory_are_available() {
    for stages in STAGES {
        let sum = under(stages, || {
            let parts = (0..4)
                .map(|number| thread::spawn(move || vec![number; 1 << 20].iter().sum::<i32>()));
            let parts: Vec<_> = parts.collect();
            parts
                .into_iter()
                .map(|part| part.join().expect("joined"))
                .sum::<i32>()
        });
        assert_eq!(sum, 6 << 20);
    }
}
