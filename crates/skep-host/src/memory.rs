//! Memory: how much the process may use, and how much is available.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Memory in bytes, by the machine and all control groups of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The machine's memory, or the smallest limit of a control group.
    pub total: u64,
    /// What can be allocated before the system swaps or a control group kills: free memory and the page cache.
    pub available: u64,
}

/// Memory is low when less than this part is available: one tenth.
const LOW_PART: u64 = 10;

/// Memory is all but gone when less than one twentieth is available, and less than half a GiB: a large machine whose
/// files fill the rest has enough.
const LEAST_PART: u64 = 20;
const LEAST_BYTES: u64 = 512 << 20;

impl Memory {
    /// Whether memory is low, so that caches should be dropped.
    #[must_use]
    pub const fn is_low(self) -> bool {
        self.available < self.total / LOW_PART
    }

    /// Whether memory is all but gone, so that the system will soon kill processes.
    #[must_use]
    pub const fn is_all_but_gone(self) -> bool {
        let part = self.total / LEAST_PART;
        self.available
            < if part < LEAST_BYTES {
                part
            } else {
                LEAST_BYTES
            }
    }
}

/// Reads the memory of this process's machine and control groups, from a handful of small files.
#[must_use]
#[allow(
    clippy::useless_conversion,
    reason = "the system's types differ between machines"
)]
pub fn memory() -> Memory {
    let system = rustix::system::sysinfo();
    let unit = u64::from(system.mem_unit.max(1));
    read(
        Path::new("/proc"),
        Path::new("/sys/fs/cgroup"),
        Memory {
            total: u64::from(system.totalram).saturating_mul(unit),
            available: u64::from(system.freeram).saturating_mul(unit),
        },
    )
}

/// Bytes of this process's memory that are its own: pages of no file, shared with nobody. `None` if the system does not
/// tell.
///
/// Source: proc_pid_statm(5).
#[must_use]
pub fn private_bytes() -> Option<u64> {
    private(&fs::read_to_string("/proc/self/statm").ok()?)
}

/// The same of another process; `None` if it has ended, or the system does not tell.
#[must_use]
pub fn private_bytes_of(process: u32) -> Option<u64> {
    private(&fs::read_to_string(format!("/proc/{process}/statm")).ok()?)
}

fn private(statm: &str) -> Option<u64> {
    let mut pages = statm.split_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    Some(resident.saturating_sub(shared) * rustix::param::page_size() as u64)
}

/// `machine` is the kernel's figure, for when `meminfo` cannot be read.
fn read(proc: &Path, mount: &Path, machine: Memory) -> Memory {
    let text = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
    let available = available(&text("meminfo")).unwrap_or(machine.available);
    let start = Memory {
        total: machine.total,
        available: available.min(machine.total),
    };
    groups(mount, &text("self/cgroup")).fold(start, |least, group| Memory {
        total: least.total.min(group.total),
        available: least.available.min(group.available),
    })
}

/// Source: proc(5), `/proc/meminfo`.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// The files of one version of control groups.
struct Files {
    root: PathBuf,
    limit: &'static str,
    current: &'static str,
    /// Lines of `memory.stat` that the kernel can reclaim before it kills: pages of files, and its own caches.
    reclaimable: [&'static str; 3],
}

/// The limits of a process's control groups and of their parents, and what is available below each. `groups` are the
/// lines of `/proc/self/cgroup`. Inside a container their paths may not exist, and the mount itself is the group.
///
/// Source: cgroups(7); Linux, `cgroup-v2.rst`, "memory.max", and `cgroup-v1/memory.rst`.
fn groups(mount: &Path, groups: &str) -> impl Iterator<Item = Memory> {
    groups.lines().flat_map(move |line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or("/"));
        let files = match controllers {
            "" => Files {
                root: mount.to_owned(),
                limit: "memory.max",
                current: "memory.current",
                reclaimable: ["inactive_file", "active_file", "slab_reclaimable"],
            },
            _ if controllers.split(',').any(|name| name == "memory") => Files {
                root: mount.join("memory"),
                limit: "memory.limit_in_bytes",
                current: "memory.usage_in_bytes",
                // The first version does not report the kernel's own caches.
                reclaimable: ["total_inactive_file", "total_active_file", ""],
            },
            _ => return Vec::new(),
        };
        Path::new(path.trim_start_matches('/'))
            .ancestors()
            .filter_map(|group| files.read(group))
            .collect()
    })
}

impl Files {
    /// `None` for a group without a limit.
    fn read(&self, group: &Path) -> Option<Memory> {
        let directory = self.root.join(group);
        let number = |name: &str| -> Option<u64> {
            // `max` is not a number.
            let text = fs::read_to_string(directory.join(name)).ok()?;
            text.trim().parse().ok()
        };
        let total = number(self.limit)?;
        let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
        let values = stat.lines().filter_map(|line| line.split_once(' '));
        let reclaimable = values
            .filter(|(name, _)| self.reclaimable.contains(name))
            .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
            .fold(0, u64::saturating_add);
        let used = number(self.current)
            .unwrap_or(0)
            .saturating_sub(reclaimable);
        Some(Memory {
            total,
            available: total.saturating_sub(used),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Memory = Memory {
        total: 10_000_000,
        available: 9_000_000,
    };

    /// Reads a file system with these files.
    fn with(files: &[(&str, &str)]) -> Memory {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        read(&root.path().join("proc"), &root.path().join("cg"), MACHINE)
    }

    #[test]
    fn memory_is_low_below_a_tenth_and_all_but_gone_below_a_twentieth() {
        let of = |available| Memory {
            total: 1000,
            available,
        };
        assert!(!of(100).is_low() && of(99).is_low());
        assert!(!of(50).is_all_but_gone() && of(49).is_all_but_gone());
        let large = Memory {
            total: 1 << 40,
            available: LEAST_BYTES,
        };
        assert!(large.is_low() && !large.is_all_but_gone());
    }

    #[test]
    fn private_memory_is_what_is_resident_and_not_shared() {
        let page = rustix::param::page_size() as u64;
        assert_eq!(private("5000 300 120 40 0 900 0\n"), Some(180 * page));
        assert_eq!((private("5000 300\n"), private("")), (None, None));
        assert!(private_bytes().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn without_files_the_kernels_figures_hold() {
        assert_eq!(with(&[]), MACHINE);
        assert_eq!(with(&[("proc/meminfo", "MemAvailable: junk\n")]), MACHINE);
    }

    #[test]
    fn the_smallest_limit_of_all_groups_counts() {
        let group = |more: &[(&'static str, &'static str)]| {
            let mut files = vec![
                ("proc/self/cgroup", "0::/a/b\n"),
                ("proc/meminfo", "MemTotal: 1 kB\nMemAvailable:    2000 kB\n"),
                ("cg/a/b/memory.max", "max\n"),
            ];
            files.extend_from_slice(more);
            let Memory { total, available } = with(&files);
            (total, available)
        };
        assert_eq!(group(&[]), (10_000_000, 2_048_000), "no limit");
        let above = ("cg/a/memory.max", "3000000\n");
        assert_eq!(
            group(&[above]),
            (3_000_000, 2_048_000),
            "of the group above"
        );
        let current = ("cg/a/memory.current", "2000000\n");
        assert_eq!(group(&[above, current]), (3_000_000, 1_000_000));
        let stat = (
            "cg/a/memory.stat",
            "anon 5\ninactive_file 300000\nactive_file 150000\nslab_reclaimable 50000\n",
        );
        assert_eq!(
            group(&[above, current, stat]),
            (3_000_000, 1_500_000),
            "the page cache is to be had"
        );
        let mount = ("cg/memory.max", "1000\n");
        assert_eq!(group(&[above, mount]).0, 1000, "a container's own mount");
    }

    #[test]
    fn groups_of_the_first_version_count_too() {
        let memory = with(&[
            ("proc/self/cgroup", "5:cpu:/a\n4:memory,other:/x\n0::/\n"),
            ("cg/memory/x/memory.limit_in_bytes", "1000\n"),
            ("cg/memory/x/memory.usage_in_bytes", "900\n"),
            (
                "cg/memory/x/memory.stat",
                "inactive_file 7\ntotal_inactive_file 30\ntotal_active_file 20\n",
            ),
        ]);
        assert_eq!((memory.total, memory.available), (1000, 150));
    }
}
