//! What a server and all processes that it started hold together, each page counted once.
//!
//! ```text
//! PSS of the server + PSS of each child     every mapped page, split among those that map it
//! + memfds - what of them is in that PSS    pages that a process keeps by a descriptor and no process maps
//! = held
//! ```
//!
//! Pages of ordinary files that no process maps can be dropped by the kernel and do not count. Pages that a process
//! outside of the tree maps too count by the share that PSS gives the tree: benchmarks run copies of the binary and the
//! library.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::fs::MetadataExt,
};

use crate::memory::{ProcessMemory, memory};

/// The start of a memfd's name, in `/proc/PID/maps` and as the target of a descriptor.
const MEMFD: &str = "/memfd:";

/// The memory of processes at one moment.
#[derive(Debug, Clone)]
pub struct TreeMemory {
    /// Each process and its memory; those that were asked for first.
    pub processes: Vec<(u32, ProcessMemory)>,
    /// The memfds that any of the processes has a descriptor of, each once.
    pub memfds: Vec<Memfd>,
}

/// A file in memory, without a path.
#[derive(Debug, Clone)]
pub struct Memfd {
    /// What its maker called it.
    pub name: String,
    /// What it holds, mapped or not, in KiB.
    pub kib: f64,
    /// The part of that in the processes' PSS, in KiB.
    pub pss_kib: f64,
}

impl Memfd {
    /// Pages that are in no process's PSS, in KiB.
    #[must_use]
    pub fn unmapped_kib(&self) -> f64 {
        // The kernel rounds down mapping by mapping.
        (self.kib - self.pss_kib).max(0.0)
    }
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

    /// PSS, and the pages of memfds that no process maps, in KiB.
    #[must_use]
    pub fn held_kib(&self) -> f64 {
        self.pss_kib() + self.memfds.iter().map(Memfd::unmapped_kib).sum::<f64>()
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
        // A process that has ended since the list was read has no parent.
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
    let mut memfds = BTreeMap::new();
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
                Err(_) if pid != root && !is_running(pid) => {}
                Err(error) => return Err(error),
            }
        }
    }
    for mapping in &mapped {
        if mapping.path.starts_with(MEMFD)
            && let Some(memfd) = memfds.get_mut(&mapping.inode)
        {
            memfd.pss_kib += mapping.pss_kib;
        }
    }
    Ok(TreeMemory {
        processes,
        memfds: memfds.into_values().collect(),
    })
}

/// One mapping of a process.
#[derive(Debug, Clone)]
pub struct MemoryMapping {
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
pub fn mappings(pid: u32) -> io::Result<Vec<MemoryMapping>> {
    Ok(parse_smaps(&fs::read_to_string(format!(
        "/proc/{pid}/smaps"
    ))?))
}

fn parse_smaps(smaps: &str) -> Vec<MemoryMapping> {
    let mut mappings: Vec<MemoryMapping> = Vec::new();
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
            mappings.push(MemoryMapping {
                path: path.join(" "),
                inode: inode.parse().unwrap_or(0),
                pss_kib: 0.0,
                private_kib: 0.0,
            });
        }
    }
    mappings
}

/// Adds the memfds that a process has descriptors of, by inode: all memfds are of one file system.
fn own_memfds(pid: u32, into: &mut BTreeMap<u64, Memfd>) -> io::Result<()> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        // Descriptors come and go while the process runs.
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        let target = target.to_string_lossy();
        if let Some(name) = target.strip_prefix(MEMFD)
            && let Ok(file) = fs::metadata(&path)
        {
            into.entry(file.ino()).or_insert_with(|| Memfd {
                name: name.trim_end_matches(" (deleted)").to_owned(),
                // Blocks of 512 bytes: pages that exist, not the length.
                #[expect(clippy::cast_precision_loss, reason = "memory is below 2^52 bytes")]
                kib: file.blocks() as f64 / 2.0,
                pss_kib: 0.0,
            });
        }
    }
    Ok(())
}

/// Whether a process is there and has not ended. Between its end and its parent's look it is a zombie, whose files are
/// there and say nothing.
pub(crate) fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !matches!(after_name(&stat).first(), None | Some(&"Z" | &"X")))
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
        let pid = std::process::id();
        let mut file = fs::File::from(memfd_create("one", MemfdFlags::CLOEXEC).expect("a memfd"));
        file.write_all(&vec![1; 8 * MIB]).expect("writes");
        file.set_len(64 * MIB as u64)
            .expect("longer than what it holds");
        let _again = file.try_clone().expect("a second descriptor");
        let memory = tree_memory(&[pid]).expect("readable");
        let one: Vec<&Memfd> = memory
            .memfds
            .iter()
            .filter(|memfd| memfd.name == "one")
            .collect();
        assert_eq!(one.len(), 1);
        let expected = (8 * MIB / 1024) as f64;
        assert!((one[0].kib - expected).abs() < 1e-9 && one[0].pss_kib.abs() < 1e-9);
        assert!((one[0].unmapped_kib() - expected).abs() < 1e-9);
        assert!((memory.held_kib() - memory.pss_kib() - expected).abs() < 1e-9);
    }

    #[test]
    fn pages_of_a_memfd_that_are_mapped_are_in_pss() {
        let memfd = |pss_kib| Memfd {
            name: "one".to_owned(),
            kib: 100.0,
            pss_kib,
        };
        assert!((memfd(60.0).unmapped_kib() - 40.0).abs() < 1e-9);
        assert!(memfd(100.5).unmapped_kib().abs() < 1e-9);
    }

    #[test]
    fn ended_processes_do_not_run() {
        let mut family = Family::start();
        let below = tree(family.0.id()).expect("runs");
        assert!(below.iter().copied().all(is_running));
        drop(family.0.stdin.take());
        // The shell ends after its `cat`; when its output is at an end both have closed it, and it waits to be looked
        // at.
        let mut rest = Vec::new();
        let mut output = family.0.stdout.take().expect("piped");
        output.read_to_end(&mut rest).expect("reads");
        family.0.wait().expect("ends");
        assert!(!below.iter().copied().any(is_running));
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
