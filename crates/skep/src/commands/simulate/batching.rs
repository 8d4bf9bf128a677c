//! `skep simulate batching`: policies side by side, over models, objectives, patterns of arrivals and loads.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use skep_sim::{Arrivals, Contender, Jitter, OperatingPoint, PolicyFigures, SimulatedModel};

use super::{
    chart,
    flags::{self, Pattern, Policies, Seeds, Slo, TableFlag, refuse_repeats},
    measure::{MeasureArgs, Measured},
    saved::Saved,
    show,
};
use crate::{
    colour::Colours,
    cores::on_all_cores,
    origin,
    output::{self, errln, out, outln},
    progress::Progress,
};

/// What is simulated unless flags or a measured model say otherwise.
const TABLE: &str = "affine:1.87,0.087";
const OBJECTIVES: &str = "2x,5x,20x";
const LOADS: [f64; 9] = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5];
const MAX_BATCH_SIZE: u32 = 64;

#[derive(Debug, Args)]
#[command(after_help = format!("Policies: {}", flags::policy_names()))]
pub(crate) struct BatchingArgs {
    /// What a batch of b takes: affine:BASE,PER_INFERENCE or flat:PER_INFERENCE, in milliseconds, or a file of measured
    /// `batch,ms` lines, whose comments may give instances, max_batch_size and slo_ms; may be given several times
    /// [default: affine:1.87,0.087]
    #[arg(long, value_name = "TABLE", allow_hyphen_values = true)]
    table: Vec<TableFlag>,
    #[command(flatten)]
    measure: MeasureArgs,
    /// Latency objectives: milliseconds, or multiples of what a single request takes, as in 5x [default: 2x,5x,20x]
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    slo_ms: Vec<Slo>,
    /// How requests arrive: poisson, constant, bursty:VARIATION (of the gaps), periodic:AMPLITUDE:PERIOD_MS (five
    /// periods a trace unless told), rates:FILE:STEP_SECONDS (a rate a line), or files of recorded requests
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        allow_hyphen_values = true,
        default_value = "poisson,periodic,bursty:4"
    )]
    arrival: Vec<Pattern>,
    /// Requests a second, as shares of what all instances carry with batches of the best size [default:
    /// 0.1,0.3,0.5,0.7,0.8,0.9,1.0,1.2,1.5, unless --rate is given]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = flags::load, allow_hyphen_values = true)]
    load: Vec<f64>,
    /// Requests a second, as numbers; beside --load where that is given too
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = flags::rate, allow_hyphen_values = true)]
    rate: Vec<f64>,
    /// Numbers of instances [default: the table's or the model's, else 1]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024), allow_hyphen_values = true)]
    instances: Vec<u32>,
    /// The most inferences a batch [default: the table's or the model's, else 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536), allow_hyphen_values = true)]
    max_batch_size: Option<u32>,
    /// The inferences of each request
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536), allow_hyphen_values = true, default_value = "1")]
    request_batch_size: u32,
    /// By how much executions vary: a share to either side of the table, or lognormal:DEVIATION
    #[arg(long, value_name = "JITTER", value_parser = flags::jitter, allow_hyphen_values = true, default_value = "0")]
    jitter: Jitter,
    /// How much longer an execution takes for each other that runs when it begins, as a share
    #[arg(long, value_name = "SHARE", value_parser = flags::stretch, allow_hyphen_values = true, default_value = "0")]
    stretch: f64,
    /// The policies to compare, all of them by default. One is Triton's batcher with settings of your own, as in
    /// triton:preferred=4+8,delay=500: preferred=SIZE+SIZE, delay=MICROSECONDS, max=SIZE, timeout=MICROSECONDS
    #[arg(long, value_name = "LIST")]
    policy: Vec<Policies>,
    /// On how many traces, with the seeds 0, 1, ...; medians are shown, and the least and the most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10000), allow_hyphen_values = true, default_value = "3")]
    seeds: u32,
    /// The seeds of the traces, as numbers and ranges with both ends, as in 7,10-19
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        allow_hyphen_values = true,
        conflicts_with = "seeds"
    )]
    seed: Vec<Seeds>,
    /// Requests a trace; the first tenth warms up and does not count
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(10..=10_000_000), allow_hyphen_values = true, default_value = "10000")]
    requests: u32,
    /// Print latencies, rejections and batch sizes too
    #[arg(long)]
    details: bool,
    /// Print one JSON document: a list of rows
    #[arg(long, conflicts_with = "details")]
    json: bool,
    /// Write the rows into a CSV file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Draw goodput over load as an SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// One load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    /// As a share of the model's capacity.
    pub(super) load: f64,
    /// Requests a second.
    pub(super) rate: f64,
}

/// One model, objective and pattern: a block of the table, a panel of the chart.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) table: String,
    pub(super) model: SimulatedModel,
    pub(super) objective: Duration,
    pub(super) arrival: String,
    /// What each load gave; they ascend.
    pub(super) loads: Vec<(Rate, Vec<PolicyFigures>)>,
}

/// What is compared, and on what.
pub(super) struct Study {
    pub(super) panels: Vec<Panel>,
    pub(super) requests: usize,
    pub(super) seeds: Vec<u64>,
    /// Whether loads were given as requests a second alone, so that they are shown so.
    pub(super) by_rate: bool,
    /// The version and the command that made it.
    pub(super) version: &'static str,
    pub(super) command: String,
}

pub(crate) fn run(args: &BatchingArgs) -> anyhow::Result<ExitCode> {
    for (flag, path) in [("--csv", &args.csv), ("--svg", &args.svg)] {
        output::check(flag, path.as_deref())?;
    }
    args.measure.check()?;
    let (version, command) = (origin::VERSION, origin::command());
    let from = origin::line(&command);
    check_repeats(args)?;
    // Before a model is measured: what is wrong with these would be said after seconds.
    let seeds = flags::seeds(&args.seed, args.seeds.into())?;
    let arrivals = args.arrival.iter().map(Pattern::load);
    let arrivals: Vec<Arrivals> = arrivals.collect::<anyhow::Result<_>>()?;
    let given = args.table.iter().map(TableFlag::read);
    let given: Vec<(TableFlag, Saved)> = given.collect::<anyhow::Result<_>>()?;
    if let Some(max) = args.max_batch_size {
        check_sizes(args, max)?;
    }
    let measured = args
        .measure
        .measure(args.max_batch_size, MAX_BATCH_SIZE, args.json, &from)?;
    let study = Study {
        panels: panels(args, &given, measured.as_ref(), &arrivals, &seeds)?,
        requests: args.requests as usize,
        seeds,
        by_rate: args.load.is_empty() && !args.rate.is_empty(),
        version,
        command,
    };
    // Before what is printed, which may be more than anybody reads.
    output::write("--csv", args.csv.as_deref(), || show::csv(&study))?;
    output::write("--svg", args.svg.as_deref(), || chart::svg(&study))?;
    let notes = notes(args, &given, &study.panels);
    if args.json {
        for note in &notes {
            errln!("note: {note}");
        }
        outln!("{}", show::json(&study))?;
        return Ok(ExitCode::SUCCESS);
    }
    outln!("{from}\n")?;
    for note in &notes {
        outln!("{note}")?;
    }
    if !notes.is_empty() {
        outln!("")?;
    }
    if let Some(measured) = &measured {
        outln!("{}", measured.table())?;
    }
    let text = if args.details {
        show::details(&study)
    } else {
        show::overview(&study, Colours::of_output())
    };
    out!("{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses what is given twice in any list.
fn check_repeats(args: &BatchingArgs) -> anyhow::Result<()> {
    refuse_repeats("--table", args.table.iter().map(|table| table.name.clone()))?;
    refuse_repeats("--slo-ms", args.slo_ms.iter().map(ToString::to_string))?;
    let arrivals = args.arrival.iter();
    refuse_repeats("--arrival", arrivals.map(|pattern| pattern.name.clone()))?;
    refuse_repeats("--load", args.load.iter().map(ToString::to_string))?;
    refuse_repeats("--rate", args.rate.iter().map(ToString::to_string))?;
    refuse_repeats(
        "--instances",
        args.instances.iter().map(ToString::to_string),
    )?;
    let policies = contenders(args).into_iter();
    refuse_repeats("--policy", policies.map(|policy| policy.name().to_owned()))
}

/// What tables gave and what they lack.
fn notes(args: &BatchingArgs, given: &[(TableFlag, Saved)], panels: &[Panel]) -> Vec<String> {
    let mut notes = Vec::new();
    for (table, saved) in given {
        let name = &table.name;
        let gave = [
            (
                args.instances.is_empty(),
                saved.instances.map(f64::from),
                "instances",
            ),
            (
                args.max_batch_size.is_none(),
                saved.max_batch_size.map(f64::from),
                "max_batch_size",
            ),
            (args.slo_ms.is_empty(), saved.objective, "slo_ms"),
        ];
        let gave = gave.into_iter().filter(|(unsaid, ..)| *unsaid);
        let gave: Vec<String> = gave
            .filter_map(|(_, value, key)| Some(format!("{key} {}", show::ms(value?))))
            .collect();
        if !gave.is_empty() {
            notes.push(format!("`{name}` says {}.", gave.join(", ")));
        }
    }
    for panel in panels {
        let (name, max) = (&panel.table, panel.model.table.max());
        let note = match panel.model.table.largest_measured() {
            Some(1) if max > 1 => {
                format!(
                    "`{name}` has a single size: batches of 2 to {max} are assumed to take as long as 1."
                )
            }
            Some(largest) if largest < max => {
                format!(
                    "`{name}` ends at batches of {largest}: those up to {max} are extrapolated."
                )
            }
            _ => continue,
        };
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    notes
}

/// Runs all points, on as many threads as there are cores. Each is a simulation of its own, so their order
/// does not matter.
fn panels(
    args: &BatchingArgs,
    given: &[(TableFlag, Saved)],
    measured: Option<&Measured>,
    arrivals: &[Arrivals],
    seeds: &[u64],
) -> anyhow::Result<Vec<Panel>> {
    let (mut panels, patterns) = empty_panels(args, given, measured, arrivals)?;
    let contenders = contenders(args);
    let requests = args.requests as usize;
    let mut points = Vec::new();
    let rates: Vec<Vec<Rate>> = panels.iter().map(|panel| rates(args, panel)).collect();
    for ((panel, arrivals), rates) in panels.iter().zip(patterns).zip(&rates) {
        points.extend(rates.iter().map(|rate| OperatingPoint {
            model: &panel.model,
            objective: panel.objective,
            arrivals,
            rate: rate.rate,
            requests,
            warm_up: requests / 10,
            seeds,
        }));
    }
    let progress = Progress::new("simulating", points.len(), !args.json);
    let results = on_all_cores(&points, |point| {
        let figures = point.compare(&contenders);
        progress.step();
        figures
    });
    drop(progress);
    let mut results = results.into_iter();
    for (panel, rates) in panels.iter_mut().zip(rates) {
        panel.loads = rates.into_iter().zip(results.by_ref()).collect();
    }
    Ok(panels)
}

/// The policies that are compared.
fn contenders(args: &BatchingArgs) -> Vec<Contender> {
    if args.policy.is_empty() {
        return Contender::ALL.into();
    }
    let policies = args.policy.iter().flat_map(|Policies(policies)| policies);
    policies.cloned().collect()
}

/// Whether requests and policies fit batches of up to `max`.
fn check_sizes(args: &BatchingArgs, max: u32) -> anyhow::Result<()> {
    let request = args.request_batch_size;
    if request > max {
        bail!("--request-batch-size {request}: expected at most --max-batch-size, which is {max}");
    }
    for contender in contenders(args) {
        if let Contender::Triton(setting) = contender {
            let fits = setting.fits(max as usize, request as usize);
            fits.context("--policy")?;
        }
    }
    Ok(())
}

/// The loads of a panel, ascending.
fn rates(args: &BatchingArgs, panel: &Panel) -> Vec<Rate> {
    let capacity = panel.model.capacity().rate;
    let shares = match args.load.as_slice() {
        [] if args.rate.is_empty() => &LOADS,
        shares => shares,
    };
    let shares = shares.iter().map(|&load| Rate {
        load,
        rate: load * capacity,
    });
    let absolute = args.rate.iter().map(|&rate| Rate {
        load: rate / capacity,
        rate,
    });
    let mut rates: Vec<Rate> = shares.chain(absolute).collect();
    rates.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    rates
}

/// The panels, without results yet, and the arrivals of each.
fn empty_panels<'a>(
    args: &BatchingArgs,
    given: &[(TableFlag, Saved)],
    measured: Option<&Measured>,
    arrivals: &'a [Arrivals],
) -> anyhow::Result<(Vec<Panel>, Vec<&'a Arrivals>)> {
    let mut tables = given.to_vec();
    let of_model = measured.map(|m| TableFlag::measured(m.name.clone(), m.lines()));
    tables.extend(of_model.map(|table| (table, Saved::default())));
    if tables.is_empty() {
        let table = TABLE.parse().map_err(anyhow::Error::msg)?;
        tables.push((table, Saved::default()));
    }
    let (mut panels, mut patterns) = (Vec::new(), Vec::new());
    for (table, saved) in &tables {
        let max = args.max_batch_size.or(saved.max_batch_size);
        let max = max.or_else(|| Some(measured?.max_batch_size));
        let max = max.unwrap_or(MAX_BATCH_SIZE);
        check_sizes(args, max)?;
        let mut instances = args.instances.clone();
        if instances.is_empty() {
            let own = saved.instances.or_else(|| Some(measured?.instances.max(1)));
            instances.push(own.unwrap_or(1));
        }
        let slos = objectives(args, saved, measured)?;
        let latencies = table.load(max as usize)?;
        for instances in instances {
            let model = SimulatedModel {
                table: latencies.clone(),
                instances,
                request_size: args.request_batch_size as usize,
                jitter: args.jitter,
                stretch: args.stretch,
            };
            let single = latencies.latency(model.request_size);
            for slo in &slos {
                for (pattern, arrivals) in args.arrival.iter().zip(arrivals) {
                    panels.push(Panel {
                        table: table.name.clone(),
                        model: model.clone(),
                        objective: slo.resolve(single),
                        arrival: pattern.name.clone(),
                        loads: Vec::new(),
                    });
                    patterns.push(arrivals);
                }
            }
        }
    }
    Ok((panels, patterns))
}

/// Those of the flag, else the saved table's or the model's own, else the defaults.
fn objectives(
    args: &BatchingArgs,
    saved: &Saved,
    measured: Option<&Measured>,
) -> anyhow::Result<Vec<Slo>> {
    if !args.slo_ms.is_empty() {
        return Ok(args.slo_ms.clone());
    }
    if let Some(own) = saved.objective {
        return Ok(vec![Slo::Ms(own)]);
    }
    if let Some(own) = measured.and_then(|measured| measured.objective) {
        return Ok(vec![Slo::Ms(own.as_secs_f64() * 1e3)]);
    }
    let defaults = OBJECTIVES.split(',').map(str::parse);
    let defaults: Result<_, String> = defaults.collect();
    defaults.map_err(anyhow::Error::msg)
}
