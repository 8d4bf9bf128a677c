//! What a server and all processes that it started hold together, each page counted once.
//!
//! ```text
//! PSS of the server + PSS of each child     every mapped page, split among those that map it
//! + memfds - what of them is in that PSS    pages that a process keeps by a descriptor and nobody has mapped
//! = held
//! ```
//!
//! Pages of ordinary files that nobody maps are the kernel's to drop and count nowhere. Pages that a process outside of
//! the tree maps too count by the share that PSS gives the tree: benchmarks run copies of the binary and the library.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt,
};

use crate::memory::{Memory, memory};

/// The start of a memfd's name, in `/proc/PID/maps` and as the target of a descriptor.
const MEMFD: &str = "/memfd:";

/// The memory of processes at one moment.
#[derive(Debug, Clone)]
pub struct TreeMemory {
    /// Each process and its memory; those that were asked for first.
    pub processes: Vec<(u32, Memory)>,
    /// What all memfds hold that any of the processes has a descriptor of, mapped or not, each once, in KiB.
    pub memfd_kib: f64,
    /// The part of that in the processes' PSS, in KiB.
    pub memfd_pss_kib: f64,
}

impl TreeMemory {
    /// The sum of the processes' PSS, in KiB.
    #[must_use]
    pub fn pss_kib(&self) -> f64 {
        self.processes
            .iter()
            .map(|(_, memory)| memory.pss_kib)
            .sum()
    }

    /// PSS, and the pages of memfds that nobody maps, in KiB.
    #[must_use]
    pub fn held_kib(&self) -> f64 {
        // The kernel rounds down mapping by mapping: where all pages are mapped the difference may be below zero.
        self.pss_kib() + (self.memfd_kib - self.memfd_pss_kib).max(0.0)
    }
}

/// `root` and all processes that it started and that those started, `root` first.
///
/// # Errors
/// When there is no process `root`, or the list of processes cannot be read.
pub fn tree(root: u32) -> io::Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process that has ended since the list was read is nobody's child.
        if let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat"))
            && let Some(parent) = parent(&stat)
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    fs::metadata(format!("/proc/{root}"))?;
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(pid) = tree.get(next) {
        tree.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    Ok(tree)
}

/// Reads the figures of each of `roots` and of all that it started.
///
/// # Errors
/// When one of `roots` does not exist, or the figures of a process cannot be read. A child that ends meanwhile counts
/// as one that never was.
pub fn tree_memory(roots: &[u32]) -> io::Result<TreeMemory> {
    let mut processes = Vec::new();
    let mut memfds = HashMap::new();
    let mut mapped = Vec::new();
    for &root in roots {
        for pid in tree(root)? {
            let read = memory(pid).and_then(|memory| {
                own_memfds(pid, &mut memfds)?;
                mapped.extend(mappings(pid)?);
                Ok(memory)
            });
            match read {
                Ok(memory) => processes.push((pid, memory)),
                Err(error) if pid != root && has_ended(pid, &error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let inodes: HashSet<u64> = memfds.keys().map(|&(_, inode)| inode).collect();
    let in_pss =
        |mapping: &&Mapping| mapping.path.starts_with(MEMFD) && inodes.contains(&mapping.inode);
    Ok(TreeMemory {
        processes,
        memfd_kib: memfds.values().sum(),
        memfd_pss_kib: mapped.iter().filter(in_pss).map(|m| m.pss_kib).sum(),
    })
}

/// One mapping of a process.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// The file's path, `/memfd:...`, a name in brackets, or nothing for memory of no file.
    pub path: String,
    /// The file's inode; 0 for memory of no file.
    pub inode: u64,
    /// Private pages and a share of those that others map too, in KiB.
    pub pss_kib: f64,
    /// Pages that no other process has, in KiB.
    pub private_kib: f64,
}

/// The mappings of a process.
///
/// # Errors
/// When there is no such process, or its figures cannot be read.
pub fn mappings(pid: u32) -> io::Result<Vec<Mapping>> {
    Ok(parse_smaps(&fs::read_to_string(format!(
        "/proc/{pid}/smaps"
    ))?))
}

fn parse_smaps(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // `Pss:    12 kB` belongs to the mapping whose head came before: `start-end rwxp offset device inode path`.
        if let [name, value, "kB"] = fields[..] {
            if let (Some(mapping), Ok(kib)) = (mappings.last_mut(), value.parse::<f64>()) {
                match name {
                    "Pss:" => mapping.pss_kib = kib,
                    "Private_Clean:" | "Private_Dirty:" => mapping.private_kib += kib,
                    _ => {}
                }
            }
        } else if let [range, _, _, _, inode, path @ ..] = &fields[..]
            && range.contains('-')
        {
            mappings.push(Mapping {
                path: path.join(" "),
                inode: inode.parse().unwrap_or(0),
                pss_kib: 0.0,
                private_kib: 0.0,
            });
        }
    }
    mappings
}

/// Adds the memfds that a process has descriptors of: what each holds in KiB, by device and inode.
fn own_memfds(pid: u32, into: &mut HashMap<(u64, u64), f64>) -> io::Result<()> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        // Descriptors come and go while the process runs.
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        if target.to_string_lossy().starts_with(MEMFD)
            && let Ok(file) = fs::metadata(&path)
        {
            // Blocks of 512 bytes: pages that exist, not the length.
            #[expect(clippy::cast_precision_loss, reason = "memory is below 2^52 bytes")]
            into.insert((file.dev(), file.ino()), file.blocks() as f64 / 2.0);
        }
    }
    Ok(())
}

fn has_ended(pid: u32, error: &io::Error) -> bool {
    // Between its end and its parent's look a process is a zombie, whose files are there and say nothing.
    let is_gone =
        matches!(error.kind(), io::ErrorKind::NotFound) || error.raw_os_error() == Some(3);
    let is_zombie = || {
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| after_name(&stat).first() == Some(&"Z"))
    };
    is_gone || is_zombie()
}

fn parent(stat: &str) -> Option<u32> {
    after_name(stat).get(1)?.parse().ok()
}

/// The fields of `/proc/PID/stat` from the state on; the name before them is in brackets and may hold anything.
fn after_name(stat: &str) -> Vec<&str> {
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().collect()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        process::{Child, Command, Stdio},
    };

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    const MIB: usize = 1 << 20;

    /// A process that lives until it is dropped, with a child of its own.
    struct Family(Child);

    impl Family {
        fn start() -> Self {
            // The inner `cat` says when it runs by answering, and ends with its input.
            let mut command = Command::new("sh");
            command.args(["-c", "cat; true"]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().expect("sh runs");
            let mut byte = [0];
            child
                .stdin
                .as_mut()
                .expect("piped")
                .write_all(b"x")
                .expect("writes");
            child
                .stdout
                .as_mut()
                .expect("piped")
                .read_exact(&mut byte)
                .expect("answers");
            Self(child)
        }
    }

    impl Drop for Family {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            drop(self.0.wait());
        }
    }

    #[test]
    fn a_tree_holds_children_of_children() {
        let family = Family::start();
        let below = tree(family.0.id()).expect("runs");
        assert_eq!(below.len(), 2, "the shell and its `cat`");
        let all = tree(std::process::id()).expect("runs");
        assert_eq!(all[0], std::process::id());
        assert!(
            below.iter().all(|pid| all.contains(pid)),
            "{below:?} in {all:?}"
        );

        let memory = tree_memory(&[family.0.id()]).expect("readable");
        let pids: Vec<u32> = memory.processes.iter().map(|(pid, _)| *pid).collect();
        assert_eq!(pids, below);
        let each = memory.processes.iter().map(|(_, memory)| memory.pss_kib);
        assert!(each.clone().all(|pss| pss > 0.0));
        assert!((memory.pss_kib() - each.sum::<f64>()).abs() < 1e-9);
    }

    #[test]
    fn memfds_that_nobody_maps_count_once_by_the_pages_they_have() {
        let before = tree_memory(&[std::process::id()]).expect("readable");
        let mut file = fs::File::from(memfd_create("test", MemfdFlags::CLOEXEC).expect("a memfd"));
        file.write_all(&vec![1; 8 * MIB]).expect("writes");
        file.set_len(64 * MIB as u64)
            .expect("longer than what it holds");
        let _again = file.try_clone().expect("a second descriptor");
        let after = tree_memory(&[std::process::id()]).expect("readable");
        let grown = |of: fn(&TreeMemory) -> f64| of(&after) - of(&before);
        let expected = (8 * MIB / 1024) as f64;
        assert!((grown(|m| m.memfd_kib) - expected).abs() < 1e-9);
        assert!(grown(|m| m.memfd_pss_kib).abs() < 1e-9);
        assert!(grown(|m| m.held_kib() - m.pss_kib()) >= expected - 1e-9);
    }

    #[test]
    fn absent_processes_are_errors() {
        // Above the largest that Linux gives.
        assert!(tree(1 << 30).is_err());
        assert!(tree_memory(&[1 << 30]).is_err());
    }

    #[test]
    fn smaps_are_read_mapping_by_mapping() {
        let smaps = "\
7f0000000000-7f0000010000 r--s 00000000 00:01 4242                       /memfd:segment 1 (deleted)
Size:                 64 kB
Rss:                  48 kB
Pss:                  12 kB
Pss_Dirty:             3 kB
Private_Clean:         5 kB
Private_Dirty:         1 kB
VmFlags: rd mr mw me
7f0000020000-7f0000021000 rw-p 00000000 00:00 0
Rss:                   4 kB
Pss:                   4 kB
";
        let read = parse_smaps(smaps);
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].path, "/memfd:segment 1 (deleted)");
        assert_eq!((read[0].inode, read[1].inode), (4242, 0));
        assert_eq!((read[0].pss_kib, read[0].private_kib), (12.0, 6.0));
        assert_eq!((read[1].path.as_str(), read[1].pss_kib), ("", 4.0));
    }

    #[test]
    fn names_with_brackets_do_not_shift_the_fields() {
        assert_eq!(parent("12 (a) b) (c) S 7 12 12 0"), Some(7));
        assert_eq!(parent("12 (cut off"), None);
    }
}
