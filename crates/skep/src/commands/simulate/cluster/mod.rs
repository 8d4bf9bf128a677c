//! `skep simulate cluster`: applications on many nodes, under the rules of several platforms.

mod arrival;
mod chart;
mod document;
mod show;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use skep_sim::cluster::{
    ClusterOutcome, ClusterScenario, InvalidScenario, Placement, Platform, simulate,
};

use super::{
    flags::{self, refuse_repeats},
    rows,
};
use crate::{
    colour::Colours,
    cores::on_all_cores,
    origin,
    output::{self, out, outln},
    progress::Progress,
};
use arrival::ClusterArrival;
use document::{FOUR_APPLICATIONS, ScenarioDocument};

#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// What runs: four-applications, or a file; --save writes one to begin with
    #[arg(value_name = "SCENARIO", default_value = FOUR_APPLICATIONS)]
    scenario: String,
    /// The applications to run, by their names [default: all of the scenario]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    application: Vec<String>,
    /// The platforms to compare [default: all of them]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// How the requests of all applications arrive, in place of what the scenario says of each: stable, periodic, bursty,
    /// sporadic, rates:FILE:STEP_SECONDS (a rate a line), or files of recorded requests, which are stretched over the
    /// whole time; a table for each
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    arrival: Vec<String>,
    /// Where instances go, in place of each platform's own way: theta (where their tensors are), least-loaded, random;
    /// a table for each
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    placement: Vec<Placement>,
    /// How many nodes there are, in place of the scenario's number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    nodes: Option<u32>,
    /// How long requests come, in place of the scenario's time
    #[arg(long, value_name = "MINUTES", value_parser = minutes, allow_hyphen_values = true)]
    minutes: Option<f64>,
    /// A factor on the rates of all applications
    #[arg(long, value_name = "FACTOR", value_parser = flags::rate, allow_hyphen_values = true, default_value = "1")]
    load: f64,
    /// The seed of requests and execution times, in place of the scenario's
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Print one JSON document: a list of rows
    #[arg(long)]
    json: bool,
    /// Write the rows into a CSV file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Draw memory and late requests into an SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the scenario, with what flags change, into a JSON file, and simulate nothing
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// All platforms under one pattern of arrivals and one way of placement.
struct ClusterPanel {
    /// As it was given; `None` for the scenario's own.
    arrival: Option<String>,
    placement: Option<Placement>,
    applications: Vec<String>,
    requests: usize,
    outcomes: Vec<ClusterOutcome>,
}

pub(crate) fn run(args: &ClusterArgs) -> anyhow::Result<ExitCode> {
    let files = [
        ("--csv", &args.csv),
        ("--svg", &args.svg),
        ("--save", &args.save),
    ];
    for (flag, file) in files {
        output::check(flag, file.as_deref())?;
    }
    refuse_repeats("--application", args.application.iter().cloned())?;
    refuse_repeats("--platform", args.platform.iter().map(ToString::to_string))?;
    refuse_repeats("--arrival", args.arrival.iter().cloned())?;
    refuse_repeats(
        "--placement",
        args.placement.iter().map(ToString::to_string),
    )?;
    let command = origin::command();
    let document = document(args)?;
    if args.save.is_some() {
        output::write("--save", args.save.as_deref(), || document.text())?;
        return Ok(ExitCode::SUCCESS);
    }
    let panels = panels(args, &document)?;
    output::write("--csv", args.csv.as_deref(), || {
        rows::csv(show::rows(&panels, &command))
    })?;
    output::write("--svg", args.svg.as_deref(), || {
        chart::svg(&panels, &command)
    })?;
    if args.json {
        outln!("{}", rows::json(show::rows(&panels, &command)))?;
        return Ok(ExitCode::SUCCESS);
    }
    outln!("{}\n", origin::line(&command))?;
    out!("{}", show::text(&document, &panels, Colours::of_output()))?;
    Ok(ExitCode::SUCCESS)
}

/// The scenario with what the flags change.
fn document(args: &ClusterArgs) -> anyhow::Result<ScenarioDocument> {
    let mut document = ScenarioDocument::load(&args.scenario)?;
    if let Some(nodes) = args.nodes {
        document.nodes.count = nodes as usize;
    }
    if let Some(minutes) = args.minutes {
        document.minutes = minutes;
    }
    if let Some(seed) = args.seed {
        document.seed = seed;
    }
    document.keep_applications(&args.application)?;
    for application in &mut document.applications {
        application.requests_per_s *= args.load;
        if let [arrival] = &args.arrival[..] {
            application.arrival.clone_from(arrival);
        }
    }
    Ok(document)
}

/// One simulation.
struct ClusterCase<'a> {
    panel: usize,
    scenario: &'a ClusterScenario,
    platform: Platform,
    placement: Option<Placement>,
}

fn panels(args: &ClusterArgs, document: &ScenarioDocument) -> anyhow::Result<Vec<ClusterPanel>> {
    let directory = match args.scenario == FOUR_APPLICATIONS {
        true => Path::new(""),
        false => Path::new(&args.scenario).parent().unwrap_or(Path::new("")),
    };
    let base = document
        .scenario(directory)
        .with_context(|| format!("scenario `{}`", args.scenario))?;
    let arrivals = args.arrival.iter();
    let arrivals = arrivals.map(|text| ClusterArrival::parse(text));
    let arrivals: Vec<ClusterArrival> = arrivals
        .collect::<anyhow::Result<_>>()
        .context("--arrival")?;
    let given: Vec<Option<&ClusterArrival>> = match &arrivals[..] {
        [] => vec![None],
        some => some.iter().map(Some).collect(),
    };
    let scenarios = given.iter().map(|arrival| {
        let applications = document.applications(*arrival)?;
        Ok(ClusterScenario {
            applications,
            ..base.clone()
        })
    });
    let scenarios: Vec<ClusterScenario> = scenarios.collect::<anyhow::Result<_>>()?;
    let placements: Vec<Option<Placement>> = match &args.placement[..] {
        [] => vec![None],
        some => some.iter().copied().map(Some).collect(),
    };
    let platforms = match &args.platform[..] {
        [] => Platform::ALL.to_vec(),
        some => some.to_vec(),
    };
    let mut panels = Vec::new();
    let mut cases = Vec::new();
    for (scenario, arrival) in scenarios.iter().zip(given) {
        for &placement in &placements {
            cases.extend(platforms.iter().map(|&platform| ClusterCase {
                panel: panels.len(),
                scenario,
                platform,
                placement,
            }));
            let applications = scenario.applications.iter();
            panels.push(ClusterPanel {
                arrival: arrival.map(|arrival| arrival.name.clone()),
                placement,
                applications: applications.map(|one| one.name.clone()).collect(),
                requests: scenario.requests(),
                outcomes: Vec::new(),
            });
        }
    }
    let progress = Progress::new("simulating", cases.len(), !args.json);
    let outcomes = on_all_cores(&cases, |case| {
        let outcome = simulate(case.scenario, case.platform, case.placement);
        progress.step();
        outcome
    });
    for (case, outcome) in cases.iter().zip(outcomes) {
        let outcome = outcome.map_err(|error: InvalidScenario| anyhow::anyhow!(error))?;
        panels[case.panel].outcomes.push(outcome);
    }
    Ok(panels)
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: Option<f64> = text.parse().ok();
    let minutes = minutes.filter(|minutes| (0.1..=1e6).contains(minutes));
    minutes.ok_or_else(|| "expected minutes from 0.1 to 1e6, as in 60".to_owned())
}
