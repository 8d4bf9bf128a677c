//! The results as text: tables to read, JSON and CSV to go on with.

use std::fmt::Write;

use serde_json::{Value, json};
use skep_sim::{Contender, Figures, Jitter};

use super::batching::{Panel, Study};
use crate::axis::number;

const WRITES: &str = "a string takes all";

impl Panel {
    fn heading(&self) -> String {
        let model = &self.model;
        let plural = if model.instances == 1 { "" } else { "s" };
        let mut text = format!(
            "{}, {} arrivals, objective {} ms, {} instance{plural}, batches of up to {}",
            self.table,
            self.arrival,
            ms(self.objective.as_secs_f64() * 1e3),
            model.instances,
            model.table.max(),
        );
        if model.request_size > 1 {
            write!(text, ", requests of {}", model.request_size).expect(WRITES);
        }
        write!(
            text,
            "; full batches carry {:.0} requests/s",
            model.capacity()
        )
        .expect(WRITES);
        text
    }

    fn contenders(&self) -> impl Iterator<Item = Contender> + '_ {
        let figures = self.loads.first().map(|(_, figures)| figures.as_slice());
        figures.unwrap_or_default().iter().map(|f| f.contender)
    }
}

/// How much of what was offered each policy answered in time.
pub(super) fn overview(study: &Study) -> String {
    let mut text = String::from("Answers within the objective, in % of the requests.\n");
    for panel in &study.panels {
        write!(
            text,
            "\n{}\n\n{:>6}{:>12}",
            panel.heading(),
            "load",
            "requests/s"
        )
        .expect(WRITES);
        for contender in panel.contenders() {
            write!(text, "  {:>6}", contender.name()).expect(WRITES);
        }
        text.push('\n');
        for (load, figures) in &panel.loads {
            let offered = offered(figures);
            write!(text, "{load:>6}{offered:>12.0}").expect(WRITES);
            for figures in figures {
                let percent = 100.0 * share(figures.goodput, figures.offered);
                let width = figures.contender.name().len().max(6);
                write!(text, "  {percent:>width$.1}").expect(WRITES);
            }
            text.push('\n');
        }
    }
    text.push_str(&footer(study));
    text
}

/// All figures.
pub(super) fn details(study: &Study) -> String {
    let mut text = String::new();
    for panel in &study.panels {
        writeln!(
            text,
            "{}\n\n{:>6}  {:<16}{:>11}{:>9}{:>9}{:>9}{:>11}{:>8}{:>12}",
            panel.heading(),
            "load",
            "policy",
            "goodput/s",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "rejected %",
            "late %",
            "mean batch"
        )
        .expect(WRITES);
        for (load, figures) in &panel.loads {
            for row in figures {
                let percent = |share: Option<f64>| cell(share.map(|share| share * 100.0), 1);
                write!(
                    text,
                    "{load:>6}  {:<16}{:>11.0}{:>9}{:>9}{:>9}{:>11}{:>8}{:>12}",
                    row.contender.name(),
                    row.goodput,
                    cell(row.p50_ms, 2),
                    cell(row.p95_ms, 2),
                    cell(row.p99_ms, 2),
                    percent(row.rejected),
                    percent(row.late),
                    cell(row.mean_batch, 1),
                )
                .expect(WRITES);
                if let Some(setting) = &row.setting {
                    write!(text, "  {setting}").expect(WRITES);
                }
                text.push('\n');
            }
        }
        text.push('\n');
    }
    text.push_str(footer(study).trim_start());
    text
}

fn footer(study: &Study) -> String {
    let warm_up = study.requests / 10;
    let plural = if study.seeds == 1 { "" } else { "s" };
    format!(
        "\nMedians of {} trace{plural} of {} requests, of which the first {warm_up} do not count.\n",
        study.seeds, study.requests
    )
}

/// The members of a row, in their order.
fn row(study: &Study, panel: &Panel, load: f64, figures: &Figures) -> [(&'static str, Value); 22] {
    [
        ("policy", json!(figures.contender.name())),
        ("table", json!(panel.table)),
        ("slo_ms", json!(panel.objective.as_secs_f64() * 1e3)),
        ("arrival", json!(panel.arrival)),
        ("load", json!(load)),
        ("instances", json!(panel.model.instances)),
        ("goodput", json!(figures.goodput)),
        ("p50_ms", json!(figures.p50_ms)),
        ("p99_ms", json!(figures.p99_ms)),
        ("rejected", json!(figures.rejected)),
        ("mean_batch", json!(figures.mean_batch)),
        ("offered", json!(figures.offered)),
        ("p95_ms", json!(figures.p95_ms)),
        ("late", json!(figures.late)),
        ("max_batch_size", json!(panel.model.table.max())),
        ("request_batch_size", json!(panel.model.request_size)),
        ("jitter", jitter(panel.model.jitter)),
        ("stretch", json!(panel.model.stretch)),
        ("requests", json!(study.requests)),
        ("seeds", json!(study.seeds)),
        ("ends", ends(figures)),
        ("setting", json!(figures.setting)),
    ]
}

/// As the flag has it.
fn jitter(jitter: Jitter) -> Value {
    match jitter {
        Jitter::None => json!(0),
        Jitter::Uniform(share) => json!(share),
        Jitter::LogNormal(deviation) => json!(format!("lognormal:{deviation}")),
    }
}

/// Shares by the names that the server's metrics have.
fn ends(figures: &Figures) -> Value {
    let shares = figures.ends.iter();
    Value::Object(
        shares
            .map(|(end, share)| (end.name().to_owned(), json!(share)))
            .collect(),
    )
}

fn rows(study: &Study) -> impl Iterator<Item = [(&'static str, Value); 22]> + '_ {
    study.panels.iter().flat_map(move |panel| {
        panel.loads.iter().flat_map(move |(load, figures)| {
            figures.iter().map(move |f| row(study, panel, *load, f))
        })
    })
}

/// A list of rows.
pub(super) fn json(study: &Study) -> String {
    let objects = rows(study).map(|row| {
        let members = row
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        Value::Object(members.collect())
    });
    let lines: Vec<String> = objects.map(|object| object.to_string()).collect();
    format!("[\n{}\n]", lines.join(",\n"))
}

/// The same rows, under a line of names.
pub(super) fn csv(study: &Study) -> String {
    let mut text = String::new();
    for row in rows(study) {
        if text.is_empty() {
            let names = row.each_ref().map(|(name, _)| *name);
            writeln!(text, "{}", names.join(",")).expect(WRITES);
        }
        let values = row.map(|(_, value)| match value {
            Value::Null => String::new(),
            Value::String(text) => quoted(text),
            other => quoted(other.to_string()),
        });
        writeln!(text, "{}", values.join(",")).expect(WRITES);
    }
    text
}

/// A cell of a CSV file.
fn quoted(text: String) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

fn offered(figures: &[Figures]) -> f64 {
    figures.first().map_or(0.0, |figures| figures.offered)
}

pub(super) fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Milliseconds with as many decimals as they need, three at most.
pub(super) fn ms(ms: f64) -> String {
    number(ms)
}

fn cell(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}
