//! Use of processors and memory: the machine's, from `/proc`, or the control group's if it has limits.
//!
//! Triton shows the whole machine. In a container that says little: with a quota of two cores of 64, a container at
//! half its quota looks idle. Without a limit the figures are the machine's, as on Triton.

use std::{fs, path::Path, time::Duration};

/// Processor time so far, and memory now.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct HostReading {
    /// Time in which processors worked; only differences are meaningful.
    busy: Duration,
    /// Time in which processors could have worked.
    available: Duration,
    /// Bytes of memory in total.
    pub(super) memory_total: u64,
    /// Bytes of memory in use.
    pub(super) memory_used: u64,
}

impl HostReading {
    /// The share of processor time that was used since an earlier reading, between 0 and 1.
    pub(super) fn utilization_since(&self, earlier: &Self) -> f64 {
        let busy = self.busy.saturating_sub(earlier.busy);
        let available = self.available.saturating_sub(earlier.available);
        if available.is_zero() {
            return 0.0;
        }
        (busy.as_secs_f64() / available.as_secs_f64()).clamp(0.0, 1.0)
    }
}

/// Reads the figures; `uptime` is any steady clock. A figure that cannot be read is zero.
pub(super) fn read(uptime: Duration) -> HostReading {
    read_from(Path::new("/"), uptime)
}

fn read_from(root: &Path, uptime: Duration) -> HostReading {
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let (busy, available) = machine_time(&text("proc/stat"));
    let (memory_total, memory_used) = machine_memory(&text("proc/meminfo"));
    let mut reading = HostReading {
        busy,
        available,
        memory_total,
        memory_used,
    };
    let groups = text("proc/self/cgroup");
    let group = group_directory(&groups);
    let file = |name: &str| text(&format!("sys/fs/cgroup{group}/{name}"));
    if let Some(cores) = quota_cores(&file("cpu.max"))
        && let Some(usage) = value_of(&file("cpu.stat"), "usage_usec")
    {
        reading.busy = Duration::from_micros(usage);
        reading.available = uptime.mul_f64(cores);
    }
    if let Ok(limit) = file("memory.max").trim().parse::<u64>()
        && limit < memory_total
    {
        let current: u64 = file("memory.current").trim().parse().unwrap_or(0);
        // The cache of files not in use, which the kernel would drop first.
        let idle = value_of(&file("memory.stat"), "inactive_file").unwrap_or(0);
        reading.memory_total = limit;
        reading.memory_used = current.saturating_sub(idle);
    }
    reading
}

/// Busy and available time from `/proc/stat`, in ticks of 10 ms, which cancel out.
fn machine_time(stat: &str) -> (Duration, Duration) {
    let ticks: Vec<u64> = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))
        .unwrap_or_default()
        .split_ascii_whitespace()
        .filter_map(|field| field.parse().ok())
        // user nice system idle iowait irq softirq steal; guests are counted in user already.
        .take(8)
        .collect();
    let total: u64 = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    (of_ticks(total - idle), of_ticks(total))
}

const fn of_ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks.saturating_mul(10))
}

/// Total and used bytes from `/proc/meminfo`.
fn machine_memory(meminfo: &str) -> (u64, u64) {
    let total = kibibytes(meminfo, "MemTotal:");
    let available = kibibytes(meminfo, "MemAvailable:");
    (total, total.saturating_sub(available))
}

/// A figure of `/proc/meminfo`, in bytes; 0 if it is missing.
fn kibibytes(meminfo: &str, name: &str) -> u64 {
    value_of(meminfo, name).unwrap_or(0).saturating_mul(1024)
}

/// The group's directory below the mount; empty at its root, as in a container.
fn group_directory(cgroup: &str) -> &str {
    cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or_default()
        .trim_end_matches('/')
}

/// Cores by `cpu.max`: `<quota> <period>` in microseconds, or `max <period>` without a limit.
fn quota_cores(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

/// The number after a name, one pair a line.
fn value_of(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.split_ascii_whitespace().next() == Some(name))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 0 50 800 50 0 0 0 7 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
    const LATER: &str = "cpu  160 0 90 850 100 0 0 0 7 0\n";
    const MEMINFO: &str = "MemTotal:       2048 kB\nMemFree: 5 kB\nMemAvailable:    512 kB\n";

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        root
    }

    fn read(files: &[(&str, &str)], seconds: u64) -> HostReading {
        read_from(root(files).path(), Duration::from_secs(seconds))
    }

    #[test]
    fn without_limits_the_figures_are_the_machines() {
        let unlimited = ("sys/fs/cgroup/cpu.max", "max 100000\n");
        let first = read(
            &[("proc/stat", STAT), ("proc/meminfo", MEMINFO), unlimited],
            1,
        );
        let second = read(
            &[("proc/stat", LATER), ("proc/meminfo", MEMINFO), unlimited],
            2,
        );
        assert_eq!(second.utilization_since(&first), 0.5);
        assert_eq!(first.utilization_since(&first), 0.0);
        assert_eq!(
            (first.memory_total, first.memory_used),
            (2048 << 10, 1536 << 10)
        );
    }

    #[test]
    fn limits_of_the_control_group_take_precedence() {
        let files = |usage| {
            [
                ("proc/stat", STAT),
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "1:name=x:/y\n0::/a/b\n"),
                ("sys/fs/cgroup/a/b/cpu.max", "150000 100000\n"),
                ("sys/fs/cgroup/a/b/cpu.stat", usage),
                ("sys/fs/cgroup/a/b/memory.max", "1000000\n"),
                ("sys/fs/cgroup/a/b/memory.current", "700000\n"),
                (
                    "sys/fs/cgroup/a/b/memory.stat",
                    "anon 1\ninactive_file 200000\n",
                ),
            ]
        };
        let first = read(&files("usage_usec 1000000\nuser_usec 9\n"), 10);
        let second = read(&files("usage_usec 2500000\nuser_usec 9\n"), 12);
        assert_eq!(second.utilization_since(&first), 0.5);
        assert_eq!(
            (first.memory_total, first.memory_used),
            (1_000_000, 500_000)
        );
    }

    #[test]
    fn a_limit_above_the_machines_memory_is_ignored() {
        let reading = read(
            &[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "0::/\n"),
                ("sys/fs/cgroup/memory.max", "9223372036854771712\n"),
            ],
            1,
        );
        assert_eq!(reading.memory_total, 2048 << 10);
    }

    #[test]
    fn figures_that_cannot_be_read_are_zero() {
        assert_eq!(read(&[], 1), HostReading::default());
        assert_eq!(
            read(&[("proc/stat", "cpu  x y\n")], 1),
            HostReading::default()
        );
    }
}
