//! `skep bake MODEL...`: what the first load of a model makes, made ahead of time.

use std::{num::NonZeroUsize, path::PathBuf, process::ExitCode, sync::Arc, thread};

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use skep_runtime::{BakeOutcome, Bakeable, Baked, LoadOptions, MetricsOptions};
use skep_types::ModelVersion;
use skep_weights::WeightSource;

use crate::{
    allocator_libraries::AllocatorLibraries,
    axis, backends,
    colour::{Colour, Colours},
    commands::sandbox,
    logging::{self, LogFormat, LogOptions},
    output::{OutputError, errln, outln},
    progress::Progress,
    table::letters,
    units::human,
    weights::{CacheArgs, in_process},
};

#[derive(Debug, Args)]
pub(crate) struct BakeArgs {
    /// Model files, model directories or repositories
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,
    /// Print one JSON document: a list of models with version, state, bytes, seconds, reason
    #[arg(long)]
    json: bool,
    /// As for `skep serve`
    #[arg(long, value_name = "PATH")]
    onnxruntime_library: Option<PathBuf>,
    #[command(flatten)]
    allocators: AllocatorLibraries,
    /// As for `skep serve`
    #[arg(long)]
    gpu_as_cpu: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Exits with 0 unless a model fails. A model that needs no baking is not a failure.
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
    let options = options(args.gpu_as_cpu, Some(in_process(cache)));
    args.allocators.open()?;
    let backends = backends::all(args.onnxruntime_library.clone(), false)?;
    let (mut models, mut empty) = (Vec::new(), false);
    for path in &args.models {
        let found = skep_runtime::bakeable(path);
        if found.is_empty() {
            errln!(
                "error: `{}` holds no model, expected a model's file or directory, or a repository",
                path.display()
            );
            empty = true;
        }
        models.extend(found);
    }
    let widths = Widths::of(&models);
    let progress = Progress::new("baking", models.len(), !args.json);
    let mut rows = Vec::new();
    for Bakeable { path, .. } in &models {
        let first = rows.len();
        // Of a long path the end, where paths differ.
        progress.name(axis::ending(&path.display().to_string(), NAME_LETTERS));
        rows.extend(skep_runtime::bake(path, &options, &backends));
        progress.step();
        if !args.json {
            rows[first..]
                .iter()
                .try_for_each(|row| print(row, widths))?;
        }
    }
    drop(progress);
    if args.json {
        let rows: Vec<Value> = rows.iter().map(to_json).collect();
        outln!("{}", serde_json::to_string_pretty(&rows)?)?;
    }
    let fine = !empty && rows.iter().all(|row| row.outcome.is_ok());
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// How models are loaded to be baked.
fn options(gpu_as_cpu: bool, weights: Option<WeightSource>) -> LoadOptions {
    LoadOptions {
        auto_complete: true,
        backend_settings: Vec::new(),
        cores: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        config_name: None,
        gpu_as_cpu,
        retries: 0,
        metrics: MetricsOptions::default(),
        waiting_limit: Arc::default(),
        hold_until: 0,
        cpu: None,
        devices: None,
        profiles: None,
        response_cache: None,
        rate_limiter: None,
        weights,
        request_memory: None,
        sandbox_load_limit: Some(sandbox::DEFAULT_LOAD_LIMIT),
    }
}

/// What a terminal of 80 columns has room for beside the bar.
const NAME_LETTERS: usize = 32;

/// How wide columns are, of lines that are printed one after the other.
#[derive(Debug, Clone, Copy)]
struct Widths {
    path: usize,
    version: usize,
}

impl Widths {
    fn of(models: &[Bakeable]) -> Self {
        let paths = models
            .iter()
            .map(|model| letters(&model.path.display().to_string()));
        let versions = models.iter().flat_map(|model| model.versions.iter());
        Self {
            path: paths.max().unwrap_or_default(),
            version: versions.map(|v| named(*v).len()).max().unwrap_or_default(),
        }
    }
}

fn named(version: ModelVersion) -> String {
    format!("version {version}")
}

fn print(row: &BakeOutcome, widths: Widths) -> Result<(), OutputError> {
    let BakeOutcome {
        path,
        version,
        outcome,
        took,
    } = row;
    let version = version.map_or_else(String::new, named);
    let seconds = took.as_secs_f64();
    let (state, colour, what) = match outcome {
        Ok(Baked::Made { bytes }) => (
            "baked ",
            Some(Colour::Green),
            format!("{:>8} in {seconds:.1} s", human(*bytes)),
        ),
        Ok(Baked::Known { bytes }) => (
            "known ",
            Some(Colour::Green),
            format!("{:>8}", human(*bytes)),
        ),
        Ok(Baked::WithoutForm(why)) => ("as is ", None, why.clone()),
        Err(error) => (
            "failed",
            Some(Colour::Red),
            error.to_string().trim_end().to_owned(),
        ),
    };
    let state = colour.map_or_else(
        || state.to_owned(),
        |colour| Colours::of_output().paint(colour, state),
    );
    let room = widths.path - letters(&path.display().to_string());
    let width = widths.version;
    outln!(
        "{state}  {}{:room$}  {version:width$}  {what}",
        path.display(),
        ""
    )
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
        Ok(Baked::WithoutForm(why)) => ("as_is", None, Some(why.clone())),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_reads_a_model_has_a_time_limit() {
        let limit = options(false, None).sandbox_load_limit;
        assert_eq!(limit, Some(sandbox::DEFAULT_LOAD_LIMIT));
    }
}
