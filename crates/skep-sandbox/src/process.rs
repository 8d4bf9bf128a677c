//! Starts, watches and kills a worker process.

use std::{
    ffi::OsString,
    io,
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, SyncSender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use skep_host::bind_process;
use skep_types::CpuSet;

use crate::{
    log::{self, LogEntry},
    workers::CountedWorker,
};

/// The subcommand that makes the executable a worker process.
pub const COMMAND: &str = "sandbox";

/// A worker process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    handle: OwnedFd,
    number: u32,
    /// Set before it is killed on purpose, so that its end is not logged.
    dismissed: Arc<AtomicBool>,
    /// Set when its end is known.
    ended: Arc<AtomicBool>,
    /// Set if it runs a model.
    counted: Option<CountedWorker>,
    /// Passes its log on, and waits for its end.
    watcher: Option<JoinHandle<Option<ExitStatus>>>,
}

impl Process {
    /// Starts one for the model `model`. Its standard input is its end of the connection. It gets only the variables in
    /// `environment`, and no descriptors except the connection and its log. It runs on `cpus` only, if there are some: it
    /// starts threads once it is told what to load.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn start(
        model: &str,
        environment: &[(OsString, OsString)],
        cpus: Option<&CpuSet>,
    ) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // The file that runs now, even if it was replaced since.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("skep")
            .arg(COMMAND)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A terminal's Ctrl-C is for the server, which lets its workers finish.
            .process_group(0);
        let mut child = spawn(command)?;
        let number = child.id();
        let opened = Pid::from_raw(number.cast_signed()).ok_or(io::ErrorKind::NotFound.into());
        let opened =
            opened.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).map_err(Into::into));
        let bound = cpus.map_or(Ok(()), |cpus| bind_process(number, cpus.numbers()));
        let handle = match opened.and_then(|handle| bound.map(|()| handle)) {
            Ok(handle) => handle,
            Err(error) => {
                child.kill()?;
                child.wait()?;
                return Err(error);
            }
        };
        let (dismissed, ended) = (Arc::default(), Arc::default());
        let watch = ProcessWatch {
            model: model.to_owned(),
            number,
            dismissed: Arc::clone(&dismissed),
            ended: Arc::clone(&ended),
        };
        // The kernel shows 15 bytes of a name.
        let thread = thread::Builder::new().name("worker-watcher".to_owned());
        let mut process = Self {
            handle,
            number,
            dismissed,
            ended,
            counted: None,
            watcher: None,
        };
        let watcher = thread.spawn(move || watch.over(child));
        // Without a watcher the process is dropped here, which kills it.
        process.watcher = Some(watcher?);
        Ok((process, ours))
    }

    /// Counts it among the processes that run models.
    pub(crate) fn count(&mut self) {
        self.counted = Some(CountedWorker::new(self.number));
    }

    /// Whether its end is known.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// A handle to kill it while another thread waits for it.
    pub(crate) fn handle(&self) -> io::Result<OwnedFd> {
        self.handle.try_clone()
    }

    fn kill(&self) {
        kill(&self.handle);
    }

    /// CPU time since its start; `None` if the system does not say.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        cpu_time(self.number)
    }

    /// Kills it from another thread, without waiting for its end.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn killer(&self) -> io::Result<Killer> {
        self.handle.try_clone().map(Killer)
    }

    /// Kills it without a log line, unless it has ended.
    pub(crate) fn dismiss(&mut self) {
        self.dismissed.store(true, Ordering::Relaxed);
        self.bury();
    }

    /// Kills it unless it has ended. Returns how it ended, for messages.
    pub(crate) fn bury(&mut self) -> String {
        self.kill();
        let status = self.watcher.take().and_then(|watcher| watcher.join().ok());
        self.counted = None;
        status
            .flatten()
            .map_or_else(|| "in an unknown way".to_owned(), describe)
    }
}

/// CPU time of a process, by its clock.
#[allow(
    unsafe_code,
    reason = "clocks of other processes have no safe interface (invariant 5)"
)]
pub(crate) fn cpu_time(number: u32) -> Option<Duration> {
    let mut clock = 0;
    // SAFETY: the pointer is valid for writing.
    let status = unsafe { libc::clock_getcpuclockid(number.cast_signed(), &raw mut clock) };
    if status != 0 {
        return None;
    }
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: as above.
    let status = unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) };
    if status != 0 {
        return None;
    }
    // SAFETY: a successful call fills it.
    let time = unsafe { time.assume_init() };
    let nanos = u32::try_from(time.tv_nsec).ok()?;
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, nanos))
}

/// Kills a worker process, unless it has ended.
#[derive(Debug)]
pub(crate) struct Killer(OwnedFd);

impl Killer {
    pub(crate) fn kill(&self) {
        kill(&self.0);
    }
}

fn kill(handle: &OwnedFd) {
    // It may have ended already.
    let _was_there = pidfd_send_signal(handle, Signal::KILL).is_ok();
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.watcher.is_some() {
            self.dismiss();
        } else {
            self.kill();
        }
    }
}

/// `by signal 9 (SIGKILL)`, `with exit code 1`.
fn describe(status: ExitStatus) -> String {
    let Some(number) = status.signal() else {
        return format!("with exit code {}", status.code().unwrap_or_default());
    };
    let name = match number {
        libc::SIGILL => " (SIGILL)",
        libc::SIGTRAP => " (SIGTRAP)",
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGBUS => " (SIGBUS)",
        libc::SIGFPE => " (SIGFPE)",
        libc::SIGKILL => " (SIGKILL)",
        libc::SIGSEGV => " (SIGSEGV)",
        libc::SIGTERM => " (SIGTERM)",
        libc::SIGSYS => " (SIGSYS)",
        _ => "",
    };
    format!("by signal {number}{name}")
}

/// The thread that watches a worker.
struct ProcessWatch {
    model: String,
    number: u32,
    dismissed: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl ProcessWatch {
    /// Passes on the worker's log until the worker closes it, and waits for its end.
    fn over(&self, mut child: Child) -> Option<ExitStatus> {
        if let Some(log) = child.stderr.take() {
            log::pass_on(log, Instant::now, |entry| self.say(entry));
        }
        let status = child.wait().ok()?;
        self.ended.store(true, Ordering::Relaxed);
        // A worker that exits with 0 was told to, or has reported why.
        if !status.success() && !self.dismissed.load(Ordering::Relaxed) {
            let (model, number) = (&self.model, self.number);
            tracing::error!(
                "worker process {number} of model `{model}` ended {}",
                describe(status)
            );
        }
        Some(status)
    }

    /// Logs a line at the level that it begins with. A line without one comes from a library or a panic.
    fn say(&self, entry: LogEntry<'_>) {
        let (model, number) = (&self.model, self.number);
        let line = match entry {
            LogEntry::Line(line) => line,
            LogEntry::LeftOut(count) => {
                tracing::warn!(
                    "worker process {number} of model `{model}` logs too much: {count} lines were dropped"
                );
                return;
            }
        };
        let (level, text) = line.split_once(' ').unwrap_or(("", line));
        let whole = shown(line);
        match level {
            "ERROR" => tracing::error!(
                "worker process {number} of model `{model}`: {}",
                shown(text)
            ),
            "INFO" => tracing::info!(
                "worker process {number} of model `{model}`: {}",
                shown(text)
            ),
            "WARN" => tracing::warn!(
                "worker process {number} of model `{model}`: {}",
                shown(text)
            ),
            _ if whole.is_empty() => {}
            _ => tracing::warn!("worker process {number} of model `{model}`: {whole}"),
        }
    }
}

/// With control characters a worker could forge log lines.
fn shown(text: &str) -> String {
    text.trim().replace(char::is_control, " ")
}

/// A command to start, and the channel for its process.
type SpawnRequest = (Command, SyncSender<io::Result<Child>>);

/// Starts a process on a thread that lives as long as the server: the kernel kills a worker when the *thread* that
/// started it ends.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Option<SyncSender<SpawnRequest>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, queue) = mpsc::sync_channel::<SpawnRequest>(1);
        let body = move || {
            for (mut command, reply) in queue {
                // The caller may be gone.
                drop(reply.send(command.spawn()));
            }
        };
        let thread = thread::Builder::new().name("worker-spawner".to_owned());
        thread.spawn(body).ok().map(|_| orders)
    });
    let gone = || io::Error::other("cannot start the thread that starts worker processes");
    let (reply, started) = mpsc::sync_channel(1);
    let orders = spawner.as_ref().ok_or_else(gone)?;
    orders.send((command, reply)).map_err(|_| gone())?;
    started.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_described() {
        let status = |raw| describe(ExitStatus::from_raw(raw));
        assert_eq!(status(9), "by signal 9 (SIGKILL)");
        assert_eq!(status(3 << 8), "with exit code 3");
    }
}
