//! `skep trace show`: what memory traces are like, side by side.

use std::{fs::File, io::BufReader, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use serde_json::{Map, Value, json};
use skep_lab::{Spread, TraceFigures, TraceSummary};
use skep_trace::{TraceReader, Unmatched};

use crate::{
    colour::Colours,
    origin,
    output::{errln, out, outln},
    table::TextTable,
    units::human,
};

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Memory traces, as for `skep replay`
    #[arg(value_name = "TRACE", required = true)]
    trace: Vec<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// A trace, summed up.
struct Summed {
    name: String,
    figures: TraceFigures,
    unmatched: Unmatched,
}

pub(super) fn run(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let mut traces = Vec::new();
    for path in &args.trace {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("cannot open `{name}`"))?;
        let mut reader = TraceReader::open(BufReader::new(file))
            .with_context(|| format!("cannot read `{name}`"))?;
        let mut summary = TraceSummary::default();
        for event in &mut reader {
            summary.take(event.with_context(|| format!("cannot read `{name}`"))?);
        }
        let unmatched = *reader.unmatched();
        for (what, count) in unmatched.iter() {
            errln!("warning: {name}: {what}: {count}");
        }
        traces.push(Summed {
            name,
            figures: summary.finish(),
            unmatched,
        });
    }
    if args.json {
        let rows: Vec<Value> = traces.iter().map(document).collect();
        let document = json!({
            "traces": rows,
            "version": origin::VERSION,
            "command": origin::command(),
        });
        outln!("{document:#}")?;
    } else {
        out!("{}", table(&traces))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn document(trace: &Summed) -> Value {
    let unmatched: Map<String, Value> = trace
        .unmatched
        .iter()
        .map(|(what, count)| (what.to_owned(), json!(count)))
        .collect();
    let TraceFigures {
        events,
        blocks,
        allocated_bytes,
        peak_live,
        kept_bytes,
        sizes,
        distinct_sizes,
        lifetimes,
        reused_blocks,
        reuse_distances,
        long_lived_share,
    } = trace.figures;
    json!({
        "trace": trace.name,
        "unmatched": unmatched,
        "events": events,
        "blocks": blocks,
        "allocated_bytes": allocated_bytes,
        "peak_live": peak_live,
        "kept_bytes": kept_bytes,
        "sizes": spread(sizes),
        "distinct_sizes": distinct_sizes,
        "lifetimes": spread(lifetimes),
        "reused_blocks": reused_blocks,
        "reuse_distances": spread(reuse_distances),
        "long_lived_share": long_lived_share,
    })
}

fn spread(of: Spread) -> Value {
    let Spread {
        p50,
        p90,
        p99,
        most,
        mean,
    } = of;
    json!({ "p50": p50, "p90": p90, "p99": p99, "most": most, "mean": mean })
}

fn table(traces: &[Summed]) -> String {
    let mut table = TextTable::new(&[0]);
    let heading = [
        "trace",
        "blocks",
        "most in use",
        "kept",
        "sizes",
        "size p50",
        "p99",
        "lifetime p50",
        "p99",
        "reused",
        "after p50",
        "p99",
        "long-lived",
    ];
    table.row(heading.map(Into::into).to_vec());
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    for Summed { name, figures, .. } in traces {
        let TraceFigures {
            blocks,
            peak_live,
            kept_bytes,
            distinct_sizes,
            sizes: Spread { p50, p99, .. },
            lifetimes,
            reused_blocks,
            reuse_distances,
            long_lived_share,
            ..
        } = *figures;
        let reused = reused_blocks as f64 / blocks.max(1) as f64;
        table.row(
            [
                name.clone(),
                blocks.to_string(),
                human(peak_live),
                human(kept_bytes),
                distinct_sizes.to_string(),
                human(p50),
                human(p99),
                lifetimes.p50.to_string(),
                lifetimes.p99.to_string(),
                percent(reused),
                reuse_distances.p50.to_string(),
                reuse_distances.p99.to_string(),
                percent(long_lived_share),
            ]
            .map(Into::into)
            .to_vec(),
        );
    }
    table.lines(Colours::of_output())
}
