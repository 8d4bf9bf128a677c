//! The comparison as text.

use std::fmt::Write;

use skep_planner::Proof;

use super::{
    compare::{AUTO, Comparison, StrategyRow},
    onnx::EstimateReport,
};
use crate::units::human;

const WRITES: &str = "a string takes all";

/// A block for each of the records.
pub(super) fn overview(studies: &[Comparison]) -> String {
    let blocks: Vec<String> = studies.iter().map(block).collect();
    blocks.join("\n")
}

/// A line on what one way of running a model needs beside another: the smallest plan of each. Where a plan leaves
/// tensors out, nothing is compared.
pub(super) fn savings(studies: &[Comparison], report: &EstimateReport) -> String {
    let sizes: Vec<(&str, u64)> = studies
        .iter()
        .filter_map(|study| Some((study.title.as_str(), study.best()?.plan.size())))
        .collect();
    let Some((base, first)) = sizes.first().copied() else {
        return String::new();
    };
    let are_whole = sizes.iter().all(|(title, _)| !report.leaves_out(title));
    let each = sizes.iter().map(|(title, size)| {
        let least = match report.leaves_out(title) {
            true => "at least ",
            false => "",
        };
        let change = match are_whole && *size != first {
            true => format!(" ({})", change(first, *size)),
            false => String::new(),
        };
        format!("{title} {least}{}{change}", human(*size))
    });
    let each: Vec<String> = each.collect();
    let beside = match are_whole && sizes.iter().any(|(_, size)| *size != first) {
        true => format!(", compared with `{base}`"),
        false => String::new(),
    };
    format!("\nsmallest plans{beside}: {}\n", each.join("; "))
}

/// By how much sizes differ. What is not nothing does not look like it.
fn change(from: u64, to: u64) -> String {
    let percent = 100.0 * (to as f64 / from.max(1) as f64 - 1.0);
    match percent.abs() {
        least if least < 0.05 => format!("{}<0.1 %", if to < from { '-' } else { '+' }),
        small if small < 0.95 => format!("{percent:+.1} %"),
        _ => format!("{percent:+.0} %"),
    }
}

fn block(study: &Comparison) -> String {
    let mut text = format!("{}\n{}\n", heading(study), bound(study));
    let width =
        |columns: &dyn Fn(&StrategyRow) -> usize| study.rows.iter().map(columns).max().unwrap_or(0);
    let names = width(&|row| row.strategy.name.len()).max("strategy".len());
    let bytes = width(&|row| row.plan.size().to_string().len()).max("bytes".len());
    if !study.rows.is_empty() {
        let head = format!(
            "\n  {:<names$}  {:>10}  {:>bytes$}  {:>10}  {:>9}  {:>9}",
            "strategy", "size", "bytes", "over bound", "time", "CPU time"
        );
        writeln!(text, "{head}").expect(WRITES);
    }
    for row in &study.rows {
        let mark = if row.strategy.name == AUTO { '*' } else { ' ' };
        let size = row.plan.size();
        writeln!(
            text,
            "{mark} {:<names$}  {:>10}  {size:>bytes$}  {:>10}  {:>9}  {:>9}",
            row.strategy.name,
            human(size),
            waste(study, row),
            time(row.time.seconds),
            time(row.time.cpu_seconds),
        )
        .expect(WRITES);
    }
    if !study.without.is_empty() {
        text.push_str("\nwithout a plan:\n");
    }
    for (_, reason) in &study.without {
        writeln!(text, "  {}", study.why(*reason)).expect(WRITES);
    }
    if study.rows.iter().any(|row| row.strategy.name == AUTO) {
        text.push_str("\n* the planner that Skep uses\n");
    }
    text
}

/// What is planned.
pub(super) fn heading(study: &Comparison) -> String {
    let problem = study.records.problem();
    let buffers = problem.buffers();
    let fixed = buffers
        .iter()
        .filter(|buffer| buffer.fixed.is_some())
        .count();
    let fixed = if fixed > 0 {
        format!(", {fixed} of them fixed")
    } else {
        String::new()
    };
    let plural = if buffers.len() == 1 { "" } else { "s" };
    let steps = problem.timeline().steps();
    let (first, last) = (steps.first().unwrap_or(&0), steps.last().unwrap_or(&0));
    let total = buffers.iter().map(|buffer| buffer.size).sum::<u64>();
    format!(
        "{}: {} buffer{plural}{fixed}, live in steps {first} to {last}, {} together",
        study.title,
        buffers.len(),
        human(total)
    )
}

/// What no plan can beat, and why.
fn bound(study: &Comparison) -> String {
    let why = match study.proof {
        Proof::Load => "this many bytes are live at one moment",
        Proof::Search => "a search found nothing smaller",
    };
    format!(
        "lower bound: {} ({} bytes), {why}",
        human(study.lower_bound),
        study.lower_bound
    )
}

/// By how much a plan exceeds what is known to be needed.
pub(super) fn waste(study: &Comparison, row: &StrategyRow) -> String {
    if study.is_optimal(row) {
        return "optimal".to_owned();
    }
    let over = row.plan.size().saturating_sub(study.lower_bound);
    let percent = 100.0 * over as f64 / study.lower_bound.max(1) as f64;
    // What is not nothing should not look like it.
    if percent < 0.005 {
        "+<0.01 %".to_owned()
    } else {
        format!("+{percent:.2} %")
    }
}

fn time(seconds: f64) -> String {
    if seconds < 0.9995 {
        format!("{:.2} ms", seconds * 1e3)
    } else {
        format!("{seconds:.2} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_never_looks_like_none() {
        for (from, to, expected) in [
            (100, 62, "-38 %"),
            (1000, 1004, "+0.4 %"),
            (1000, 994, "-0.6 %"),
            (1000, 991, "-0.9 %"),
            (1000, 1010, "+1 %"),
            (1_000_000, 999_999, "-<0.1 %"),
            (1_000_000, 1_000_001, "+<0.1 %"),
        ] {
            assert_eq!(change(from, to), expected, "{from} {to}");
        }
    }
}
