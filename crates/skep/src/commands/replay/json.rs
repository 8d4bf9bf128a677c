//! The figures as one JSON document.

use serde_json::{Map, Value, json};
use skep_lab::{BenchFigures, CallTimes};

use super::{
    lab_source::{SourceKind, SourceSetting},
    study::{AllocatorRow, TraceStudy},
};
use crate::origin;

/// An object for one trace; with several, an object whose member `traces` lists them.
pub(super) fn document(studies: &[TraceStudy], source: &SourceSetting, command: &str) -> String {
    let mut traces: Vec<Map<String, Value>> = studies.iter().map(trace).collect();
    let mut document = match traces.len() {
        1 => traces.remove(0),
        _ => Map::from_iter([("traces".to_owned(), json!(traces))]),
    };
    let costs: Map<String, Value> = source
        .simulated
        .cost
        .entries()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    document.insert("source".to_owned(), json!(source.kind.name()));
    if source.kind == SourceKind::Simulated {
        document.insert("cost".to_owned(), json!(costs));
        document.insert("page".to_owned(), json!(source.simulated.page));
    }
    document.insert("limit".to_owned(), json!(source.simulated.limit));
    document.insert("version".to_owned(), json!(origin::VERSION));
    document.insert("command".to_owned(), json!(command));
    format!("{:#}", Value::Object(document))
}

fn trace(study: &TraceStudy) -> Map<String, Value> {
    let unmatched: Map<String, Value> = study
        .unmatched
        .iter()
        .map(|(what, count)| (what.to_owned(), json!(count)))
        .collect();
    let optimum = study.optimum.as_ref();
    let rows = study.rows.iter().map(|row| allocator(study, row));
    let failed = study.failed.iter();
    let failed = failed.map(|row| json!({ "name": row.name, "error": row.why }));
    let allocators: Vec<Value> = rows.chain(failed).collect();
    let members = json!({
        "trace": study.name,
        "events": study.events,
        "blocks": study.blocks,
        "unmatched": unmatched,
        "peak_live": study.peak_live,
        "optimum": optimum.map(|optimum| optimum.bytes),
        "optimum_lower_bound": optimum.map(|optimum| optimum.lower_bound),
        "allocators": allocators,
    });
    match members {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

fn allocator(study: &TraceStudy, row: &AllocatorRow) -> Value {
    let times =
        |times: CallTimes| json!({ "p50": times.p50, "p99": times.p99, "mean": times.mean });
    let BenchFigures {
        peak_reserved,
        peak_in_use,
        peak_padding,
        fragmentation_tensorflow,
        fragmentation_pytorch,
        reserved_at_end,
        reserved_after_trim,
        out_of_memory,
        calls,
        source_ns,
        simulated,
        measured,
        locality,
        used,
        curve: _,
        spans: _,
    } = &row.figures;
    json!({
        "name": row.name,
        "peak_reserved": peak_reserved,
        "ratio": *peak_reserved as f64 / study.peak_live.max(1) as f64,
        "ratio_to_optimum": *peak_reserved as f64 / study.floor().max(1) as f64,
        "peak_in_use": peak_in_use,
        "peak_padding": peak_padding,
        "fragmentation_tensorflow": fragmentation_tensorflow,
        "fragmentation_pytorch": fragmentation_pytorch,
        "reserved_at_end": reserved_at_end,
        "reserved_after_trim": reserved_after_trim,
        "out_of_memory": out_of_memory,
        "source_calls": {
            "take": calls.take,
            "give_back": calls.give_back,
            "commit": calls.commit,
            "decommit": calls.decommit,
            "reserve": calls.reserve,
            "wait": calls.wait,
            "refused": calls.refused,
        },
        "source_ns": source_ns,
        "simulated_ns": times(*simulated),
        "measured_ns": times(*measured),
        "mean_distance": locality.mean_distance,
        "huge_pages": locality.huge_pages,
        "use": used.map(|used| json!({
            "ns": used.ns,
            "bytes": used.bytes,
            "cache_misses": used.events.cache_misses,
            "tlb_misses": used.events.tlb_misses,
            "page_faults": used.events.page_faults,
        })),
    })
}
