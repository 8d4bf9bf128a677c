//! A page to look at plans closely: one file that needs nothing else.

use std::{collections::HashMap, fmt::Write};

use serde_json::json;

use super::{FILLS, offsets};
use crate::{
    commands::plan::{
        compare::Comparison,
        show::{heading, waste},
    },
    units::human,
};

const WRITES: &str = "a string takes all";

/// What draws; the data goes into it.
const PAGE: &str = include_str!("page.html");

/// Offsets in one page at most, over all its plans: some ten megabytes.
const MOST_OFFSETS: usize = 4_000_000;

/// The page, with as many plans as it has room for, the smallest first; `from` says where they come from.
pub(in crate::commands::plan) fn html(studies: &[Comparison], from: &str) -> String {
    let mut room = MOST_OFFSETS;
    let studies: Vec<String> = studies.iter().map(|study| data(study, &mut room)).collect();
    let data = format!(
        "{{\"from\":{},\"fills\":{},\"studies\":[{}]}}",
        json!(from),
        json!(FILLS),
        studies.join(",\n")
    );
    // No name ends the element that it is in.
    PAGE.replacen("{{data}}", &data.replace('<', "\\u003c"), 1)
}

/// Records and plans of them, each buffer a position in lists.
fn data(study: &Comparison, room: &mut usize) -> String {
    let problem = study.records.problem();
    let buffers = problem.buffers();
    let list = |value: &dyn Fn(usize) -> u64| numbers((0..buffers.len()).map(value));
    // Several strategies often give the same offsets.
    let mut known: HashMap<Vec<u64>, usize> = HashMap::new();
    let mut places: Vec<String> = Vec::new();
    let (mut plans, mut left_out) = (Vec::new(), 0);
    for row in &study.rows {
        let offsets = offsets(problem, row);
        let index = match known.get(&offsets) {
            Some(index) => *index,
            // The best plan is shown whatever its size.
            None if places.is_empty() || offsets.len() <= *room => {
                *room = room.saturating_sub(offsets.len());
                places.push(numbers(offsets.iter().copied()));
                known.insert(offsets, places.len() - 1);
                places.len() - 1
            }
            None => {
                left_out += 1;
                continue;
            }
        };
        let words = format!(
            "{}: {}, {}",
            row.strategy.name,
            human(row.plan.size()),
            waste(study, row)
        );
        plans.push(json!({ "words": words, "size": row.plan.size(), "offsets": index }));
    }
    let pairs = buffers.iter().enumerate();
    let pairs: Vec<[usize; 2]> = pairs
        .filter_map(|(number, buffer)| Some([number, buffer.in_place?]))
        .collect();
    format!(
        "{{\"heading\":{},\"bound\":{},\"names\":{},\"start\":{},\"end\":{},\"size\":{},\"in_place\":{},\"plans\":{},\"left_out\":{left_out},\"offsets\":[{}]}}",
        json!(heading(study)),
        study.lower_bound,
        json!(study.records.names()),
        list(&|number| buffers[number].start),
        list(&|number| buffers[number].end),
        list(&|number| buffers[number].size),
        json!(pairs),
        json!(plans),
        places.join(",")
    )
}

fn numbers(values: impl Iterator<Item = u64>) -> String {
    let mut text = String::from("[");
    for (index, value) in values.enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(text, "{comma}{value}").expect(WRITES);
    }
    text.push(']');
    text
}
