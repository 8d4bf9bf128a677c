//! `skep simulate batching`: policies side by side, over models, objectives, patterns of arrivals and loads.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::bail;
use clap::Args;
use skep_sim::{Arrivals, Contender, Figures, Jitter, Model, Point};

use super::{
    chart,
    parse::{self, Pattern, Slo, Table},
    show,
};
use crate::{
    cores::on_all_cores,
    output::{self, out, outln},
};

#[derive(Debug, Args)]
#[command(after_help = format!("Policies: {}", names()))]
pub(crate) struct BatchingArgs {
    /// What a batch of b takes: affine:BASE,PER_INFERENCE or flat:PER_INFERENCE, in milliseconds, or a file of measured `batch,ms`
    /// lines; may be given several times
    #[arg(long, value_name = "TABLE", default_value = "affine:1.87,0.087")]
    table: Vec<Table>,
    /// Latency objectives: milliseconds, or multiples of what a single request takes, as in 5x
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "2x,5x,20x"
    )]
    slo_ms: Vec<Slo>,
    /// How requests arrive: poisson, constant, bursty:VARIATION (of the gaps), periodic:AMPLITUDE:PERIOD_MS (five
    /// periods a trace unless told), or files of recorded requests
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "poisson,periodic,bursty:4"
    )]
    arrival: Vec<Pattern>,
    /// Requests a second, as shares of what full batches on all instances carry
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse::load, default_value = "0.1,0.3,0.5,0.7,0.8,0.9,1.0,1.2,1.5")]
    load: Vec<f64>,
    /// Numbers of instances
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024), default_value = "1")]
    instances: Vec<u32>,
    /// The most inferences a batch
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536), default_value = "64")]
    max_batch_size: u32,
    /// The inferences of each request
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536), default_value = "1")]
    request_batch_size: u32,
    /// By how much executions vary: a share to either side of the table, or lognormal:DEVIATION
    #[arg(long, value_name = "JITTER", value_parser = parse::jitter, default_value = "0")]
    jitter: Jitter,
    /// How much longer an execution takes for each other that runs when it begins, as a share
    #[arg(long, value_name = "SHARE", value_parser = parse::stretch, default_value = "0")]
    stretch: f64,
    /// Which policies are compared; all of them unless told
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = contender)]
    policy: Vec<Contender>,
    /// On how many traces, of which the medians are shown
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10000), default_value = "3")]
    seeds: u64,
    /// Requests a trace; the first tenth warms up and does not count
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(10..=10_000_000), default_value = "10000")]
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
    /// Draw goodput over load into an SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// One model, objective and pattern: a block of the table, a panel of the chart.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) table: String,
    pub(super) model: Model,
    pub(super) objective: Duration,
    pub(super) arrival: String,
    /// What each load gave, in their order.
    pub(super) loads: Vec<(f64, Vec<Figures>)>,
}

/// What is compared, and on what.
pub(super) struct Study {
    pub(super) panels: Vec<Panel>,
    pub(super) requests: usize,
    pub(super) seeds: u64,
}

pub(crate) fn run(args: &BatchingArgs) -> anyhow::Result<ExitCode> {
    for (flag, path) in [("--csv", &args.csv), ("--svg", &args.svg)] {
        output::check(flag, path.as_deref())?;
    }
    let study = study(args)?;
    // Before what is printed, which may be more than anybody reads.
    output::write("--csv", args.csv.as_deref(), || show::csv(&study))?;
    output::write("--svg", args.svg.as_deref(), || chart::svg(&study))?;
    if args.json {
        outln!("{}", show::json(&study))?;
    } else if args.details {
        out!("{}", show::details(&study))?;
    } else {
        out!("{}", show::overview(&study))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs all points, on as many threads as there are cores. Each is a simulation of its own, so their order is nobody's
/// concern.
fn study(args: &BatchingArgs) -> anyhow::Result<Study> {
    let (mut panels, patterns) = panels(args)?;
    let contenders = if args.policy.is_empty() {
        Contender::ALL.to_vec()
    } else {
        args.policy.clone()
    };
    let requests = args.requests as usize;
    let mut points = Vec::new();
    for (panel, arrivals) in panels.iter().zip(&patterns) {
        points.extend(args.load.iter().map(|&load| Point {
            model: &panel.model,
            objective: panel.objective,
            arrivals,
            load,
            requests,
            warm_up: requests / 10,
            seeds: args.seeds,
        }));
    }
    let results = on_all_cores(&points, |point| point.compare(&contenders));
    let mut results = results.into_iter();
    for panel in &mut panels {
        panel.loads = args.load.iter().copied().zip(results.by_ref()).collect();
    }
    Ok(Study {
        panels,
        requests,
        seeds: args.seeds,
    })
}

/// The panels, without results yet, and the arrivals of each.
fn panels(args: &BatchingArgs) -> anyhow::Result<(Vec<Panel>, Vec<Arrivals>)> {
    if args.request_batch_size > args.max_batch_size {
        bail!(
            "--request-batch-size {}: expected at most --max-batch-size, which is {}",
            args.request_batch_size,
            args.max_batch_size
        );
    }
    let (mut panels, mut patterns) = (Vec::new(), Vec::new());
    let arrivals: Vec<Arrivals> = args
        .arrival
        .iter()
        .map(Pattern::load)
        .collect::<anyhow::Result<_>>()?;
    for table in &args.table {
        let latencies = table.load(args.max_batch_size as usize)?;
        for &instances in &args.instances {
            let model = Model {
                table: latencies.clone(),
                instances,
                request_size: args.request_batch_size as usize,
                jitter: args.jitter,
                stretch: args.stretch,
            };
            let single = latencies.latency(model.request_size);
            for slo in &args.slo_ms {
                for (pattern, arrivals) in args.arrival.iter().zip(&arrivals) {
                    panels.push(Panel {
                        table: table.name.clone(),
                        model: model.clone(),
                        objective: slo.resolve(single),
                        arrival: pattern.name.clone(),
                        loads: Vec::new(),
                    });
                    patterns.push(arrivals.clone());
                }
            }
        }
    }
    Ok((panels, patterns))
}

fn contender(name: &str) -> Result<Contender, String> {
    name.parse()
        .map_err(|_| format!("expected one or some of {}", names()))
}

fn names() -> String {
    Contender::ALL.map(Contender::name).join(", ")
}
