//! `skep bake MODEL...`: what the first load of a model makes, made ahead of time.

use std::{
    io::{self, IsTerminal as _, Write as _},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, SyncSender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use skep_runtime::{BakeOutcome, Baked, LoadOptions, MetricsOptions};

use crate::{
    backends,
    logging::{self, LogFormat, LogOptions},
    output::{OutputError, outln},
    units::human,
    weights::{CacheArgs, in_process},
};

#[derive(Debug, Args)]
pub(crate) struct BakeArgs {
    /// Model files, directories of models, repositories
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,
    /// Print one JSON document: a list of models with version, state, bytes, seconds, reason
    #[arg(long)]
    json: bool,
    /// As for `skep serve`
    #[arg(long, value_name = "PATH")]
    onnxruntime_library: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Exits with 0 unless a model is broken; one that is loaded as it is is none.
pub(crate) fn run(args: &BakeArgs) -> anyhow::Result<ExitCode> {
    logging::start(LogOptions {
        verbose: 0,
        info: false,
        warning: true,
        error: true,
        file: None,
        format: LogFormat::Default,
    })?;
    let Some(cache) = args.cache.open()? else {
        bail!("there is no cache to bake into\n  try: skep bake --weight-cache DIR MODEL");
    };
    let options = LoadOptions {
        auto_complete: true,
        backend_settings: Vec::new(),
        cores: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        config_name: None,
        retries: 0,
        metrics: MetricsOptions::default(),
        waiting_limit: Arc::default(),
        hold_until: 0,
        cpu: None,
        weights: Some(in_process(cache)),
        request_memory: None,
        sandbox_load_limit: None,
    };
    let backends = backends::all(args.onnxruntime_library.clone(), false)?;
    let mut rows = Vec::new();
    for path in &args.models {
        let first = rows.len();
        let progress = Progress::of(path);
        rows.extend(skep_runtime::bake(path, &options, &backends));
        drop(progress);
        if !args.json {
            rows[first..].iter().try_for_each(print)?;
        }
    }
    if args.json {
        let rows: Vec<Value> = rows.iter().map(to_json).collect();
        outln!("{}", serde_json::to_string_pretty(&rows)?)?;
    }
    let fine = rows.iter().all(|row| row.outcome.is_ok());
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A line on a terminal that says what goes on, and for how long; gone when it is dropped.
struct Progress {
    /// Dropped first, which ends the thread.
    over: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How often the line changes.
const STEP: Duration = Duration::from_millis(200);

impl Progress {
    fn of(path: &Path) -> Self {
        let (over, is_over) = mpsc::sync_channel::<()>(0);
        let path = path.display().to_string();
        let show = move || {
            let began = Instant::now();
            let mut error = io::stderr();
            while is_over.recv_timeout(STEP) == Err(RecvTimeoutError::Timeout) {
                let seconds = began.elapsed().as_secs_f64();
                // Nobody has to see it.
                let _ = write!(error, "\r\x1b[Kbaking {path}: {seconds:.1} s");
                let _ = error.flush();
            }
            let _ = write!(error, "\r\x1b[K");
        };
        let is_shown = io::stderr().is_terminal();
        let thread = is_shown.then(|| thread::Builder::new().spawn(show).ok());
        Self {
            over: Some(over),
            thread: thread.flatten(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.over = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn print(row: &BakeOutcome) -> Result<(), OutputError> {
    let BakeOutcome {
        path,
        version,
        outcome,
        took,
    } = row;
    let version = version.map_or_else(String::new, |version| format!(" version {version}"));
    let (state, what) = match outcome {
        Ok(Baked::Made { bytes }) => (
            "baked ",
            format!("{} in {:.1} s", human(*bytes), took.as_secs_f64()),
        ),
        Ok(Baked::Known { bytes }) => ("known ", human(*bytes)),
        Ok(Baked::AsItIs(why)) => ("as is ", why.clone()),
        Err(error) => ("failed", error.to_string().trim_end().to_owned()),
    };
    outln!("{state}  {}{version}  {what}", path.display())
}

fn to_json(row: &BakeOutcome) -> Value {
    let BakeOutcome {
        path,
        version,
        outcome,
        took,
    } = row;
    let (state, bytes, reason) = match outcome {
        Ok(Baked::Made { bytes }) => ("baked", Some(*bytes), None),
        Ok(Baked::Known { bytes }) => ("known", Some(*bytes), None),
        Ok(Baked::AsItIs(why)) => ("as_is", None, Some(why.clone())),
        Err(error) => (
            "failed",
            None,
            Some(error.to_string().trim_end().to_owned()),
        ),
    };
    json!({
        "path": path.display().to_string(),
        "version": version.map(|version| version.to_string()),
        "state": state,
        "bytes": bytes,
        "seconds": took.as_secs_f64(),
        "reason": reason,
    })
}
