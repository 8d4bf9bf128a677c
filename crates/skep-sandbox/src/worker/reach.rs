//! The files that a worker process needs to load its model, or to bake it.

use std::{
    env,
    ffi::OsStr,
    fs::{self, DirEntry},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::landlock::Reach;
use crate::message::LoadTask;

/// Where the dynamic loader finds libraries, besides the directories that the environment names.
const LIBRARIES: [&str; 10] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    // Systems that keep each library in its own directory.
    "/gnu/store",
    "/nix/store",
];

/// What libraries read about the machine: the processor and its caches, memory, limits of the control group.
const MACHINE: [&str; 14] = [
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/kernel/osrelease",
    "/proc/sys/kernel/version",
    "/proc/sys/vm",
    "/proc/version",
    "/sys/class/accel",
    "/sys/class/drm",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/sys/kernel/mm",
    "/etc/os-release",
];

/// Devices, which libraries search for accelerators, and the files that they read of each. Not all files: some are a
/// device's own memory.
const DEVICES: &str = "/sys/bus/pci/devices";
const OF_A_DEVICE: [&str; 3] = ["class", "device", "vendor"];

/// This process's own files, with its executable, from which a panic's trace is read.
const OWN: [&str; 2] = ["/proc/self", "/proc/self/exe"];

/// Locale, time zone, and harmless devices.
const ELSEWHERE: [&str; 6] = [
    "/dev/null",
    "/dev/urandom",
    "/etc/locale.alias",
    "/etc/localtime",
    "/usr/share/locale",
    "/usr/share/zoneinfo",
];

/// The number of directory entries that are read. A version has a few files, a library's directory some dozens.
const MAX_ENTRIES: usize = 4096;

/// The paths of the files that a worker needs for this load.
pub(super) fn of(load: &LoadTask) -> Reach {
    let fixed = LIBRARIES
        .iter()
        .chain(&MACHINE)
        .chain(&OWN)
        .chain(&ELSEWHERE);
    let mut reach = Reach {
        read: fixed.map(PathBuf::from).collect(),
        write: Vec::new(),
    };
    reach.read.push(PathBuf::from(DEVICES));
    reach.read.extend(
        entries(Path::new(DEVICES))
            .flat_map(|device| OF_A_DEVICE.map(|name| device.path().join(name))),
    );
    let named = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    reach.read.extend(env::split_paths(&named));
    let allocator = load.allocator.as_ref().map(|library| &library.path);
    for library in [load.library.as_ref(), allocator].into_iter().flatten() {
        let library = path(library);
        // Its other libraries lie beside it: beside the link and beside the file. Not the whole directory, which may be
        // a home directory.
        let real = fs::canonicalize(library).unwrap_or_default();
        let directories = [library, &real].map(Path::parent).into_iter().flatten();
        reach.read.extend(directories.flat_map(libraries));
    }
    if let Some(directory) = path(&load.path).parent() {
        reach.read.extend(linked(directory));
        reach.read.push(directory.to_owned());
    }
    if let Some(kept) = &load.weights {
        // Its own form, file by file: the tensors of all forms share one directory.
        let files = kept.form.iter().flat_map(|form| &form.files);
        reach.read.extend(files.map(|file| path(file).to_owned()));
    }
    if let Some(bake) = &load.bake {
        reach.write.push(path(&bake.directory).to_owned());
    }
    // The parent of a bare file name is empty.
    reach.read.retain(|path| !path.as_os_str().is_empty());
    reach
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// The library files in a directory.
fn libraries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    files(directory, |entry| {
        let name = entry.file_name();
        name.as_bytes().windows(3).any(|part| part == b".so")
    })
}

/// The targets of links in a directory: a model's file and its data may lie elsewhere.
fn linked(directory: &Path) -> impl Iterator<Item = PathBuf> {
    files(directory, |entry| {
        entry.file_type().is_ok_and(|kind| kind.is_symlink())
    })
}

/// The files, and links to files, of a directory that `which` chooses.
fn files(directory: &Path, which: impl Fn(&DirEntry) -> bool) -> impl Iterator<Item = PathBuf> {
    let chosen = entries(directory).filter(move |entry| which(entry));
    chosen
        .map(|entry| entry.path())
        .filter(|path| fs::metadata(path).is_ok_and(|target| target.is_file()))
}

fn entries(directory: &Path) -> impl Iterator<Item = DirEntry> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.take(MAX_ENTRIES).flatten()
}

#[cfg(test)]
#[path = "reach_tests.rs"]
mod tests;
