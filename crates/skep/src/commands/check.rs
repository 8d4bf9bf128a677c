//! `skep check`: what is wrong with the models of a repository, said before they are served.

use std::{
    collections::BTreeMap, num::NonZeroUsize, path::PathBuf, process::ExitCode, sync::Arc, thread,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use skep_config::{BackendSetting, Ensemble, EnsembleStep, parse_backend_config};
use skep_runtime::{
    CheckFinding, LayoutFinding, LoadOptions, MetricsOptions, ModelCheck, Repository,
};
use skep_types::ModelName;

use crate::{
    allocator_libraries::AllocatorLibraries,
    backends,
    colour::{Colour, Colours},
    commands::{sandbox, serve},
    flag_values::boolean,
    output::{OutputError, errln, outln},
    table::letters,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ConfigFormat {
    /// In the format of config.pbtxt
    Pbtxt,
    /// In JSON, as a server returns it
    Json,
    /// Do not print it
    None,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Model repositories
    #[arg(value_name = "REPOSITORY", required = true)]
    repositories: Vec<PathBuf>,
    /// Check this model only; may be given several times
    #[arg(long, value_name = "NAME")]
    model: Vec<String>,
    /// Load each version and run its warm-up; without it the weights are not touched, except where ONNX Runtime must
    /// read the model to tell its inputs and outputs: `.ort` files, and outputs that the file does not declare
    #[arg(long)]
    load: bool,
    /// How to print each model's completed configuration
    #[arg(long, value_name = "FORMAT", default_value = "pbtxt")]
    config: ConfigFormat,
    /// Print one JSON document: a list of models with versions, errors, warnings and completed configuration
    #[arg(long, conflicts_with = "config")]
    json: bool,
    /// As for `skep serve`
    #[arg(long)]
    disable_auto_complete_config: bool,
    /// As for `skep serve`
    #[arg(long, value_name = "NAME", value_parser = serve::config_name)]
    model_config_name: Option<String>,
    /// As for `skep serve`
    #[arg(long, value_name = "BOOL", default_value = "false", value_parser = boolean, action = clap::ArgAction::Set)]
    model_namespacing: bool,
    /// As for `skep serve`
    #[arg(long, value_name = "SETTING", value_parser = |text: &str| parse_backend_config(text))]
    backend_config: Vec<BackendSetting>,
    /// As for `skep serve`
    #[arg(long, value_name = "PATH")]
    onnxruntime_library: Option<PathBuf>,
    #[command(flatten)]
    allocators: AllocatorLibraries,
    /// As for `skep serve`
    #[arg(long)]
    allow_backend_fallback: bool,
    /// As for `skep serve`
    #[arg(long)]
    gpu_as_cpu: bool,
}

/// Exits with 0 only if nothing is wrong with any model.
pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let repository = Repository::open(args.repositories.clone())
        .map_err(anyhow::Error::msg)?
        .with_namespaces(args.model_namespacing);
    let names = args.model.iter().map(|name| ModelName::new(name));
    let names: Vec<ModelName> = names.collect::<Result<_, _>>().context("--model")?;
    let options = LoadOptions {
        auto_complete: !args.disable_auto_complete_config,
        backend_settings: args.backend_config.clone(),
        cores: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        config_name: args.model_config_name.clone(),
        gpu_as_cpu: args.gpu_as_cpu,
        retries: 0,
        metrics: MetricsOptions::default(),
        waiting_limit: Arc::default(),
        hold_until: 0,
        cpu: None,
        devices: None,
        profiles: None,
        response_cache: None,
        rate_limiter: None,
        // A check leaves nothing behind.
        weights: None,
        request_memory: None,
        sandbox_load_limit: Some(sandbox::DEFAULT_LOAD_LIMIT),
    };
    args.allocators.open()?;
    let library = args.onnxruntime_library.clone();
    let backends = backends::all(library, args.allow_backend_fallback)?;
    let checks = skep_runtime::check(&repository, &names, &options, &backends, args.load);
    let layout = repository.layout();
    if args.json {
        let colours = Colours::of_errors();
        for finding in &layout {
            errln!("{}: {}", layout_kind(finding, &colours), finding.text);
        }
        let models: Vec<Value> = checks.iter().map(to_json).collect();
        outln!("{}", serde_json::to_string_pretty(&models)?)?;
    } else {
        let colours = Colours::of_output();
        for finding in &layout {
            outln!("{}: {}", layout_kind(finding, &colours), finding.text)?;
        }
        print(&checks, args.config)?;
    }
    let fine = checks.iter().all(|check| check.errors.is_empty())
        && layout.iter().all(|finding| !finding.is_wrong);
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A repository without models may be right; another directory in its place is not.
fn layout_kind(finding: &LayoutFinding, colours: &Colours) -> String {
    if finding.is_wrong {
        colours.paint(Colour::Red, "error")
    } else {
        colours.paint(Colour::Yellow, "warning")
    }
}

fn print(checks: &[ModelCheck], format: ConfigFormat) -> Result<(), OutputError> {
    let names = checks.iter().map(|check| letters(check.name.as_str()));
    let width = names.max().unwrap_or_default();
    let colours = Colours::of_output();
    for check in checks {
        let state = if check.errors.is_empty() {
            colours.paint(Colour::Green, "ok    ")
        } else {
            colours.paint(Colour::Red, "failed")
        };
        let objective = check.objective.map_or_else(String::new, |objective| {
            format!(", answers within {} ms", milliseconds(objective))
        });
        let line = format!(
            "{state}  {:width$}  {}{objective}",
            check.name.as_str(),
            versions(check)
        );
        outln!("{}", line.trim_end())?;
        if let Some(ensemble) = &check.ensemble {
            for line in drawing(ensemble) {
                outln!("  {line}")?;
            }
        }
        for finding in &check.errors {
            print_finding(&colours.paint(Colour::Red, "error:"), finding)?;
        }
        for finding in &check.warnings {
            print_finding(&colours.paint(Colour::Yellow, "warning:"), finding)?;
        }
        if let Some(config) = &check.config {
            let text = match format {
                ConfigFormat::None => continue,
                ConfigFormat::Pbtxt => skep_wire::config::to_pbtxt(config),
                ConfigFormat::Json => {
                    String::from_utf8_lossy(&skep_wire::config::to_json(config)).into_owned()
                }
            };
            for line in text.lines() {
                outln!("    {line}")?;
            }
        }
    }
    let failed = checks.iter().filter(|c| !c.errors.is_empty()).count();
    let models = if checks.len() == 1 { "model" } else { "models" };
    outln!("{} {models}, {failed} failed", checks.len())
}

/// The steps of an ensemble, a line each, in the order in which they can run. Those of a round may run at once.
fn drawing(ensemble: &Ensemble) -> Vec<String> {
    let models = ensemble
        .steps
        .iter()
        .map(|step| letters(step.model.as_str()));
    let width = models.max().unwrap_or_default();
    let mut lines = Vec::new();
    for (round, steps) in ensemble.rounds().iter().enumerate() {
        for (place, step) in steps.iter().enumerate() {
            let head = match place {
                0 => format!("round {}", round + 1),
                _ => String::new(),
            };
            lines.push(format!(
                "{head:9}step {step}  {}",
                step_text(&ensemble.steps[*step], width)
            ));
        }
    }
    lines
}

/// `model  a, b -> c, if go, priority 1`.
fn step_text(step: &EnsembleStep, width: usize) -> String {
    let names = |map: &BTreeMap<String, String>| {
        let names: Vec<&str> = map.values().map(String::as_str).collect();
        names.join(", ")
    };
    let model = step.model.as_str();
    let mut text = format!(
        "{model:width$}  {} -> {}",
        names(&step.inputs),
        names(&step.outputs)
    );
    if let Some(condition) = &step.condition {
        let not = if condition.expected { "" } else { "not " };
        text += &format!(", if {not}{}", condition.tensor);
    }
    if let Some(priority) = step.priority {
        text += &format!(", priority {priority}");
    }
    if let Some(timeout) = step.timeout {
        text += &format!(", within {} ms", milliseconds(timeout));
    }
    text
}

fn versions(check: &ModelCheck) -> String {
    let numbers: Vec<String> = check.versions.iter().map(ToString::to_string).collect();
    match numbers.as_slice() {
        [] => String::new(),
        [one] => format!("version {one}"),
        several => format!("versions {}", several.join(", ")),
    }
}

/// `error: place: field: text`, further lines under it.
fn print_finding(kind: &str, finding: &CheckFinding) -> Result<(), OutputError> {
    let mut head = format!("  {kind} ");
    if let Some(place) = &finding.place {
        head += &format!("{place}: ");
    }
    if let Some(version) = finding.version {
        head += &format!("version {version}: ");
    }
    // Most texts name their field themselves.
    if !finding.field.is_empty() && !finding.text.contains(&finding.field) {
        head += &format!("`{}`: ", finding.field);
    }
    let mut lines = finding.text.lines();
    outln!("{head}{}", lines.next().unwrap_or_default())?;
    for line in lines {
        outln!("    {line}")?;
    }
    Ok(())
}

fn to_json(check: &ModelCheck) -> Value {
    let findings =
        |findings: &[CheckFinding]| -> Vec<Value> { findings.iter().map(finding).collect() };
    let config = check.config.as_ref().and_then(|config| {
        serde_json::from_slice::<Value>(&skep_wire::config::to_json(config)).ok()
    });
    json!({
        "model": check.name.as_str(),
        "versions": check.versions.iter().map(|version| version.get()).collect::<Vec<u64>>(),
        "ok": check.errors.is_empty(),
        "errors": findings(&check.errors),
        "warnings": findings(&check.warnings),
        "config": config,
        "objective_ms": check.objective.map(milliseconds),
    })
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Members that do not apply are null.
fn finding(finding: &CheckFinding) -> Value {
    let place = finding.place.as_ref();
    let field = Some(&finding.field).filter(|field| !field.is_empty());
    json!({
        "version": finding.version.map(|version| version.get()),
        "file": place.map(|place| &*place.file),
        "line": place.map(|place| place.line),
        "column": place.map(|place| place.column),
        "field": field,
        "text": finding.text,
    })
}
