//! Restricts the files that a worker process can open to a list (Landlock).
//!
//! The rules hold permanently for the thread that makes them and for those that it starts. The filter of system calls
//! decides *what* may be done with files, this decides with which. If the kernel supports it, the rules also refuse
//! TCP, signals to processes that are not under the same rules, and their abstract sockets. Nor can the worker use
//! `ptrace` on such a process, which most files of `/proc/<process>` require.
#![allow(
    unsafe_code,
    reason = "Landlock's three system calls have no safe interface (invariant 5)"
)]

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    ptr,
};

use libc::{c_int, c_long};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};

/// The first version that lets a file be moved from one directory into another, which baking does (Linux 5.19).
const MIN_ABI: u32 = 2;

/// `LANDLOCK_CREATE_RULESET_VERSION`, `LANDLOCK_RULE_PATH_BENEATH`.
const ASK_VERSION: c_long = 1;
const PATH_BENEATH: c_long = 1;
const NO_FLAGS: c_long = 0;

// `LANDLOCK_ACCESS_FS_*`.
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;

/// Every right to files of the second version, and those that the third (truncating) and the fifth (`ioctl` on devices)
/// added.
const FILES_2: u64 = (1 << 14) - 1;
const FILES_3: u64 = TRUNCATE;
const FILES_5: u64 = 1 << 15;

/// `LANDLOCK_ACCESS_NET_BIND_TCP` and `..._CONNECT_TCP`, of the fourth version.
const TCP_4: u64 = 0b11;

/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `LANDLOCK_SCOPE_SIGNAL`, of the sixth version.
const SCOPES_6: u64 = 0b11;

const READ: u64 = READ_FILE | READ_DIR;
const WRITE: u64 =
    READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER;
/// Those of these rights that apply to a file.
const OF_A_FILE: u64 = READ_FILE | WRITE_FILE | TRUNCATE;

/// The rights that are refused unless a rule allows them: the kernel's `landlock_ruleset_attr`.
#[repr(C)]
struct Ruleset {
    files: u64,
    network: u64,
    scopes: u64,
}

/// The kernel's `landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    parent: c_int,
}

/// The files and directories that can be opened, with everything beneath the directories.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// For reading.
    pub(super) read: Vec<PathBuf>,
    /// For reading, writing, and making and removing files.
    pub(super) write: Vec<PathBuf>,
}

/// The paths of a [`Reach`] beneath `/proc`, held open. Once the kernel has dropped such a file it makes a new one, to
/// which no rule applies: rules for them hold as long as this exists.
#[derive(Debug)]
pub(super) struct HeldFiles(#[expect(dead_code, reason = "held open, never read")] Vec<OwnedFd>);

/// The kernel's version of Landlock; `None` if it has none, or one that is too old.
pub(crate) fn version() -> Option<u32> {
    // SAFETY: the kernel reads no memory for this question.
    let number = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<Ruleset>(),
            0_usize,
            ASK_VERSION,
        )
    };
    // Negative if it is missing, switched off, or not available to this process.
    u32::try_from(number).ok().filter(|abi| *abi >= MIN_ABI)
}

/// Restricts this thread, and those that it starts from now on, to these files. Without Landlock nothing changes. A
/// path that cannot be opened now is left out. `no_new_privs` has to be set.
///
/// # Errors
/// The kernel's.
pub(super) fn restrict(reach: &Reach) -> io::Result<HeldFiles> {
    let Some(version) = version() else {
        return Ok(HeldFiles(Vec::new()));
    };
    let failed =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot restrict files: {error}"));
    let since = |first: u32, rights: u64| if version >= first { rights } else { 0 };
    let refused = Ruleset {
        files: FILES_2 | since(3, FILES_3) | since(5, FILES_5),
        network: since(4, TCP_4),
        scopes: since(6, SCOPES_6),
    };
    let rules = ruleset(&refused).map_err(failed)?;
    let read = reach.read.iter().map(|path| (path, READ));
    let write = reach.write.iter().map(|path| (path, WRITE));
    let mut held = Vec::new();
    for (path, rights) in read.chain(write) {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let Ok(file) = open(path, flags, Mode::empty()) else {
            continue;
        };
        let kind = fstat(&file).map(|status| FileType::from_raw_mode(status.st_mode));
        let rights = match kind? {
            FileType::Directory => rights,
            _ => rights & OF_A_FILE,
        };
        allow(&rules, &file, rights & refused.files).map_err(failed)?;
        if path.starts_with("/proc") {
            held.push(file);
        }
    }
    put_on(&rules).map_err(failed)?;
    Ok(HeldFiles(held))
}

fn ruleset(refused: &Ruleset) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads exactly the structure.
    let number = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::from_ref(refused),
            size_of::<Ruleset>(),
            NO_FLAGS,
        )
    };
    let descriptor = c_int::try_from(checked(number)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Allows `rights` to a file, or to a directory and everything beneath it.
fn allow(rules: &OwnedFd, file: &OwnedFd, rights: u64) -> io::Result<()> {
    let rule = Beneath {
        allowed: rights,
        parent: file.as_raw_fd(),
    };
    // SAFETY: the kernel reads a structure of the given type, and both descriptors are open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            c_long::from(rules.as_raw_fd()),
            PATH_BENEATH,
            ptr::from_ref(&rule),
            NO_FLAGS,
        )
    };
    checked(result).map(drop)
}

/// Applies the rules to this thread.
fn put_on(rules: &OwnedFd) -> io::Result<()> {
    let descriptor = c_long::from(rules.as_raw_fd());
    // SAFETY: the descriptor is open; the kernel reads no memory.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, descriptor, NO_FLAGS) };
    checked(result).map(drop)
}

fn checked(result: c_long) -> io::Result<c_long> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        number => Ok(number),
    }
}
