//! Pressure: whether memory is short for the process, now.
//!
//! ```text
//! memory.pressure (own group; else /proc/pressure/memory)   time that tasks stood still for want of memory
//! memory.events   (own group and those above)               how often a group came up against `high` or `max`
//! memory.failcnt  (control groups of the first version)     how often a group came up against its limit
//! ```
//!
//! A group whose limit is full of the page cache comes up against it all the time and lacks nothing. So events count only
//! where little memory is to be had, and so does a machine's pressure, which may be that of others.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    fs::OFlags,
    io::Errno,
};

use crate::{Memory, memory};

/// Memory is short where tasks stand still for this part of the time: one tenth.
const STALLED_PART: u128 = 10;

/// What the kernel is asked to wake for: that part of two seconds, the window that needs no privilege. It ends with a byte
/// that the kernel overwrites. Source: Linux, `Documentation/accounting/psi.rst`.
const TRIGGER: &[u8] = b"some 200000 2000000\0";

/// Little memory is to be had where that is less than this part of all: one tenth.
const LOW_PART: u64 = 10;

/// How often the files are read where the kernel does not wake, and at most.
const INTERVAL: Duration = Duration::from_secs(1);

/// Figures that only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    /// Time that some task stood still for want of memory.
    stalled: Duration,
    /// How often a group came up against a limit.
    events: u64,
}

/// Whether memory is short, by what happened in a time. `is_own`: the stalled tasks are the process's own group's.
fn is_short(before: Counts, now: Counts, passed: Duration, is_own: bool, left: Memory) -> bool {
    let stalled = now.stalled.saturating_sub(before.stalled);
    let has_stalled =
        !stalled.is_zero() && stalled.as_nanos().saturating_mul(STALLED_PART) >= passed.as_nanos();
    let is_low = left.available < left.total / LOW_PART;
    (has_stalled && (is_own || is_low)) || (now.events > before.events && is_low)
}

/// `some ... total=<microseconds>`.
fn stalled(pressure: &str) -> Option<Duration> {
    let line = pressure.lines().find(|line| line.starts_with("some "))?;
    let total = line
        .split(' ')
        .find_map(|word| word.strip_prefix("total="))?;
    total.trim().parse().ok().map(Duration::from_micros)
}

/// The sum of `high` and `max` of `memory.events`, or the number that `memory.failcnt` is.
fn events(text: &str) -> u64 {
    let counters = text.lines().filter_map(|line| match line.split_once(' ') {
        Some(("high" | "max", count)) => count.trim().parse::<u64>().ok(),
        Some(_) => None,
        None => line.trim().parse().ok(),
    });
    counters.fold(0, u64::saturating_add)
}

/// Where the figures are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Paths {
    pressure: Option<PathBuf>,
    /// Whether that is the process's own group's.
    is_own: bool,
    events: Vec<PathBuf>,
    /// These do not tell anybody when they change.
    failures: Vec<PathBuf>,
}

impl Paths {
    /// Source: cgroups(7); Linux, `cgroup-v2.rst` and `cgroup-v1/memory.rst`.
    fn find(proc: &Path, mount: &Path) -> Self {
        let groups = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
        let mut paths = Self::default();
        let add = |into: &mut Vec<PathBuf>, root: &Path, group: &str, name: &str| {
            let above = Path::new(group.trim_start_matches('/')).ancestors();
            let files = above.map(|group| root.join(group).join(name));
            into.extend(files.filter(|file| file.exists()));
        };
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, group) = (parts.next().unwrap_or(""), parts.next().unwrap_or("/"));
            if controllers.is_empty() {
                let own = mount.join(group.trim_start_matches('/'));
                // Inside a container the path may lead nowhere, and the mount itself is the group.
                let own = [own, mount.to_owned()].map(|group| group.join("memory.pressure"));
                paths.pressure = own.into_iter().find(|file| file.exists());
                paths.is_own = paths.pressure.is_some();
                add(&mut paths.events, mount, group, "memory.events");
            } else if controllers.split(',').any(|name| name == "memory") {
                let root = mount.join("memory");
                add(&mut paths.failures, &root, group, "memory.failcnt");
            }
        }
        if paths.pressure.is_none() {
            let machine = proc.join("pressure/memory");
            paths.pressure = machine.exists().then_some(machine);
        }
        paths
    }
}

/// The files, held open: one that was read tells when it has changed.
#[derive(Debug)]
struct Files {
    pressure: Option<File>,
    is_own: bool,
    events: Vec<File>,
    failures: Vec<File>,
}

impl Files {
    fn open(paths: &Paths) -> Self {
        let open = |paths: &[PathBuf]| -> Vec<File> {
            let files = paths.iter().map(File::open);
            files.flatten().collect()
        };
        Self {
            pressure: paths
                .pressure
                .as_ref()
                .and_then(|path| File::open(path).ok()),
            is_own: paths.is_own,
            events: open(&paths.events),
            failures: open(&paths.failures),
        }
    }

    /// What cannot be read counts nothing.
    fn read(&mut self) -> Counts {
        let stalled = self.pressure.as_mut().and_then(|file| stalled(&text(file)));
        let counted = self.events.iter_mut().chain(&mut self.failures);
        Counts {
            stalled: stalled.unwrap_or_default(),
            events: counted.fold(0, |sum, file| sum.saturating_add(events(&text(file)))),
        }
    }
}

/// All of a file, read again from its start.
fn text(file: &mut File) -> String {
    let mut text = String::new();
    let read = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| file.read_to_string(&mut text));
    read.map(|_| text).unwrap_or_default()
}

/// A file of pressure that wakes whoever polls it; `None` where the kernel, or the mount, does not let this process ask.
fn trigger(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).ok()?;
    let options = options.read(true).write(true).custom_flags(flags);
    let mut file = options.open(path).ok()?;
    file.write_all(TRIGGER).ok()?;
    Some(file)
}

/// A thread that looks after pressure until this is dropped.
#[derive(Debug)]
pub struct PressureWatch {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl PressureWatch {
    /// Calls `relieve` whenever memory is short, at most once a second. Where the system says nothing of pressure it is never
    /// called.
    ///
    /// # Errors
    /// When there is no descriptor or no thread for it.
    pub fn start(relieve: impl FnMut() + Send + 'static) -> io::Result<Self> {
        let paths = Paths::find(Path::new("/proc"), Path::new("/sys/fs/cgroup"));
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("memory-pressure".to_owned());
        let thread = thread.spawn(move || watch(&paths, &stopped, relieve))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for PressureWatch {
    fn drop(&mut self) {
        // A counter that is full wakes as well.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // It has said what was wrong, if it panicked.
            let _ = thread.join();
        }
    }
}

fn watch(paths: &Paths, stop: &OwnedFd, mut relieve: impl FnMut()) {
    let trigger = paths.pressure.as_deref().and_then(trigger);
    let mut files = Files::open(paths);
    let (mut before, mut since) = (files.read(), Instant::now());
    // The kernel tells of everything that counts.
    let is_told = trigger.is_some() && files.failures.is_empty();
    let timeout = (!is_told).then_some(INTERVAL);
    loop {
        let woken = wait(stop, trigger.as_ref(), &files.events, timeout);
        if woken == Woken::Stopped {
            return;
        }
        let (now, time) = (files.read(), Instant::now());
        // What the kernel was asked to tell was measured in its own window.
        let passed = match woken {
            Woken::Triggered => Duration::ZERO,
            _ => time.saturating_duration_since(since),
        };
        if is_short(before, now, passed, files.is_own, memory()) {
            relieve();
        }
        (before, since) = (now, time);
        if wait(stop, None, &[], Some(INTERVAL)) == Woken::Stopped {
            return;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    Stopped,
    /// Tasks stood still for so long as was asked.
    Triggered,
    /// An event, or nothing for as long as it should.
    Otherwise,
}

fn wait(
    stop: &OwnedFd,
    trigger: Option<&File>,
    events: &[File],
    timeout: Option<Duration>,
) -> Woken {
    let mut watched = vec![PollFd::new(stop, PollFlags::IN)];
    watched.extend(
        trigger
            .into_iter()
            .chain(events)
            .map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI)),
    );
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(&mut watched, timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Woken::Otherwise,
        // Nothing can be waited for.
        Err(_) => return Woken::Stopped,
    }
    let has = |index: usize, flags: PollFlags| {
        watched
            .get(index)
            .is_some_and(|fd| fd.revents().intersects(flags))
    };
    if has(0, PollFlags::all()) {
        Woken::Stopped
    } else if trigger.is_some() && has(1, PollFlags::PRI) {
        Woken::Triggered
    } else {
        Woken::Otherwise
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
    const SECOND: Duration = Duration::from_secs(1);

    fn counts(stalled_ms: u64, events: u64) -> Counts {
        Counts {
            stalled: Duration::from_millis(stalled_ms),
            events,
        }
    }

    #[test]
    fn memory_is_short_where_tasks_stand_still() {
        let since = |now, passed, is_own, left| is_short(counts(500, 7), now, passed, is_own, left);
        assert!(!since(counts(500, 7), SECOND, true, LITTLE), "nothing");
        assert!(!since(counts(599, 7), SECOND, true, LITTLE), "99 ms");
        assert!(since(counts(600, 7), SECOND, true, PLENTY), "100 ms");
        assert!(
            !since(counts(600, 7), SECOND, false, PLENTY),
            "others may stand still"
        );
        assert!(since(counts(600, 7), SECOND, false, LITTLE));
        // The kernel measured it.
        assert!(since(counts(501, 7), Duration::ZERO, true, PLENTY));
        assert!(!since(counts(500, 7), Duration::ZERO, true, PLENTY));
    }

    #[test]
    fn a_limit_that_the_page_cache_fills_is_no_pressure() {
        let since = |now, left| is_short(counts(0, 7), now, SECOND, true, left);
        assert!(!since(counts(0, 90), PLENTY));
        assert!(since(counts(0, 8), LITTLE));
        assert!(!since(counts(0, 7), LITTLE));
    }

    #[test]
    fn the_kernels_files_are_read() {
        let pressure = "some avg10=0.12 avg60=0.00 avg300=0.00 total=984133\n\
            full avg10=0.00 avg60=0.00 avg300=0.00 total=690832\n";
        assert_eq!(stalled(pressure), Some(Duration::from_micros(984_133)));
        assert_eq!(stalled("some avg10=1 total=much\n"), None);
        assert_eq!(stalled(""), None);
        let group = "low 1\nhigh 20\nmax 300\noom 4000\noom_kill 50000\noom_group_kill 0\n";
        assert_eq!(events(group), 320);
        assert_eq!(events("17\n"), 17, "of the first version");
        assert_eq!(events("high -\nmax 18446744073709551616\n"), 0);
    }

    /// What is found, and read, of these files.
    fn with(files: &[(&str, &str)]) -> (Vec<String>, bool, Counts) {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        let paths = Paths::find(&root.path().join("proc"), &root.path().join("cg"));
        let all = paths
            .pressure
            .iter()
            .chain(&paths.events)
            .chain(&paths.failures);
        let relative = |path: &PathBuf| {
            let path = path.strip_prefix(root.path()).expect("beneath it");
            path.display().to_string()
        };
        let found = all.map(relative).collect();
        let mut files = Files::open(&paths);
        let first = files.read();
        // Read again it is the same, from the same descriptors.
        assert_eq!(files.read(), first);
        (found, paths.is_own, first)
    }

    #[test]
    fn the_own_groups_figures_count_and_those_above() {
        let machine = ("proc/pressure/memory", "some avg10=0 total=5000\n");
        let group = ("proc/self/cgroup", "0::/a/b\n");
        let own = ("cg/a/b/memory.pressure", "some avg10=0 total=7000\n");
        let (events, above) = (
            ("cg/a/b/memory.events", "high 1\nmax 2\n"),
            ("cg/a/memory.events", "high 0\nmax 40\n"),
        );
        assert_eq!(
            with(&[machine, group, own, events, above]),
            (
                vec![own.0.into(), events.0.into(), above.0.into()],
                true,
                counts(7, 43)
            )
        );
        assert_eq!(
            with(&[machine, group]),
            (vec![machine.0.into()], false, counts(5, 0))
        );
        assert_eq!(with(&[]), (vec![], false, counts(0, 0)));
        // A container's own mount.
        let mounted = ("cg/memory.pressure", "some total=9000\n");
        assert_eq!(with(&[group, mounted]).2, counts(9, 0));
        let old = ("proc/self/cgroup", "4:memory,other:/x\n0::/\n");
        let failures = ("cg/memory/x/memory.failcnt", "12\n");
        assert_eq!(
            with(&[machine, old, failures]),
            (
                vec![machine.0.into(), failures.0.into()],
                false,
                counts(5, 12)
            )
        );
    }

    #[test]
    fn a_watch_ends_when_it_is_dropped() {
        // It joins its thread: one that did not end would hang here.
        drop(PressureWatch::start(|| {}).expect("a thread"));
    }
}
