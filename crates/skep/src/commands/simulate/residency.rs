//! `skep simulate residency`: many models under a memory budget, over recorded requests.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::bail;
use clap::Args;
use serde_json::json;
use skep_sim::{
    Arrivals, RecordedArrivals,
    residency::{EvictionPolicy, Fleet, FleetTerms, ResidencyOutcome, bound, foresee, simulate},
};

use super::{
    flags::{self, Pattern, refuse_repeats},
    rows::{self, FigureRow},
};
use crate::{
    colour::{Colour, Colours},
    cores::on_all_cores,
    origin,
    output::{self, out, outln},
    progress::Progress,
    table::{TextCell, TextTable},
    units::human,
};

#[derive(Debug, Args)]
pub(crate) struct ResidencyArgs {
    /// How requests arrive for each model: poisson, rates:FILE:STEP_SECONDS (a rate a line), or files of recorded
    /// requests. Each model begins at another moment of the recording, which is stretched over the whole time
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        allow_hyphen_values = true,
        default_value = "poisson"
    )]
    arrival: Vec<Pattern>,
    /// Memory budgets, in percent of what all models hold together
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = percent, allow_hyphen_values = true, default_value = "5,10,25")]
    budget: Vec<f64>,
    /// The eviction policies to compare [default: all of them]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    policy: Vec<EvictionPolicy>,
    /// How many models there are
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), default_value = "1000")]
    models: u32,
    /// Requests a second, over all models
    #[arg(long, value_name = "N", value_parser = flags::rate, allow_hyphen_values = true, default_value = "5")]
    rate: f64,
    /// Over how many hours the requests come
    #[arg(long, value_name = "HOURS", value_parser = hours, allow_hyphen_values = true, default_value = "4")]
    hours: Duration,
    /// How unequal the models' rates are: the n-th has one over n to this power; 0 for equal rates
    #[arg(long, value_name = "POWER", value_parser = power, allow_hyphen_values = true, default_value = "1")]
    skew: f64,
    /// The smallest and the largest model, in MiB; in between all orders of magnitude are as likely
    #[arg(long, value_name = "LEAST-MOST", value_parser = sizes, default_value = "4-512")]
    sizes: (u64, u64),
    /// How many models in a row share nine tenths of their bytes, as variants do; 1 for none
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), default_value = "1")]
    family: u32,
    /// The seed of sizes, rates and requests
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Print one JSON document: a list of rows
    #[arg(long)]
    json: bool,
    /// Write the rows into a CSV file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

/// One pattern and budget.
struct Panel {
    arrival: String,
    percent: f64,
    fleet_bytes: u64,
    budget: u64,
    requests: usize,
    /// The most hits that any policy could have.
    bound: usize,
    foresight: ResidencyOutcome,
    outcomes: Vec<(EvictionPolicy, ResidencyOutcome)>,
}

pub(crate) fn run(args: &ResidencyArgs) -> anyhow::Result<ExitCode> {
    output::check("--csv", args.csv.as_deref())?;
    check_repeats(args)?;
    let command = origin::command();
    let patterns: Vec<(String, Option<RecordedArrivals>)> = args
        .arrival
        .iter()
        .map(|pattern| Ok((pattern.name.clone(), recorded(pattern)?)))
        .collect::<anyhow::Result<_>>()?;
    let panels = panels(args, &patterns);
    output::write("--csv", args.csv.as_deref(), || {
        rows::csv(rows(&panels, &command))
    })?;
    if args.json {
        outln!("{}", rows::json(rows(&panels, &command)))?;
        return Ok(ExitCode::SUCCESS);
    }
    outln!("{}\n", origin::line(&command))?;
    out!("{}", text(args, &panels, Colours::of_output()))?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses what is given twice in any list.
fn check_repeats(args: &ResidencyArgs) -> anyhow::Result<()> {
    let arrivals = args.arrival.iter();
    refuse_repeats("--arrival", arrivals.map(|pattern| pattern.name.clone()))?;
    refuse_repeats("--policy", args.policy.iter().map(ToString::to_string))?;
    refuse_repeats("--budget", args.budget.iter().map(ToString::to_string))
}

/// The recording of a pattern; `None` for requests that come independently.
fn recorded(pattern: &Pattern) -> anyhow::Result<Option<RecordedArrivals>> {
    match pattern.load()? {
        Arrivals::Poisson => Ok(None),
        Arrivals::Recorded(recording) => Ok(Some(recording)),
        _ => bail!(
            "--arrival {}: expected poisson, rates:FILE:STEP_SECONDS, or a file of recorded requests",
            pattern.name
        ),
    }
}

fn panels(args: &ResidencyArgs, patterns: &[(String, Option<RecordedArrivals>)]) -> Vec<Panel> {
    let terms = FleetTerms {
        models: args.models as usize,
        rate: args.rate,
        span: args.hours,
        skew: args.skew,
        sizes: args.sizes,
        family: args.family as usize,
        ..FleetTerms::default()
    };
    let policies = match &args.policy[..] {
        [] => EvictionPolicy::ALL.to_vec(),
        chosen => chosen.to_vec(),
    };
    let fleets: Vec<(&String, Fleet)> = patterns
        .iter()
        .map(|(name, recording)| (name, Fleet::generate(&terms, recording.as_ref(), args.seed)))
        .collect();
    let points: Vec<(&String, &Fleet, f64)> = fleets
        .iter()
        .flat_map(|(name, fleet)| args.budget.iter().map(move |part| (*name, fleet, *part)))
        .collect();
    let progress = Progress::new("simulating", points.len(), !args.json);
    on_all_cores(&points, |(name, fleet, percent)| {
        let fleet_bytes = fleet.bytes();
        #[expect(clippy::cast_sign_loss, reason = "a part of a size")]
        let budget = (fleet_bytes as f64 * percent / 100.0) as u64;
        let outcomes = policies
            .iter()
            .map(|policy| (*policy, simulate(fleet, budget, *policy)));
        let panel = Panel {
            arrival: (*name).clone(),
            percent: *percent,
            fleet_bytes,
            budget,
            requests: fleet.requests.len(),
            bound: bound(fleet, budget),
            foresight: foresee(fleet, budget),
            outcomes: outcomes.collect(),
        };
        progress.step();
        panel
    })
}

fn text(args: &ResidencyArgs, panels: &[Panel], colours: Colours) -> String {
    let mut text = format!(
        "{} models, {} requests/s over {:.1} h; a hit found its model in memory, the others waited for its load.\n",
        args.models,
        args.rate,
        args.hours.as_secs_f64() / 3600.0
    );
    for panel in panels {
        text += &format!(
            "\n{} arrivals, budget {} % of {}: {}\n\n",
            panel.arrival,
            panel.percent,
            human(panel.fleet_bytes),
            human(panel.budget)
        );
        text += &panel.table().lines(colours);
    }
    text += "\nforesight: the models that would hold the most bytes for the longest time leave first; bound: no policy exceeds it.\n";
    text
}

impl Panel {
    fn table(&self) -> TextTable {
        let mut table = TextTable::new(&[0]);
        let heading = [
            "policy",
            "hits",
            "cold",
            "loads",
            "loaded",
            "mean wait",
            "p99 wait",
            "refused",
        ];
        table.row(heading.map(TextCell::from).into());
        let best = self.outcomes.iter().map(|(_, outcome)| outcome.hits).max();
        for (policy, outcome) in &self.outcomes {
            let mut row = self.row(policy.name(), outcome);
            if Some(outcome.hits) == best {
                row[1].colour = Some(Colour::Green);
            }
            table.row(row);
        }
        let mut row = self.row("foresight", &self.foresight);
        row[5] = "".into();
        row[6] = "".into();
        table.row(row);
        let bound = self.share(self.bound);
        table.row(vec!["bound".into(), bound.into()]);
        table
    }

    fn row(&self, name: &str, outcome: &ResidencyOutcome) -> Vec<TextCell> {
        let ms = |duration: Duration| format!("{:.0} ms", duration.as_secs_f64() * 1e3);
        vec![
            name.into(),
            self.share(outcome.hits).into(),
            self.share(outcome.waited).into(),
            outcome.loads.to_string().into(),
            human(outcome.bytes_loaded).into(),
            ms(mean_wait(outcome)).into(),
            ms(outcome.wait(0.99)).into(),
            outcome.refused.to_string().into(),
        ]
    }

    fn share(&self, count: usize) -> String {
        format!(
            "{:.1} %",
            100.0 * count as f64 / self.requests.max(1) as f64
        )
    }
}

/// Over all requests; a hit waits not at all.
fn mean_wait(outcome: &ResidencyOutcome) -> Duration {
    let sum: Duration = outcome.waits.iter().sum();
    Duration::from_secs_f64(sum.as_secs_f64() / outcome.requests.max(1) as f64)
}

fn rows<'a>(panels: &'a [Panel], command: &'a str) -> impl Iterator<Item = FigureRow> + 'a {
    panels.iter().flat_map(move |panel| {
        let outcomes = panel.outcomes.iter();
        outcomes.map(move |(policy, outcome)| row(panel, *policy, outcome, command))
    })
}

fn row(
    panel: &Panel,
    policy: EvictionPolicy,
    outcome: &ResidencyOutcome,
    command: &str,
) -> FigureRow {
    vec![
        ("arrival", json!(panel.arrival)),
        ("budget_percent", json!(panel.percent)),
        ("budget_bytes", json!(panel.budget)),
        ("policy", json!(policy.name())),
        ("requests", json!(outcome.requests)),
        ("hits", json!(outcome.hits)),
        ("cold", json!(outcome.waited)),
        ("refused", json!(outcome.refused)),
        ("loads", json!(outcome.loads)),
        ("bytes_loaded", json!(outcome.bytes_loaded)),
        ("most_used_bytes", json!(outcome.most_used)),
        (
            "mean_wait_ms",
            json!(mean_wait(outcome).as_secs_f64() * 1e3),
        ),
        ("p99_wait_ms", json!(outcome.wait(0.99).as_secs_f64() * 1e3)),
        ("foresight_hits", json!(panel.foresight.hits)),
        (
            "foresight_bytes_loaded",
            json!(panel.foresight.bytes_loaded),
        ),
        ("bound_hits", json!(panel.bound)),
        ("version", json!(origin::VERSION)),
        ("command", json!(command)),
    ]
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text
        .parse()
        .ok()
        .filter(|percent| (0.01..=100.0).contains(percent));
    percent.ok_or_else(|| {
        "expected percent of all models' bytes from 0.01 to 100, as in 10".to_owned()
    })
}

fn hours(text: &str) -> Result<Duration, String> {
    let hours: Option<f64> = text.parse().ok();
    let hours = hours.filter(|hours| (0.001..=10_000.0).contains(hours));
    let hours = hours.ok_or("expected hours from 0.001 to 10000, as in 4")?;
    Ok(Duration::from_secs_f64(hours * 3600.0))
}

fn power(text: &str) -> Result<f64, String> {
    let power = text
        .parse()
        .ok()
        .filter(|power| (0.0..=4.0).contains(power));
    power.ok_or_else(|| "expected a power from 0 to 4, as in 1".to_owned())
}

/// The smallest and the largest size, in bytes.
fn sizes(text: &str) -> Result<(u64, u64), String> {
    let mib = |text: &str| {
        let mib: Option<u64> = text.trim().parse().ok();
        mib.filter(|mib| (1..=1 << 20).contains(mib))
            .map(|mib| mib << 20)
    };
    let sizes = text
        .split_once('-')
        .and_then(|(least, most)| mib(least).zip(mib(most)));
    sizes
        .filter(|(least, most)| least <= most)
        .ok_or_else(|| "expected LEAST-MOST in MiB from 1 to 1048576, as in 4-512".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_numbers_are_checked() {
        assert_eq!(sizes("4-512"), Ok((4 << 20, 512 << 20)));
        for wrong in ["", "4", "0-4", "5-4", "4-x"] {
            assert!(sizes(wrong).is_err(), "{wrong}");
        }
        assert!(percent("10").is_ok() && percent("0").is_err() && percent("101").is_err());
        assert!(hours("4").is_ok() && hours("-1").is_err() && hours("NaN").is_err());
        assert!(power("0").is_ok() && power("5").is_err());
    }
}
