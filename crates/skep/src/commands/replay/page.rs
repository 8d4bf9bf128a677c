//! A page that shows the allocators side by side: one file that needs nothing else.

use serde_json::{Value, json};
use skep_lab::BlockSpan;

use super::study::{AllocatorRow, TraceStudy};

/// What draws; the data goes into it.
const PAGE: &str = include_str!("page.html");

/// Blocks in one page at most, over all its maps: some ten megabytes.
const MOST_SPANS: usize = 300_000;

/// The page; `from` says where its figures come from.
pub(super) fn html(studies: &[TraceStudy], from: &str) -> String {
    let mut room = MOST_SPANS;
    let traces: Vec<Value> = studies
        .iter()
        .map(|study| trace(study, &mut room))
        .collect();
    let data = json!({ "from": from, "traces": traces }).to_string();
    // No name ends the element that it is in.
    PAGE.replacen("{{data}}", &data.replace('<', "\\u003c"), 1)
}

fn trace(study: &TraceStudy, room: &mut usize) -> Value {
    let mut rows: Vec<&AllocatorRow> = study.rows.iter().collect();
    rows.sort_by_key(|row| (row.figures.out_of_memory, row.figures.peak_reserved));
    let allocators: Vec<Value> = rows.iter().map(|row| allocator(row, room)).collect();
    json!({
        "name": study.name,
        "events": study.events,
        "peak_live": study.peak_live,
        "optimum": study.optimum.as_ref().map(|optimum| optimum.bytes),
        "allocators": allocators,
        "failed": study.failed.iter().map(|row| format!("{}: {}", row.name, row.why)).collect::<Vec<_>>(),
    })
}

fn allocator(row: &AllocatorRow, room: &mut usize) -> Value {
    let figures = &row.figures;
    let spans = if figures.spans.len() <= *room {
        *room -= figures.spans.len();
        squeezed(&figures.spans)
    } else {
        Vec::new()
    };
    json!({
        "name": row.name,
        "reserved": figures.peak_reserved,
        "calls": figures.calls.sum(),
        "refused": figures.out_of_memory,
        "source_ns": figures.source_ns,
        "fragmentation": figures.fragmentation_pytorch,
        "padding": figures.peak_padding,
        "curve": figures.curve,
        "spans": spans,
    })
}

/// Start, end, place and bytes of each block. Addresses that no block ever has are left out: chunks of an imagined device
/// lie far apart.
fn squeezed(spans: &[BlockSpan]) -> Vec<[u64; 4]> {
    let mut extents: Vec<(u64, u64)> = spans
        .iter()
        .map(|span| (span.address, span.address + span.bytes))
        .collect();
    extents.sort_unstable();
    // By first address of each run of used addresses: its end, and where it is drawn.
    let mut runs: Vec<(u64, u64, u64)> = Vec::new();
    for (start, end) in extents {
        match runs.last_mut() {
            Some((_, last, _)) if start <= *last + CLOSE => *last = end.max(*last),
            Some((first, last, place)) => {
                let next = *place + (*last - *first) + CLOSE;
                runs.push((start, end, next));
            }
            None => runs.push((start, end, 0)),
        }
    }
    let place = |address: u64| {
        let run = runs.partition_point(|(first, ..)| *first <= address) - 1;
        let (first, _, place) = runs[run];
        place + (address - first)
    };
    spans
        .iter()
        .map(|span| [span.start, span.end, place(span.address), span.bytes])
        .collect()
}

/// Gaps up to this are drawn as they are, wider ones as wide as this.
const CLOSE: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_gaps_are_left_out() {
        let span = |address, bytes| BlockSpan {
            start: 0,
            end: 1,
            address,
            bytes,
        };
        let spans = [
            span(1 << 40, 100),
            span((1 << 40) + 1000, 100),
            span(1 << 50, 10),
        ];
        let places = squeezed(&spans)
            .iter()
            .map(|span| span[2])
            .collect::<Vec<_>>();
        assert_eq!(places, [0, 1000, 1100 + CLOSE]);
    }
}
