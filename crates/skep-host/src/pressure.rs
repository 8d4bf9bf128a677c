//! Memory pressure: whether memory is short for the process.
//!
//! ```text
//! memory()          memory is low, on the machine or below a control group's limit
//! memory.pressure   tasks of the group stalled for lack of memory, as under `memory.high`
//! memory.events     the group reached `memory.high`; counts if the kernel has no pressure figures
//! ```
//!
//! Without swap the first is the only sign: tasks get memory without waiting until there is none. Events of
//! `memory.max` are not a sign: a group whose limit is full of page cache reaches it all the time and has enough. The
//! machine's pressure may be that of other groups at their limits.
//!
//! All of it, some ten small files, is read once a second, and five times if memory is low. The kernel's pressure
//! triggers would not tell sooner.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};

use crate::{Memory, memory};

/// Memory is short when tasks stall for this part of the time: one tenth.
const STALLED_PART: u128 = 10;

/// The time between two readings.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same when memory is low.
const LOW_INTERVAL: Duration = Duration::from_millis(200);

/// Counters of the process's control group; `None` if it has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    /// Time that some task stalled for lack of memory.
    stalled: Option<Duration>,
    /// How often it reached `memory.high`.
    high: Option<u64>,
}

/// Whether memory is short, by what happened between two readings and what is available.
fn is_short(before: Counts, now: Counts, passed: Duration, left: Memory) -> bool {
    let is_held_up = match (before.stalled, now.stalled) {
        (Some(before), Some(now)) => {
            let stalled = now.saturating_sub(before);
            stalled.as_nanos().saturating_mul(STALLED_PART) >= passed.as_nanos().max(1)
        }
        _ => now
            .high
            .zip(before.high)
            .is_some_and(|(now, before)| now > before),
    };
    left.is_low() || is_held_up
}

/// `some ... total=<microseconds>`. Source: Linux, `Documentation/accounting/psi.rst`.
fn stalled(pressure: &str) -> Option<Duration> {
    let line = pressure.lines().find(|line| line.starts_with("some "))?;
    let total = line
        .split(' ')
        .find_map(|word| word.strip_prefix("total="))?;
    total.trim().parse().ok().map(Duration::from_micros)
}

/// `high <count>`. Source: Linux, `cgroup-v2.rst`, "memory.events".
fn high(events: &str) -> Option<u64> {
    let count = events.lines().find_map(|line| line.strip_prefix("high "))?;
    count.trim().parse().ok()
}

/// The process's control group of the second version; `None` if it has no memory figures.
fn group(proc: &Path, mount: &Path) -> Option<PathBuf> {
    let groups = fs::read_to_string(proc.join("self/cgroup")).ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    // Inside a container the path may not exist, and the mount itself is the group.
    let candidates = [mount.join(own.trim_start_matches('/')), mount.to_owned()];
    let mut groups = candidates.into_iter();
    groups.find(|group| {
        ["memory.pressure", "memory.events"]
            .iter()
            .any(|name| group.join(name).exists())
    })
}

/// Reads the counters of a group.
fn read(group: Option<&Path>) -> Counts {
    let text = |name: &str| fs::read_to_string(group?.join(name)).ok();
    Counts {
        stalled: text("memory.pressure").and_then(|text| stalled(&text)),
        high: text("memory.events").and_then(|text| high(&text)),
    }
}

/// A thread that watches memory pressure until this is dropped.
#[derive(Debug)]
pub struct PressureWatch {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl PressureWatch {
    /// Calls `relieve` with the current memory once a second while memory is short, more often while it is low.
    ///
    /// # Errors
    /// If there is no descriptor or no thread for it.
    pub fn start(relieve: impl FnMut(Memory) + Send + 'static) -> io::Result<Self> {
        let group = group(Path::new("/proc"), Path::new("/sys/fs/cgroup"));
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        // The kernel shows 15 bytes of a name.
        let thread = thread::Builder::new().name("memory-watch".to_owned());
        let thread = thread.spawn(move || watch(group.as_deref(), &stopped, relieve))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for PressureWatch {
    fn drop(&mut self) {
        // A full counter wakes as well.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic has been reported already.
            let _ = thread.join();
        }
    }
}

fn watch(group: Option<&Path>, stop: &OwnedFd, mut relieve: impl FnMut(Memory)) {
    let (mut before, mut since) = (read(group), Instant::now());
    let mut interval = INTERVAL;
    while !is_stopped_within(stop, interval) {
        let (now, time, left) = (read(group), Instant::now(), memory());
        if is_short(before, now, time.saturating_duration_since(since), left) {
            relieve(left);
        }
        interval = if left.is_low() {
            LOW_INTERVAL
        } else {
            INTERVAL
        };
        (before, since) = (now, time);
    }
}

/// Waits for `time`. Returns whether the watch was dropped meanwhile.
fn is_stopped_within(stop: &OwnedFd, time: Duration) -> bool {
    let time = Timespec::try_from(time).ok();
    match poll(&mut [PollFd::new(stop, PollFlags::IN)], time.as_ref()) {
        Ok(0) | Err(Errno::INTR) => false,
        // After an error, waiting is impossible.
        Ok(_) | Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Memory = Memory {
        total: 1000,
        available: 100,
    };
    const LITTLE: Memory = Memory {
        total: 1000,
        available: 99,
    };

    fn counts(stalled_ms: Option<u64>, high: Option<u64>) -> Counts {
        Counts {
            stalled: stalled_ms.map(Duration::from_millis),
            high,
        }
    }

    #[test]
    fn memory_is_short_when_it_is_low_or_tasks_stall() {
        let short = |before, now, left| is_short(before, now, Duration::from_secs(1), left);
        let none = counts(None, None);
        assert!(!short(none, none, PLENTY));
        assert!(short(none, none, LITTLE));
        let before = counts(Some(500), Some(7));
        assert!(!short(before, before, PLENTY), "nothing happened");
        assert!(!short(before, counts(Some(599), Some(9)), PLENTY), "99 ms");
        assert!(short(before, counts(Some(600), Some(7)), PLENTY), "100 ms");
        let before = counts(None, Some(7));
        assert!(!short(before, before, PLENTY));
        assert!(short(before, counts(None, Some(8)), PLENTY));
        assert!(!short(none, counts(None, Some(8)), PLENTY), "since when?");
    }

    #[test]
    fn the_kernels_files_are_read() {
        let pressure = "some avg10=0.12 avg60=0.00 avg300=0.00 total=984133\n\
            full avg10=0.00 avg60=0.00 avg300=0.00 total=690832\n";
        assert_eq!(stalled(pressure), Some(Duration::from_micros(984_133)));
        assert_eq!(stalled("some avg10=1 total=much\n"), None);
        assert_eq!(stalled(""), None);
        let events = "low 1\nhigh 20\nmax 300\noom 4000\noom_kill 50000\noom_group_kill 0\n";
        assert_eq!(high(events), Some(20));
        assert_eq!(high("high -\nmax 3\n"), None);
    }

    /// Reads the counters of these files.
    fn with(files: &[(&str, &str)]) -> Counts {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        read(group(&root.path().join("proc"), &root.path().join("cg")).as_deref())
    }

    #[test]
    fn the_figures_of_the_process_own_group_count() {
        let own = ("proc/self/cgroup", "4:memory:/x\n0::/a/b\n");
        let mounted = ("cg/memory.pressure", "some avg10=0 total=9000\n");
        assert_eq!(with(&[own, mounted]), counts(Some(9), None), "a container");
        let pressure = ("cg/a/b/memory.pressure", "some avg10=0 total=7000\n");
        let events = ("cg/a/b/memory.events", "high 1\nmax 2\n");
        let all = with(&[own, mounted, pressure, events]);
        assert_eq!(all, counts(Some(7), Some(1)));
        assert_eq!(with(&[own, mounted, events]), counts(None, Some(1)));
        assert_eq!(with(&[own]), counts(None, None));
        let old = ("proc/self/cgroup", "4:memory:/x\n");
        assert_eq!(with(&[old, mounted]), counts(None, None));
    }

    #[test]
    fn a_watch_ends_when_it_is_dropped() {
        // It joins its thread: one that did not end would hang here.
        drop(PressureWatch::start(|_| {}).expect("a thread"));
    }
}
