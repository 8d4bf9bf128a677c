//! A `skep serve` of one's own, on free ports, ended when it is dropped.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read as _, Write as _},
    net::TcpStream,
    panic::resume_unwind,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use skep_host::private_bytes_of;

use crate::tree::{is_running, tree};

/// How long the processes that a server started may take to notice that it has ended.
const CHILDREN_END: Duration = Duration::from_secs(10);

/// A running server.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    http: String,
    grpc: String,
    metrics: String,
}

/// Why a server did not start.
#[derive(Debug)]
pub enum ServerError {
    /// The binary cannot be run.
    Spawn(io::Error),
    /// It ended before it was ready; what it logged.
    Ended(String),
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Spawn(error) => write!(f, "cannot run the server: {error}"),
            Self::Ended(log) => write!(f, "the server ended before it was ready:\n{log}"),
        }
    }
}

impl std::error::Error for ServerError {}

impl ServerProcess {
    /// Starts `binary serve REPOSITORY` on free ports of 127.0.0.1 and waits until it is ready. Without a flag that
    /// says otherwise models load from their own files, so that nothing depends on what an earlier server kept.
    ///
    /// # Errors
    /// [`ServerError`] when it cannot be run or does not become ready.
    pub fn start(binary: &Path, repository: &Path) -> Result<Self, ServerError> {
        Self::start_with(binary, repository, &[])
    }

    /// The same with further flags.
    ///
    /// # Errors
    /// As [`ServerProcess::start`].
    pub fn start_with(
        binary: &Path,
        repository: &Path,
        flags: &[&str],
    ) -> Result<Self, ServerError> {
        let mut command = Self::command(binary, repository, flags);
        Self::run(command.stderr(Stdio::piped()).spawn())
    }

    fn command(binary: &Path, repository: &Path, flags: &[&str]) -> Command {
        let mut command = Command::new(binary);
        command.arg("serve").arg(repository).args(flags);
        if !flags.iter().any(|flag| flag.starts_with("--weight-cache")) {
            command.arg("--weight-cache=off");
        }
        for port in ["--http-port", "--grpc-port", "--metrics-port"] {
            command.args([port, "0"]);
        }
        for address in ["--http-address", "--grpc-address", "--metrics-address"] {
            command.args([address, "127.0.0.1"]);
        }
        command
    }

    /// The same with the first `cores` cores of those that this process may use.
    ///
    /// # Errors
    /// As [`ServerProcess::start`].
    pub fn start_on(
        binary: &Path,
        repository: &Path,
        flags: &[&str],
        cores: u32,
    ) -> Result<Self, ServerError> {
        let mut command = Self::command(binary, repository, flags);
        let cores = usize::try_from(cores).unwrap_or(usize::MAX);
        // A process starts on the cores of the thread that starts it. The thread ends, so that only the server is bound.
        let spawned = thread::scope(|scope| {
            let bound = scope.spawn(|| {
                bind_to_first(cores)?;
                command.stderr(Stdio::piped()).spawn()
            });
            bound.join().unwrap_or_else(|panic| resume_unwind(panic))
        });
        Self::run(spawned)
    }

    /// Waits until the server is ready.
    fn run(spawned: io::Result<Child>) -> Result<Self, ServerError> {
        let mut child = spawned.map_err(ServerError::Spawn)?;
        let mut log = String::new();
        let (mut http, mut grpc, mut metrics, mut ready) = (None, None, None, false);
        let mut lines = BufReader::new(child.stderr.take().expect("piped above")).lines();
        for line in lines.by_ref().map_while(Result::ok) {
            http = http.or_else(|| address(&line, "Started HTTPService at "));
            grpc = grpc.or_else(|| address(&line, "Started GRPCInferenceService at "));
            metrics = metrics.or_else(|| address(&line, "Started Metrics Service at "));
            log.push_str(&line);
            log.push('\n');
            if line.contains("ready for requests") {
                ready = true;
                break;
            }
        }
        // Whatever it logs from now on is read and dropped, so that it never waits for a reader.
        thread::spawn(move || lines.for_each(drop));
        match (http, grpc, metrics) {
            (Some(http), Some(grpc), Some(metrics)) if ready => Ok(Self {
                child,
                http: format!("http://{http}"),
                grpc: format!("grpc://{grpc}"),
                metrics,
            }),
            _ => Err(ServerError::Ended(log)),
        }
    }

    /// Where HTTP is served.
    #[must_use]
    pub fn http(&self) -> &str {
        &self.http
    }

    /// Where gRPC is served.
    #[must_use]
    pub fn grpc(&self) -> &str {
        &self.grpc
    }

    /// The sum of a metric over all its lines; 0 where it has none.
    ///
    /// # Errors
    /// When the port does not answer.
    pub fn metric(&self, name: &str) -> io::Result<f64> {
        self.metric_with(name, "")
    }

    /// The sum of a metric over those of its lines that have a label, such as `kind="leased"`; 0 where there are none.
    ///
    /// # Errors
    /// When the port does not answer.
    pub fn metric_with(&self, name: &str, label: &str) -> io::Result<f64> {
        let mut stream = TcpStream::connect(&self.metrics)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let lines = text.lines().filter_map(|line| {
            let (metric, value) = line.rsplit_once(' ')?;
            let is_it = metric.split('{').next() == Some(name) && metric.contains(label);
            is_it.then(|| value.parse::<f64>().ok()).flatten()
        });
        Ok(lines.sum())
    }

    /// Bytes of memory that it and the processes that it started share with nobody; 0 where the system does not tell.
    #[must_use]
    pub fn private_bytes(&self) -> u64 {
        let processes = tree(self.pid()).unwrap_or_default();
        let held = processes.into_iter().filter_map(private_bytes_of);
        held.sum()
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// Lets the calling thread, and what it starts, use only the first of its cores.
fn bind_to_first(cores: usize) -> io::Result<()> {
    let all = sched_getaffinity(None)?;
    let mut first = CpuSet::new();
    let usable = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core));
    usable.take(cores).for_each(|core| first.set(core));
    sched_setaffinity(None, &first)?;
    Ok(())
}

/// CPU time that a process has used so far, all threads, user and system; 10 ms steps.
///
/// # Errors
/// When there is no such process, or its figures cannot be read.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is a name in brackets that may hold anything; user and system time are fields 14 and 15.
    let fields = text
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // Linux reports in hundredths of a second whatever its own clock.
    Ok(Duration::from_millis(ticks * 10))
}

impl Drop for ServerProcess {
    /// Ends it and waits until all that it started has ended too: whatever came next would share pages with it.
    fn drop(&mut self) {
        let started = tree(self.pid()).unwrap_or_default();
        // No client waits for its answers; an error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        let deadline = Instant::now() + CHILDREN_END;
        while started.iter().copied().any(is_running) {
            if Instant::now() > deadline {
                eprintln!("a process that the server started has outlived it by {CHILDREN_END:?}");
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn address(line: &str, before: &str) -> Option<String> {
    line.split_once(before)
        .map(|(_, rest)| rest.trim_end_matches('"').to_owned())
}
