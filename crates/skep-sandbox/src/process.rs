//! A worker process: started, watched, ended.

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

use crate::log::{self, LogEntry};

/// The command line's word that makes the executable a worker process.
pub const COMMAND: &str = "sandbox";

/// A worker process. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Process {
    handle: OwnedFd,
    number: u32,
    /// Set before it is ended on purpose: nobody needs to hear of it then.
    dismissed: Arc<AtomicBool>,
    /// Set when it was waited for.
    ended: Arc<AtomicBool>,
    /// Passes its log on, and waits for its end.
    watcher: Option<JoinHandle<Option<ExitStatus>>>,
}

impl Process {
    /// Starts one for the model `model`; its end of the conversation is its standard input. It gets no environment but
    /// `environment`, and no descriptor but that and its log.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn start(
        model: &str,
        environment: &[(OsString, OsString)],
    ) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // The file that runs now, whatever has become of its name.
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
        let handle = match opened {
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
            watcher: None,
        };
        let watcher = thread.spawn(move || watch.over(child));
        // Where it cannot be watched it is dropped here, which ends it.
        process.watcher = Some(watcher?);
        Ok((process, ours))
    }

    /// Whether it is known to have ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// For whoever may want to end it while somebody else waits for it.
    pub(crate) fn handle(&self) -> io::Result<OwnedFd> {
        self.handle.try_clone()
    }

    fn kill(&self) {
        kill(&self.handle);
    }

    /// CPU time that it has taken since its start; `None` where the system does not say.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        cpu_time(self.number)
    }

    /// What kills it from another thread, without waiting for its end.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn killer(&self) -> io::Result<Killer> {
        self.handle.try_clone().map(Killer)
    }

    /// Ends it without a word, if it has not ended.
    pub(crate) fn dismiss(&mut self) {
        self.dismissed.store(true, Ordering::Relaxed);
        self.bury();
    }

    /// Ends it if it has not ended; how it ended, for people.
    pub(crate) fn bury(&mut self) -> String {
        self.kill();
        let status = self.watcher.take().and_then(|watcher| watcher.join().ok());
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
fn cpu_time(number: u32) -> Option<Duration> {
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

/// Kills a worker process; nothing happens where that has ended.
#[derive(Debug)]
pub(crate) struct Killer(OwnedFd);

impl Killer {
    pub(crate) fn kill(&self) {
        kill(&self.0);
    }
}

fn kill(handle: &OwnedFd) {
    // One that has ended takes no signal any more.
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

/// What the thread that watches a worker knows.
struct ProcessWatch {
    model: String,
    number: u32,
    dismissed: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl ProcessWatch {
    /// Passes on the worker's log until that closes, which it does when the worker ends, and waits for the end.
    fn over(&self, mut child: Child) -> Option<ExitStatus> {
        if let Some(log) = child.stderr.take() {
            log::pass_on(log, Instant::now, |entry| self.say(entry));
        }
        let status = child.wait().ok()?;
        self.ended.store(true, Ordering::Relaxed);
        // One that ends well was told to, or has said why.
        if !status.success() && !self.dismissed.load(Ordering::Relaxed) {
            let (model, number) = (&self.model, self.number);
            tracing::error!(
                "worker process {number} of model `{model}` ended {}",
                describe(status)
            );
        }
        Some(status)
    }

    /// Logs a line as the level says that it begins with. A line without one comes from a library or a panic.
    fn say(&self, entry: LogEntry<'_>) {
        let (model, number) = (&self.model, self.number);
        let line = match entry {
            LogEntry::Line(line) => line,
            LogEntry::LeftOut(count) => {
                tracing::warn!(
                    "worker process {number} of model `{model}` logs too much: {count} lines were left out"
                );
                return;
            }
        };
        let (level, text) = line.split_once(' ').unwrap_or(("", line));
        // Control characters would let a worker write lines of its own.
        let shown = |text: &str| text.trim().replace(char::is_control, " ");
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

/// A command to start, and where its process goes.
type SpawnRequest = (Command, SyncSender<io::Result<Child>>);

/// Starts a process on a thread that lives as long as this one's process: the kernel ends a worker when the *thread*
/// that started it ends.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Option<SyncSender<SpawnRequest>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, queue) = mpsc::sync_channel::<SpawnRequest>(1);
        let body = move || {
            for (mut command, reply) in queue {
                // Nobody waits for it if that end is gone.
                drop(reply.send(command.spawn()));
            }
        };
        let thread = thread::Builder::new().name("worker-spawner".to_owned());
        thread.spawn(body).ok().map(|_| orders)
    });
    let gone = || io::Error::other("no thread could be started that starts worker processes");
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
