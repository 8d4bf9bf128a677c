//! `skep plan`: how much memory tensors need if they take turns, by every strategy, and how good each plan is.

mod compare;
mod json;
pub(super) mod onnx;
mod picture;
mod show;
pub(super) mod source;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use skep_planner::{Plan, Strategy};
use skep_records::csv;

use self::{compare::Comparison, onnx::OnnxArgs};
use crate::{
    origin,
    output::{self, errln, out},
};

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// An ONNX model, a directory with one ONNX model, or usage records: a CSV table of MiniMalloc or of TensorFlow
    /// Lite's tools, XLA's *-buffer-assignment.txt (with *-live-range.txt in the same directory) or *.hlo.pb. Usage
    /// records may be compressed (gz)
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A strategy to compare; may be given several times [default: all strategies]
    #[arg(long, value_name = "NAME", value_parser = strategies())]
    strategy: Vec<&'static Strategy>,
    /// How long each strategy may take, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "2")]
    budget: Duration,
    /// Print one JSON document: buffers, lower bound, and each strategy's size, time and plan
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print the usage records as MiniMalloc's CSV table, with the offsets of the smallest plan
    #[arg(long)]
    csv: bool,
    /// Draw the smallest plan as an SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write a page that shows all plans in detail
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    onnx: OnnxArgs,
}

/// Exits with 0 if there are plans, however good they are.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    for (flag, path) in [("--svg", &args.svg), ("--html", &args.html)] {
        output::check(flag, path.as_deref())?;
    }
    let source = source::read(&args.file, &args.onnx)?;
    for notice in &source.notices {
        errln!("warning: {notice}");
    }
    let strategies = if args.strategy.is_empty() {
        Strategy::ALL.iter().collect()
    } else {
        args.strategy.clone()
    };
    let studies = source.records.into_iter();
    let studies =
        studies.map(|(title, records)| Comparison::new(title, records, &strategies, args.budget));
    let studies: Vec<Comparison> = studies.collect::<anyhow::Result<_>>()?;
    let command = origin::command();
    let from = origin::line(&command);
    // Before what is printed, which may be more than anybody reads.
    output::write("--svg", args.svg.as_deref(), || {
        picture::svg(&studies, &from)
    })?;
    output::write("--html", args.html.as_deref(), || {
        picture::html(&studies, &from)
    })?;
    if args.json {
        let mut text = Vec::new();
        json::write(&mut text, &studies, source.report.as_ref(), &command)?;
        out!("{}", String::from_utf8_lossy(&text))?;
    } else if args.csv {
        out!("# {from}\n{}", table(&studies)?)?;
    } else {
        let report = source.report.as_ref();
        let (before, after) = report.map_or_else(Default::default, |report| {
            let after = show::savings(&studies, report) + &report.table();
            (report.heading(), after)
        });
        let text = format!("{before}{}{after}", show::overview(&studies));
        out!("{text}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The smallest plan of the first records.
fn table(studies: &[Comparison]) -> anyhow::Result<String> {
    let study = studies
        .first()
        .ok_or_else(|| anyhow::anyhow!("nothing to plan"))?;
    for other in &studies[1..] {
        errln!(
            "warning: --csv: `{}` is written, `{}` is not",
            study.title,
            other.title
        );
    }
    let row = study
        .best()
        .ok_or_else(|| anyhow::anyhow!("--csv: no strategy gives a plan"))?;
    let offsets = match &row.plan {
        Plan::Offsets(plan) => plan.offsets.clone(),
        Plan::Objects(plan) => plan.to_offsets(study.records.problem()).offsets,
    };
    Ok(csv::write(&study.records, Some(&offsets)))
}

/// Names of strategies; clap lists them, and suggests one for what is nearly a name.
fn strategies() -> impl TypedValueParser<Value = &'static Strategy> {
    let names = Strategy::ALL
        .iter()
        .map(|strategy| PossibleValue::new(strategy.name).help(strategy.summary));
    PossibleValuesParser::new(names)
        .try_map(|name| Strategy::named(&name).ok_or("expected the name of a strategy"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .trim()
        .parse()
        .ok()
        .filter(|seconds| (0.001..=86_400.0).contains(seconds));
    let seconds =
        seconds.ok_or_else(|| "expected seconds from 0.001 to 86400, as in 2 or 0.5".to_owned())?;
    Ok(Duration::from_secs_f64(seconds))
}
