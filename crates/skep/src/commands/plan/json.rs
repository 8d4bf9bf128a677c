//! The comparison as one JSON document, written piece by piece: a million buffers by thirty strategies are a gigabyte.

use std::io::{self, Write};

use serde_json::{Value, json};
use skep_planner::{Plan, Proof};

use super::{
    compare::{Comparison, StrategyRow},
    onnx::EstimateReport,
};
use crate::origin;

/// An object for the first records, with what is said of a model, Skep's version and the command. Further ones are its
/// member `plans`.
pub(super) fn write(
    out: &mut impl Write,
    studies: &[Comparison],
    report: Option<&EstimateReport>,
    command: &str,
) -> io::Result<()> {
    for (index, study) in studies.iter().enumerate() {
        out.write_all(match index {
            0 => b"",
            1 => b",\n\"plans\":[\n",
            _ => b",\n",
        })?;
        members(out, study)?;
        if index > 0 {
            out.write_all(b"}")?;
            continue;
        }
        for (name, value) in report.map_or_else(Vec::new, EstimateReport::members) {
            write!(out, ",\n\"{name}\":{value}")?;
        }
        let (version, command) = (json!(origin::VERSION), json!(command));
        write!(out, ",\n\"version\":{version},\n\"command\":{command}")?;
    }
    out.write_all(if studies.len() > 1 { b"]}\n" } else { b"}\n" })
}

/// The members, without the last brace.
fn members(out: &mut impl Write, study: &Comparison) -> io::Result<()> {
    let buffers = study.records.problem().len();
    let names: Vec<String> = study
        .records
        .names()
        .iter()
        .map(|name| json!(name).to_string())
        .collect();
    write!(
        out,
        "{{\"buffers\":{buffers},\"lower_bound\":{},\"strategies\":[",
        study.lower_bound
    )?;
    for (index, row) in study.rows.iter().enumerate() {
        out.write_all(if index == 0 { b"\n" } else { b",\n" })?;
        strategy(out, study, row, &names)?;
    }
    let proof = match study.proof {
        Proof::Load => "load",
        Proof::Search => "search",
    };
    let without: Vec<Value> = study
        .without
        .iter()
        .map(|(strategy, reason)| json!({ "name": strategy.name, "reason": study.why(*reason) }))
        .collect();
    write!(
        out,
        "],\n\"name\":{},\"proof\":\"{proof}\",\"without_a_plan\":{}",
        json!(study.title),
        json!(without)
    )
}

fn strategy(
    out: &mut impl Write,
    study: &Comparison,
    row: &StrategyRow,
    names: &[String],
) -> io::Result<()> {
    let micros = |seconds: f64| (seconds * 1e6).round() / 1e6;
    write!(
        out,
        "{{\"name\":{},\"size\":{},\"optimal\":{},\"seconds\":{},\"cpu_seconds\":{},",
        json!(row.strategy.name),
        row.plan.size(),
        study.is_optimal(row),
        json!(micros(row.time.seconds)),
        json!(micros(row.time.cpu_seconds)),
    )?;
    match &row.plan {
        Plan::Offsets(plan) => by_name(out, "offsets", names, &plan.offsets)?,
        Plan::Objects(plan) => {
            by_name(out, "objects", names, &plan.objects)?;
            write!(out, ",\"object_sizes\":{}", json!(plan.sizes))?;
        }
    }
    out.write_all(b"}")
}

fn by_name<T: std::fmt::Display>(
    out: &mut impl Write,
    member: &str,
    names: &[String],
    values: &[T],
) -> io::Result<()> {
    write!(out, "\"{member}\":{{")?;
    for (index, (name, value)) in names.iter().zip(values).enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(out, "{comma}{name}:{value}")?;
    }
    out.write_all(b"}")
}
