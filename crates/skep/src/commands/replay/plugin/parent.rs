//! A plug-in on its bench, as the replay sees it.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    os::{fd::AsRawFd, unix::fs::FileExt, unix::process::ExitStatusExt},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context;
use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::{FdFlags, fcntl_setfd},
};
use skep_lab::BenchFigures;
use skep_trace::TraceEvent;

use super::{
    COMMAND, EVENT_BYTES, PluginChoice,
    documents::{PluginAnswer, PluginOrder},
};
use crate::commands::replay::lab_source::SourceSetting;

/// A plug-in that does not get to its next event for so long is ended.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// The same once it has answered.
const SHORT_PERIOD: Duration = Duration::from_millis(10);

/// See the module.
pub(in crate::commands::replay) struct PluginBench {
    pub(in crate::commands::replay) name: String,
    input: Option<BufWriter<ChildStdin>>,
    answer: JoinHandle<String>,
    progress: Arc<Progress>,
    /// Dropped when the answer is complete, and how the child ended.
    watch: (mpsc::Sender<()>, JoinHandle<io::Result<ExitStatus>>),
}

/// How far a child is.
struct Progress {
    file: File,
    /// Events that it was sent.
    sent: AtomicU64,
    /// It was sent all.
    is_complete: AtomicBool,
    /// It was ended for taking too long.
    is_stuck: AtomicBool,
}

impl Progress {
    /// The number of the event that it is at, from 1.
    fn event(&self) -> u64 {
        let mut bytes = [0; 8];
        // Nothing is written before the first event.
        match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => u64::from_le_bytes(bytes),
            Err(_) => 0,
        }
    }

    /// Waits for the child, and ends it when it does not get on. `ended` is dropped when the child's answer is complete.
    fn watch(&self, mut child: Child, ended: &mpsc::Receiver<()>) -> io::Result<ExitStatus> {
        let (mut last, mut waited) = (0, Duration::ZERO);
        loop {
            let period = match ended.recv_timeout(PERIOD) {
                Err(RecvTimeoutError::Timeout) => PERIOD,
                _ => {
                    thread::sleep(SHORT_PERIOD);
                    SHORT_PERIOD
                }
            };
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            let event = self.event();
            let has_work = self.is_complete.load(Ordering::Acquire)
                || event < self.sent.load(Ordering::Acquire);
            waited = match has_work && event == last {
                true => waited + period,
                false => Duration::ZERO,
            };
            last = event;
            if waited >= PATIENCE {
                self.is_stuck.store(true, Ordering::Release);
                child.kill()?;
                return child.wait();
            }
        }
    }
}

impl PluginBench {
    /// Starts a process for the plug-in.
    pub(in crate::commands::replay) fn start(
        choice: &PluginChoice,
        source: &SourceSetting,
    ) -> anyhow::Result<Self> {
        let file = File::from(memfd_create("progress", MemfdFlags::CLOEXEC)?);
        // The child inherits it.
        fcntl_setfd(&file, FdFlags::empty())?;
        let order = PluginOrder {
            library: choice.library.clone(),
            options: choice.options.clone(),
            source: source.into(),
            progress: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
        };
        let binary = std::env::current_exe().context("where this program lies")?;
        let mut child = Command::new(binary)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a process for a plug-in")?;
        fcntl_setfd(&file, FdFlags::CLOEXEC)?;
        let input = child.stdin.take().map(BufWriter::new);
        let output = child.stdout.take();
        let answer = thread::spawn(move || {
            let mut text = String::new();
            // What is not text is no answer; the end of the process says why.
            let _ = output.map(|mut output| output.read_to_string(&mut text));
            text
        });
        let progress = Arc::new(Progress {
            file,
            sent: AtomicU64::new(0),
            is_complete: AtomicBool::new(false),
            is_stuck: AtomicBool::new(false),
        });
        // Bounded: nothing is ever sent; its end is the signal.
        let (end, ended) = mpsc::channel();
        let watched = Arc::clone(&progress);
        let watch = thread::spawn(move || watched.watch(child, &ended));
        let mut bench = Self {
            name: choice.text.clone(),
            input,
            answer,
            progress,
            watch: (end, watch),
        };
        let mut line = serde_json::to_vec(&order)?;
        line.push(b'\n');
        bench.send(&line);
        Ok(bench)
    }

    /// Sends bytes; a child that has ended gets no more.
    fn send(&mut self, bytes: &[u8]) {
        if let Some(input) = &mut self.input
            && input.write_all(bytes).is_err()
        {
            self.input = None;
        }
    }

    /// Passes an event on.
    pub(in crate::commands::replay) fn take(&mut self, event: TraceEvent) {
        let (kind, block, bytes, stream) = match event {
            TraceEvent::Malloc {
                block,
                bytes,
                stream,
            } => (1, block.0, bytes, stream),
            TraceEvent::Free { block } => (0, block.0, 0, 0),
        };
        let mut record = [0; EVENT_BYTES];
        record[0] = kind;
        for (at, number) in [(1, u64::from(block)), (9, bytes), (17, stream)] {
            record[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        self.send(&record);
        self.progress.sent.fetch_add(1, Ordering::Release);
    }

    /// What came of it, or what went wrong.
    pub(in crate::commands::replay) fn finish(mut self) -> Result<BenchFigures, String> {
        // Writes what is left and closes the pipe.
        drop(self.input.take());
        self.progress.is_complete.store(true, Ordering::Release);
        let answer = self.answer.join().unwrap_or_default();
        let (end, watch) = self.watch;
        drop(end);
        let status = watch.join();
        let event = self.progress.event();
        match serde_json::from_str(&answer) {
            Ok(PluginAnswer::Figures(figures)) => return Ok(figures.figures()),
            Ok(PluginAnswer::Failed(why)) => return Err(why),
            Err(_) => {}
        }
        if self.progress.is_stuck.load(Ordering::Acquire) {
            let seconds = PATIENCE.as_secs();
            return Err(format!(
                "it did not get on for {seconds} seconds at event {event}, and was ended"
            ));
        }
        Err(match status {
            Ok(Ok(status)) => match status.signal() {
                Some(signal) => format!("it crashed with signal {signal} at event {event}"),
                None => format!("it ended its process with {status} at event {event}"),
            },
            _ => format!("its process was lost at event {event}"),
        })
    }
}
