//! A profile in a terminal.

use skep_perf::profile::ModelProfile;

use crate::{
    colour::Colours,
    output::{OutputError, out, outln},
    table::{TextCell, TextTable},
    units::human,
};

pub(super) fn model(profile: &ModelProfile) -> Result<(), OutputError> {
    outln!("{}, {}", profile.name, profile.request)?;
    if let Some(start) = profile.start {
        outln!(
            "start   {:.0} ms: process {:.1} ms, load {:.1} ms, first inference {:.1} ms; a later one {:.1} ms",
            start.process_ms + start.load_ms + start.first_inference_ms,
            start.process_ms,
            start.load_ms,
            start.first_inference_ms,
            start.inference_ms
        )?;
    }
    let shared = match profile.tensors.len() {
        0 => "no weights in the tensor store".to_owned(),
        count => format!(
            "{} of weights in {count} tensors, once a node, however many instances",
            human(profile.tensor_bytes())
        ),
    };
    outln!("memory  {shared}")?;
    outln!()?;
    out!("{}", table(profile).lines(Colours::of_output()))
}

fn table(profile: &ModelProfile) -> TextTable {
    let mut table = TextTable::new(&[]);
    let heading = [
        "cores",
        "instances",
        "threads",
        "batch",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "requests/s",
        "private",
    ];
    table.row(heading.map(TextCell::from).into());
    for one in &profile.configurations {
        let latency = one.latency;
        let counts = [one.cpus, one.instances, one.threads, one.batch];
        let mut row: Vec<TextCell> = counts.map(|count| count.to_string().into()).into();
        let quantiles = [latency.p50_ms, latency.p95_ms, latency.p99_ms];
        row.extend(quantiles.map(|millis| TextCell::from(format!("{millis:.2}"))));
        row.push(format!("{:.1}", one.requests_per_second).into());
        row.push(human(one.private_bytes).into());
        table.row(row);
    }
    table
}
