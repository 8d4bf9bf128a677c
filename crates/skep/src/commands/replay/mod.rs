//! `skep replay`: a memory trace replayed over allocators, side by side.
//!
//! ```text
//! TRACE ---> events ---> a bench for each allocator ---> table, JSON, CSV, page
//!                  |\--> a process for each plug-in
//!                   \--> lifetimes ---> the planner: the offline optimum
//! ```

mod catalogue;
mod json;
mod lab_source;
mod page;
pub(crate) mod plugin;
mod show;
mod study;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::bail;
use clap::{Args, ValueEnum};
use skep_lab::{CostModel, SourceOptions};
use skep_layout::allocator::AllocatorSpec;

use self::{
    lab_source::{SourceKind, SourceSetting},
    plugin::PluginChoice,
    study::{ChosenAllocators, TraceStudy},
};
use crate::{
    flag_values, origin,
    output::{self, errln, out, outln},
};

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// Memory traces: TensorFlow's logs with `__LOG_MEMORY__`, PyTorch's profiler traces (JSON) and CUDA snapshots
    /// (pickle), XLA's *.hlo.pb, or tables of events (op,id,bytes). They may be compressed (gz)
    #[arg(value_name = "TRACE", required_unless_present = "list")]
    trace: Vec<PathBuf>,
    /// An allocator, with options as in pytorch_caching:max_split_size=20MiB; `all` for all of them, `planned` for the
    /// offline optimum replayed, ./libmine.so for one of your own. May be given several times [default: all]
    #[arg(long, value_name = "NAME[:OPTION=VALUE,...]", value_parser = Choice::read)]
    allocator: Vec<Choice>,
    /// List all allocators and their options
    #[arg(long)]
    list: bool,
    /// Bytes of the device, as in 8G [default: as many as are asked for]
    #[arg(long, value_name = "BYTES", value_parser = flag_values::size)]
    limit: Option<u64>,
    /// The device whose pages and costs are imagined [default: host]
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceKind>,
    /// Where memory comes from: an imagined device, or real memory, whose calls are timed
    #[arg(long, value_name = "SOURCE", default_value = "simulated")]
    source: SourceKind,
    /// Write each new block and read the one before it, and count page faults, cache and TLB misses. Needs real memory
    #[arg(long)]
    use_blocks: bool,
    /// A cost of the device's calls, as in take_ns=80000; may be given several times. `--list` shows all
    #[arg(long, value_name = "NAME=NUMBER")]
    cost: Vec<String>,
    /// Let every N-th call for memory fail
    #[arg(long, value_name = "N", default_value = "0")]
    fail_every: u64,
    /// How long the planner may search for the offline optimum, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "2")]
    budget: Duration,
    /// Print one JSON document
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print a table of comma-separated values
    #[arg(long)]
    csv: bool,
    /// Write a page that shows memory over time, and where blocks lie
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A value of `--allocator`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    All,
    Planned,
    One(AllocatorSpec),
    Plugin(PluginChoice),
}

/// The name of the replayed optimum.
const PLANNED: &str = "planned";

impl Choice {
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            PLANNED => Ok(Self::Planned),
            _ if let Some(plugin) = PluginChoice::read(text) => Ok(Self::Plugin(plugin)),
            _ => match text.parse() {
                Ok(spec) => Ok(Self::One(spec)),
                Err(error) => Err(format!("{error}, or a library such as `./libmine.so`")),
            },
        }
    }
}

/// Devices with pages and costs of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DeviceKind {
    /// The memory of a host: `mmap` and pages of 4 KiB
    Host,
    /// The memory of a CUDA device: `cudaMalloc` and pages of 2 MiB
    Cuda,
}

impl DeviceKind {
    fn options(self) -> SourceOptions {
        match self {
            Self::Host => SourceOptions {
                page: 4096,
                cost: CostModel::host(),
                ..SourceOptions::default()
            },
            Self::Cuda => SourceOptions {
                page: 2 << 20,
                cost: CostModel::cuda(),
                ..SourceOptions::default()
            },
        }
    }
}

pub(crate) fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    output::check("--html", args.html.as_deref())?;
    let source = source_setting(args)?;
    if args.list {
        out!("{}", catalogue::text(&source.simulated.cost))?;
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = chosen(&args.allocator);
    let mut studies = Vec::new();
    for path in &args.trace {
        let study = TraceStudy::new(path, &chosen, &source, args.budget)?;
        for (what, count) in study.unmatched.iter() {
            errln!("warning: {}: {what}: {count}", study.name);
        }
        if let Some(why) = &study.without_optimum {
            errln!("warning: {}: {why}", study.name);
        }
        studies.push(study);
    }
    let command = origin::command();
    output::write("--html", args.html.as_deref(), || {
        page::html(&studies, &origin::line(&command))
    })?;
    if args.json {
        outln!("{}", json::document(&studies, &source, &command))?;
    } else if args.csv {
        out!("# {}\n{}", origin::line(&command), show::csv(&studies))?;
    } else {
        for (number, study) in studies.iter().enumerate() {
            if number > 0 {
                outln!()?;
            }
            out!("{}", show::text(study))?;
        }
    }
    let mut failed = studies.iter().flat_map(|study| &study.failed).peekable();
    let outcome = match failed.peek() {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    };
    for row in failed {
        errln!("error: {}: {}", row.name, row.why);
    }
    Ok(outcome)
}

/// The sources that the flags describe.
fn source_setting(args: &ReplayArgs) -> anyhow::Result<SourceSetting> {
    let is_imagined = args.source == SourceKind::Simulated;
    if !is_imagined && (args.device.is_some() || !args.cost.is_empty()) {
        bail!(
            "--device and --cost describe an imagined device, and --source {} is a real one: leave them out",
            args.source.name()
        );
    }
    let mut simulated = args.device.unwrap_or(DeviceKind::Host).options();
    simulated.limit = args.limit;
    simulated.fail_every = args.fail_every;
    for cost in &args.cost {
        if let Err(error) = simulated.cost.set(cost) {
            bail!("--cost: {error}");
        }
    }
    let setting = SourceSetting {
        kind: args.source,
        simulated,
        use_blocks: args.use_blocks,
    };
    setting.check()?;
    Ok(setting)
}

/// The allocators, each once, and whether the optimum is replayed too.
fn chosen(choices: &[Choice]) -> ChosenAllocators {
    let all = [Choice::All];
    let choices = if choices.is_empty() {
        &all[..]
    } else {
        choices
    };
    let mut specs: Vec<AllocatorSpec> = Vec::new();
    let mut plugins: Vec<PluginChoice> = Vec::new();
    let mut with_plan = false;
    let mut add = |spec: AllocatorSpec| {
        if !specs.contains(&spec) {
            specs.push(spec);
        }
    };
    for choice in choices {
        match choice {
            Choice::All => AllocatorSpec::all().into_iter().for_each(&mut add),
            Choice::Planned => {}
            Choice::One(spec) => add(spec.clone()),
            Choice::Plugin(plugin) if plugins.contains(plugin) => {}
            Choice::Plugin(plugin) => plugins.push(plugin.clone()),
        }
        with_plan |= matches!(choice, Choice::All | Choice::Planned);
    }
    ChosenAllocators {
        specs,
        plugins,
        with_plan,
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.trim().parse().ok();
    let seconds = seconds.filter(|seconds| (0.0..=86_400.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "expected seconds from 0 to 86400, as in 2 or 0.5".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocators_are_chosen_once() {
        let read = |text: &str| Choice::read(text).expect("valid");
        let counts = |choices: &[Choice]| {
            let chosen = chosen(choices);
            (chosen.specs.len(), chosen.plugins.len(), chosen.with_plan)
        };
        assert_eq!(counts(&[]), (AllocatorSpec::all().len(), 0, true));
        let twice = [read("bfc"), read("bfc"), read("bfc:limit=1MiB")];
        assert_eq!(counts(&twice), (2, 0, false));
        assert_eq!(counts(&[read("bfc"), read("planned")]), (1, 0, true));
        let plugins = [read("./a.so"), read("./a.so"), read("./a.so:x=1")];
        assert_eq!(counts(&plugins), (0, 2, false));
        assert!(Choice::read("everything").is_err_and(|error| error.contains("`everything`")));
    }
}
