//! The table of a trace, for people and as comma-separated values.

use std::fmt::Write;

use skep_lab::BlockUse;

use super::study::{AllocatorRow, TraceStudy};
use crate::{colour::Colours, table::TextTable, units::human};

const WRITES: &str = "a string takes all";

/// A ratio with three decimals.
fn ratio(bytes: u64, of: u64) -> String {
    format!("{:.3}", bytes as f64 / of.max(1) as f64)
}

/// Nanoseconds with the unit that suits them.
fn time(ns: f64) -> String {
    if ns < 1e3 {
        format!("{ns:.0} ns")
    } else if ns < 1e6 {
        format!("{:.1} us", ns / 1e3)
    } else if ns < 1e9 {
        format!("{:.1} ms", ns / 1e6)
    } else {
        format!("{:.1} s", ns / 1e9)
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

pub(super) fn text(study: &TraceStudy) -> String {
    let mut text = format!(
        "{}: {} events, {} blocks, at most {} in use at once",
        study.name,
        study.events,
        study.blocks,
        human(study.peak_live)
    );
    match &study.optimum {
        Some(optimum) if optimum.bytes == optimum.lower_bound => {
            write!(
                text,
                "; {} are enough if all is known beforehand\n\n",
                human(optimum.bytes)
            )
        }
        Some(optimum) => write!(
            text,
            "; {} are enough if all is known beforehand, and no fewer than {}\n\n",
            human(optimum.bytes),
            human(optimum.lower_bound)
        ),
        None => write!(text, "\n\n"),
    }
    .expect(WRITES);
    let mut table = TextTable::new(&[0]);
    table.row(
        [
            "allocator",
            "reserved",
            "ratio",
            "free in parts",
            "never used",
            "padding",
            "calls",
            "source",
            "p99",
            "measured p50",
            "p99",
            "distance",
            "pages of 2 MiB",
            "refused",
        ]
        .map(Into::into)
        .to_vec(),
    );
    let mut rows: Vec<&AllocatorRow> = study.rows.iter().collect();
    rows.sort_by_key(|row| (row.figures.out_of_memory, row.figures.peak_reserved));
    for AllocatorRow { name, figures, .. } in rows {
        let refused = match figures.out_of_memory {
            0 => String::new(),
            count => count.to_string(),
        };
        table.row(
            [
                name.clone(),
                human(figures.peak_reserved),
                ratio(figures.peak_reserved, study.peak_live),
                percent(figures.fragmentation_tensorflow),
                percent(figures.fragmentation_pytorch),
                human(figures.peak_padding),
                figures.calls.sum().to_string(),
                time(figures.source_ns),
                time(figures.simulated.p99 as f64),
                time(figures.measured.p50 as f64),
                time(figures.measured.p99 as f64),
                human(whole(figures.locality.mean_distance)),
                figures.locality.huge_pages.to_string(),
                refused,
            ]
            .map(Into::into)
            .to_vec(),
        );
    }
    text.push_str(&table.lines(Colours::of_output()));
    text.push_str(&of_use(&study.rows));
    text
}

/// What using the blocks took, where they are used.
fn of_use(rows: &[AllocatorRow]) -> String {
    let mut used: Vec<(&str, BlockUse)> = rows
        .iter()
        .filter_map(|row| Some((row.name.as_str(), row.figures.used?)))
        .collect();
    if used.is_empty() {
        return String::new();
    }
    used.sort_by_key(|(_, used)| used.ns);
    let count = |count: Option<u64>| {
        count.map_or_else(|| NOT_COUNTED.to_owned(), |count| count.to_string())
    };
    let mut table = TextTable::new(&[0]);
    let heading = [
        "allocator",
        "time of use",
        "bytes",
        "cache misses",
        "TLB misses",
        "page faults",
    ];
    table.row(heading.map(Into::into).to_vec());
    for (name, used) in used {
        table.row(
            [
                name.to_owned(),
                time(used.ns as f64),
                human(used.bytes),
                count(used.events.cache_misses),
                count(used.events.tlb_misses),
                count(used.events.page_faults),
            ]
            .map(Into::into)
            .to_vec(),
        );
    }
    format!("\n{}", table.lines(Colours::of_output()))
}

/// Where the machine, or its kernel, does not count an event for this process.
const NOT_COUNTED: &str = "not counted";

#[expect(clippy::cast_sign_loss, reason = "a distance is positive")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

const COLUMNS: &str = "trace,allocator,events,peak_live,optimum,peak_reserved,ratio,ratio_to_optimum,\
    fragmentation_tensorflow,fragmentation_pytorch,peak_padding,reserved_after_trim,out_of_memory,source_calls,\
    source_ns,simulated_p50_ns,simulated_p99_ns,measured_p50_ns,measured_p99_ns,measured_mean_ns,mean_distance,\
    huge_pages,error";

pub(super) fn csv(studies: &[TraceStudy]) -> String {
    let mut text = format!("{COLUMNS}\n");
    for study in studies {
        let optimum = study
            .optimum
            .as_ref()
            .map(|optimum| optimum.bytes.to_string());
        for AllocatorRow { name, figures, .. } in &study.rows {
            writeln!(
                text,
                "{},{},{},{},{},{},{},{},{:.4},{:.4},{},{},{},{},{:.0},{},{},{},{},{:.1},{:.0},{},",
                quoted(&study.name),
                quoted(name),
                study.events,
                study.peak_live,
                optimum.clone().unwrap_or_default(),
                figures.peak_reserved,
                ratio(figures.peak_reserved, study.peak_live),
                ratio(figures.peak_reserved, study.floor()),
                figures.fragmentation_tensorflow,
                figures.fragmentation_pytorch,
                figures.peak_padding,
                figures.reserved_after_trim,
                figures.out_of_memory,
                figures.calls.sum(),
                figures.source_ns,
                figures.simulated.p50,
                figures.simulated.p99,
                figures.measured.p50,
                figures.measured.p99,
                figures.measured.mean,
                figures.locality.mean_distance,
                figures.locality.huge_pages,
            )
            .expect(WRITES);
        }
        for row in &study.failed {
            let blank = ",".repeat(COLUMNS.matches(',').count() - 2);
            let (trace, name) = (quoted(&study.name), quoted(&row.name));
            writeln!(text, "{trace},{name}{blank},{}", quoted(&row.why)).expect(WRITES);
        }
    }
    text
}

/// A field as RFC 4180 has it.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}
