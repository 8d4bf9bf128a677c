//! `--access-log`: a line for each request, written by a thread of its own.
//!
//! ```text
//! text  2026-11-29T10:15:30.123456Z 10.0.0.7:51442 HTTP/1.1 POST /v2/models/digits/infer 200 total_us=812 model=digits ...
//! json  {"time":"2026-11-29T10:15:30.123456Z","client":"10.0.0.7:51442","protocol":"HTTP/1.1",...}
//! ```
//!
//! Requests never wait for the file: a line that finds [`WAITING_LINES`] others waiting is left out, and the log says
//! how many were.

mod line;

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use skep_server::{AccessLog, AccessRecord};

/// Lines that wait for the file at most: some hundred milliseconds of the busiest server.
const WAITING_LINES: usize = 16 << 10;

/// How long the thread lets lines gather behind the first one. Woken for each line, it cost requests more CPU time than
/// the lines themselves.
const GATHER: Duration = Duration::from_millis(5);

/// Lines that are written before the file is looked after again: flushed, opened again if that was asked for.
const LINES_A_TURN: usize = 1024;

/// How often the log speaks of lines that were left out, or could not be written.
const QUIET: Duration = Duration::from_secs(60);

/// How long the end of a server waits for the last lines.
const LAST_LINES: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(next_help_heading = "Logs")]
pub(crate) struct AccessLogArgs {
    /// Write a line for each request over HTTP and gRPC to this file; `-` is standard output (Skep's own)
    #[arg(long, value_name = "PATH")]
    access_log: Option<PathBuf>,
    /// The format of the access log (Skep's own)
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    access_log_format: AccessLogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AccessLogFormat {
    /// Words and `name=value`
    Text,
    /// One JSON object a line
    Json,
}

impl AccessLogArgs {
    /// Opens the file and starts the thread; `None` where no access log is asked for.
    pub(crate) fn start(&self) -> anyhow::Result<Option<Arc<AccessLogFile>>> {
        let Some(path) = &self.access_log else {
            return Ok(None);
        };
        let sink = LogSink::open(path)
            .with_context(|| format!("cannot open the access log `{}`", path.display()))?;
        let (sender, lines) = sync_channel(WAITING_LINES);
        let reopen = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&reopen);
        let path = path.clone();
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write(&lines, &path, sink, &asked))?;
        Ok(Some(Arc::new(AccessLogFile {
            lines: sender,
            format: self.access_log_format,
            left_out: AtomicU64::new(0),
            said: Mutex::default(),
            reopen,
        })))
    }
}

/// What the writing thread gets.
enum LogRequest {
    Line(String),
    /// Everything before this is written when it is answered.
    Flush(SyncSender<()>),
}

/// The access log of a server.
#[derive(Debug)]
pub(crate) struct AccessLogFile {
    lines: SyncSender<LogRequest>,
    format: AccessLogFormat,
    left_out: AtomicU64,
    /// How many of them the log has spoken of, and when.
    said: Mutex<Option<(u64, Instant)>>,
    /// Whether the file is to be opened again before the next line.
    reopen: Arc<AtomicBool>,
}

impl AccessLogFile {
    /// Opens the file again before the next line: it was moved away.
    pub(crate) fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
    }

    /// Waits until the lines so far are written, for a while at most.
    pub(crate) fn flush(&self) {
        let end = Instant::now() + LAST_LINES;
        let (written, is_written) = sync_channel(1);
        let mut request = LogRequest::Flush(written);
        while let Err(TrySendError::Full(returned)) = self.lines.try_send(request) {
            if Instant::now() >= end {
                break;
            }
            request = returned;
            thread::sleep(LAST_LINES / 50);
        }
        let left = end.saturating_duration_since(Instant::now());
        let _ = is_written.recv_timeout(left);
        self.say_left_out(Duration::ZERO);
    }

    /// Says how many lines were left out so far, if that grew and was not said within `quiet`.
    fn say_left_out(&self, quiet: Duration) {
        let left_out = self.left_out.load(Ordering::Relaxed);
        let mut said = skep_host::lock(&self.said);
        let is_recent = said.is_some_and(|(_, at)| at.elapsed() < quiet);
        if is_recent || left_out == said.map_or(0, |(count, _)| count) {
            return;
        }
        *said = Some((left_out, Instant::now()));
        // The log may be a pipe that is full.
        drop(said);
        tracing::warn!(
            "the access log dropped {left_out} lines: requests arrive faster than its file accepts lines"
        );
    }
}

impl AccessLog for AccessLogFile {
    fn record(&self, record: &AccessRecord<'_>) {
        let line = match self.format {
            AccessLogFormat::Text => line::text(record, Timestamp::now()),
            AccessLogFormat::Json => line::object(record, Timestamp::now()).to_string() + "\n",
        };
        if let Err(TrySendError::Full(_)) = self.lines.try_send(LogRequest::Line(line)) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            self.say_left_out(QUIET);
        }
    }
}

/// Where lines go.
enum LogSink {
    Output(io::Stdout),
    File(BufWriter<File>),
}

impl LogSink {
    fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Output(io::stdout()));
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self::File(BufWriter::new(file)))
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Output(output) => output,
            Self::File(file) => file,
        }
    }
}

/// Writes lines until all senders are gone; flushes when no line waits.
fn write(lines: &Receiver<LogRequest>, path: &Path, mut sink: LogSink, reopen: &AtomicBool) {
    let mut said: Option<Instant> = None;
    let mut say = |error: &io::Error| {
        if said.is_none_or(|last| last.elapsed() > QUIET) {
            tracing::error!("cannot write the access log `{}`: {error}", path.display());
            said = Some(Instant::now());
        }
    };
    while let Ok(request) = lines.recv() {
        if matches!(request, LogRequest::Line(_)) {
            thread::sleep(GATHER);
        }
        if reopen.swap(false, Ordering::Acquire) {
            match LogSink::open(path) {
                // Dropping the old one writes what it still holds.
                Ok(opened) => sink = opened,
                Err(error) => say(&error),
            }
        }
        let mut next = Some(request);
        let mut outcome = Ok(());
        let mut waiting = Vec::new();
        let mut left = LINES_A_TURN;
        while let Some(request) = next {
            match request {
                LogRequest::Line(line) => {
                    outcome = outcome.and(sink.writer().write_all(line.as_bytes()));
                }
                LogRequest::Flush(written) => waiting.push(written),
            }
            left -= 1;
            next = (left > 0).then(|| lines.try_recv().ok()).flatten();
        }
        if let Err(error) = outcome.and_then(|()| sink.writer().flush()) {
            say(&error);
        }
        for written in waiting {
            let _ = written.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{line::tests::record, *};

    #[test]
    fn lines_before_a_flush_are_in_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, moved) = (
            directory.path().join("access"),
            directory.path().join("old"),
        );
        let args = AccessLogArgs {
            access_log: Some(path.clone()),
            access_log_format: AccessLogFormat::Text,
        };
        let log = args.start().expect("a file").expect("asked for");
        let lines = |path: &Path| {
            let text = std::fs::read_to_string(path).expect("a file");
            text.lines().count()
        };
        for _ in 0..3 {
            log.record(&record(None, skep_server::AccessStatus::Http(200), None));
        }
        log.flush();
        assert_eq!(lines(&path), 3);
        std::fs::rename(&path, &moved).expect("moved");
        log.record(&record(None, skep_server::AccessStatus::Http(200), None));
        log.flush();
        log.reopen();
        log.record(&record(None, skep_server::AccessStatus::Http(200), None));
        log.flush();
        assert_eq!((lines(&moved), lines(&path)), (4, 1));
    }
}
