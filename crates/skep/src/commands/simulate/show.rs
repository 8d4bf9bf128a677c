//! The results as text: tables to read, JSON and CSV to go on with.

use std::fmt::Write;

use serde_json::{Value, json};
use skep_sim::{Contender, Jitter, PolicyFigures, Spread};

use super::{
    batching::{Panel, Rate, Study},
    rows::{self, FigureRow},
};
use crate::{
    axis::number,
    colour::{Colour, Colours},
    table::{TextCell, TextTable},
};

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
        let capacity = model.capacity();
        let batches = if capacity.is_full {
            "full batches".to_owned()
        } else {
            format!("batches of {}", capacity.batch)
        };
        write!(text, "; {batches} carry {:.0} requests/s", capacity.rate).expect(WRITES);
        text
    }

    fn contenders(&self) -> impl Iterator<Item = &Contender> + '_ {
        let figures = self.loads.first().map(|(_, figures)| figures.as_slice());
        figures.unwrap_or_default().iter().map(|f| &f.contender)
    }

    /// How many decimals requests a second have.
    fn decimals(&self) -> usize {
        let highest = self.loads.iter().map(|(rate, _)| rate.rate);
        if highest.fold(0.0, f64::max) < 100.0 {
            2
        } else {
            0
        }
    }
}

impl Study {
    /// The first columns: what was asked, and what was offered.
    const fn heading(&self) -> &'static [&'static str] {
        if self.by_rate {
            &["rate", "load", "requests/s"]
        } else {
            &["load", "requests/s"]
        }
    }

    /// A line's cells below [`Self::heading`].
    fn cells(&self, rate: Rate, offered: f64, decimals: usize) -> Vec<String> {
        let asked = self.by_rate.then(|| number(rate.rate));
        let offered = format!("{offered:.decimals$}");
        asked
            .into_iter()
            .chain([load(rate.load), offered])
            .collect()
    }
}

/// How much of what was offered each policy answered in time; the best is coloured.
pub(super) fn overview(study: &Study, colours: Colours) -> String {
    let mut text = String::from("Answers within the objective, in % of the requests");
    if study.seeds.len() > 1 {
        text += "; below, where traces differ, the least and the most";
    }
    text += ".\n";
    for panel in &study.panels {
        let mut table = TextTable::new(&[]);
        let names = panel.contenders().map(|contender| contender.name().into());
        let heading = study.heading().iter().map(|name| TextCell::from(*name));
        table.row(heading.chain(names).collect());
        let decimals = panel.decimals();
        for (rate, figures) in &panel.loads {
            let first = study.cells(*rate, offered(figures), decimals);
            let blank = vec![String::new(); first.len()];
            let start = |cells: Vec<String>| cells.into_iter().map(TextCell::from);
            let cells = start(first);
            table.row(cells.chain(percents(figures)).collect());
            let spreads: Vec<String> = figures.iter().map(|f| between(f.in_time, 1)).collect();
            if spreads.iter().any(|spread| !spread.is_empty()) {
                let cells = start(blank);
                table.row(
                    cells
                        .chain(spreads.into_iter().map(TextCell::from))
                        .collect(),
                );
            }
        }
        write!(text, "\n{}\n\n{}", panel.heading(), table.lines(colours)).expect(WRITES);
    }
    text.push_str(&footer(study));
    text
}

/// The percentages of a line, the best of those that a policy can reach coloured.
fn percents(figures: &[PolicyFigures]) -> Vec<TextCell> {
    let policies = figures.iter().filter(|f| f.contender != Contender::Bound);
    let best = policies.max_by(|a, b| a.in_time.median.total_cmp(&b.in_time.median));
    let best = best.filter(|best| best.in_time.median > 0.0).map(percent);
    let mut cells = Vec::new();
    for figures in figures {
        let text = percent(figures);
        let is_best = figures.contender != Contender::Bound && best.as_ref() == Some(&text);
        cells.push(TextCell {
            colour: is_best.then_some(Colour::Green),
            text,
        });
    }
    cells
}

fn percent(figures: &PolicyFigures) -> String {
    format!("{:.1}", 100.0 * figures.in_time.median)
}

/// From the least to the most, times a hundred; nothing where they are shown alike.
fn between(spread: Spread, decimals: usize) -> String {
    let [min, max] = [spread.min, spread.max].map(|end| format!("{:.decimals$}", 100.0 * end));
    if min == max {
        String::new()
    } else {
        format!("{min}..{max}")
    }
}

/// All figures.
pub(super) fn details(study: &Study) -> String {
    let mut text = String::new();
    let several = study.seeds.len() > 1;
    for panel in &study.panels {
        let decimals = panel.decimals();
        // Names, and settings at the end of a line, begin where their column does.
        let name = study.heading().len();
        let mut table = TextTable::new(&[name, name + if several { 10 } else { 8 }]);
        let mut heading: Vec<&str> = study.heading().to_vec();
        heading.extend(["policy", "goodput/s"]);
        heading.extend(several.then_some("min..max"));
        heading.extend(["p50 ms", "p95 ms", "p99 ms"]);
        heading.extend(several.then_some("min..max"));
        heading.extend(["rejected %", "late %", "mean batch", "setting"]);
        table.row(heading.into_iter().map(TextCell::from).collect());
        for (rate, figures) in &panel.loads {
            for row in figures {
                let percent =
                    |share: Option<Spread>| cell(share.map(|share| share.median * 100.0), 1);
                let ms = |spread: Option<Spread>| cell(spread.map(|spread| spread.median), 2);
                let mut cells = study.cells(*rate, row.offered.median, decimals);
                cells.extend([
                    row.contender.name().to_owned(),
                    format!("{:.decimals$}", row.goodput.median),
                ]);
                cells.extend(several.then(|| range(Some(row.goodput), decimals)));
                cells.extend([ms(row.p50_ms), ms(row.p95_ms), ms(row.p99_ms)]);
                cells.extend(several.then(|| range(row.p99_ms, 2)));
                cells.extend([
                    percent(row.rejected),
                    percent(row.late),
                    cell(row.mean_batch.map(|spread| spread.median), 1),
                    row.setting.clone().unwrap_or_default(),
                ]);
                table.row(cells.into_iter().map(TextCell::from).collect());
            }
        }
        writeln!(
            text,
            "{}\n\n{}",
            panel.heading(),
            table.lines(Colours::NONE)
        )
        .expect(WRITES);
    }
    text.push_str(footer(study).trim_start());
    text
}

fn footer(study: &Study) -> String {
    let warm_up = study.requests / 10;
    let count = study.seeds.len();
    let plural = if count == 1 { "" } else { "s" };
    format!(
        "\nMedians of {count} trace{plural} of {} requests, of which the first {warm_up} do not count.\n",
        study.requests
    )
}

/// The median, or JSON's null.
fn median(spread: Option<Spread>) -> Value {
    json!(spread.map(|spread| spread.median))
}

/// From the least to the most.
fn range(spread: Option<Spread>, decimals: usize) -> String {
    spread.map_or_else(
        || "-".to_owned(),
        |spread| format!("{:.decimals$}..{:.decimals$}", spread.min, spread.max),
    )
}

/// The members of a row, in their order.
fn row(
    study: &Study,
    panel: &Panel,
    rate: Rate,
    figures: &PolicyFigures,
) -> Vec<(&'static str, Value)> {
    vec![
        ("policy", json!(figures.contender.name())),
        ("table", json!(panel.table)),
        ("slo_ms", json!(panel.objective.as_secs_f64() * 1e3)),
        ("arrival", json!(panel.arrival)),
        ("load", json!(rate.load)),
        ("instances", json!(panel.model.instances)),
        ("goodput", json!(figures.goodput.median)),
        ("p50_ms", median(figures.p50_ms)),
        ("p99_ms", median(figures.p99_ms)),
        ("rejected", median(figures.rejected)),
        ("mean_batch", median(figures.mean_batch)),
        ("offered", json!(figures.offered.median)),
        ("p95_ms", median(figures.p95_ms)),
        ("late", median(figures.late)),
        ("max_batch_size", json!(panel.model.table.max())),
        ("request_batch_size", json!(panel.model.request_size)),
        ("jitter", jitter(panel.model.jitter)),
        ("stretch", json!(panel.model.stretch)),
        ("requests", json!(study.requests)),
        ("seeds", json!(study.seeds.len())),
        ("ends", ends(figures)),
        ("setting", json!(figures.setting)),
        ("rate", json!(rate.rate)),
        ("in_time", json!(figures.in_time.median)),
        ("in_time_min", json!(figures.in_time.min)),
        ("in_time_max", json!(figures.in_time.max)),
        ("goodput_min", json!(figures.goodput.min)),
        ("goodput_max", json!(figures.goodput.max)),
        ("p99_ms_min", json!(figures.p99_ms.map(|spread| spread.min))),
        ("p99_ms_max", json!(figures.p99_ms.map(|spread| spread.max))),
        ("seed", json!(study.seeds)),
        ("version", json!(study.version)),
        ("command", json!(study.command)),
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
fn ends(figures: &PolicyFigures) -> Value {
    let shares = figures.ends.iter();
    Value::Object(
        shares
            .map(|(end, share)| (end.name().to_owned(), json!(share)))
            .collect(),
    )
}

fn rows(study: &Study) -> impl Iterator<Item = FigureRow> + '_ {
    study.panels.iter().flat_map(move |panel| {
        panel.loads.iter().flat_map(move |(rate, figures)| {
            figures.iter().map(move |f| row(study, panel, *rate, f))
        })
    })
}

/// A list of rows.
pub(super) fn json(study: &Study) -> String {
    rows::json(rows(study))
}

/// The same rows, under a line of names.
pub(super) fn csv(study: &Study) -> String {
    rows::csv(rows(study))
}

fn offered(figures: &[PolicyFigures]) -> f64 {
    figures
        .first()
        .map_or(0.0, |figures| figures.offered.median)
}

/// Milliseconds with as many decimals as they need, three at most.
pub(super) fn ms(ms: f64) -> String {
    number(ms)
}

/// A load with as many decimals as it needs, three digits at most that count.
fn load(load: f64) -> String {
    let decimals = match load {
        load if load >= 0.1 => 3,
        load if load >= 0.01 => 4,
        load if load >= 0.001 => 5,
        _ => 6,
    };
    let text = format!("{load:.decimals$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn cell(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

#[cfg(test)]
mod tests {
    use super::load;

    #[test]
    fn small_loads_are_not_nothing() {
        for (share, text) in [
            (1.0, "1"),
            (0.85, "0.85"),
            (0.0581, "0.0581"),
            (0.000_35, "0.00035"),
        ] {
            assert_eq!(load(share), text);
        }
    }
}
