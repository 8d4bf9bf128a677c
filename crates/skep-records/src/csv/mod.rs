//! Tables: MiniMalloc's CSV, and usage records as TensorFlow Lite's tools have them.
//!
//! A line names the columns, in any order and in capitals or not; each line below it is a buffer. Empty lines do not
//! count, nor do lines above the heading that begin with `#`. Cells may be quoted.
//!
//! | column | other names | meaning |
//! |---|---|---|
//! | `id` | `buffer`, `buffer_id`, `name`, `tensor`, `tensor_id` | a name; no two buffers have the same |
//! | `lower` | `begin`, `start`, `first_op`, `first_task` | the first step at which the buffer is live |
//! | `upper` | | the step after the last one |
//! | or `end` | `last_op`, `last_task` | the last step |
//! | `size` | `size_bytes` | bytes |
//! | `alignment` | | optional: the offset is a multiple of this power of two |
//! | `offset` | | optional: the buffer must not move from there; empty or -1: it may lie anywhere |
//! | `in_place` | | optional: the name of the buffer whose place it may take; Skep's own |
//! | `is_output` | | optional: a line with `1` is left out, for outputs lie in memory of the caller's |
//! | `gaps` | | must be empty: a buffer's memory is its own from the first step to the last |
//!
//! Any other column, MiniMalloc's `hint` among them, has no effect ([`BufferTable::ignored`]).

mod cells;
mod columns;

use std::{collections::HashMap, fmt::Write};

use skep_planner::{Buffer, Problem, UsageRecords, UsageRecordsError, shortened_name};

pub use self::cells::cells;
use self::{
    cells::quoted,
    columns::{Columns, TableRow},
};
use crate::{
    MAX_BUFFERS,
    error::{RecordsError, text},
};

/// What a table says.
#[derive(Clone, Debug)]
pub struct BufferTable {
    /// A buffer a line.
    pub records: UsageRecords,
    /// Columns that have no effect, as the heading calls them.
    pub ignored: Vec<String>,
}

/// Reads a table.
///
/// # Errors
/// Names the line, and the column where there is one.
pub fn read(bytes: &[u8]) -> Result<BufferTable, RecordsError> {
    let mut lines = text(bytes)?.lines().enumerate();
    let heading = lines.find(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let (index, heading) = heading.ok_or(RecordsError::Empty)?;
    let (columns, ignored) = Columns::of(heading, index + 1)?;
    let (mut named, mut numbers, mut inputs) = (Vec::new(), Vec::new(), Vec::new());
    for (index, line) in lines {
        if line.trim().is_empty() {
            continue;
        }
        let TableRow {
            name,
            buffer,
            input,
        } = match columns.row(line, index + 1)? {
            Some(row) => row,
            None => continue,
        };
        if named.len() == MAX_BUFFERS {
            return Err(RecordsError::TooMany { limit: MAX_BUFFERS });
        }
        if let Some(input) = input {
            inputs.push((named.len(), input));
        }
        named.push((name, buffer));
        numbers.push(index + 1);
    }
    if named.is_empty() {
        return Err(RecordsError::NothingToPlan {
            expected: "a line with a buffer",
        });
    }
    resolve(&mut named, &inputs, &numbers)?;
    let records = UsageRecords::new(named).map_err(|error| at_line(error, &numbers))?;
    Ok(BufferTable { records, ignored })
}

/// Turns names of inputs into their positions.
fn resolve(
    named: &mut [(String, Buffer)],
    inputs: &[(usize, String)],
    numbers: &[usize],
) -> Result<(), RecordsError> {
    if inputs.is_empty() {
        return Ok(());
    }
    let positions: HashMap<&str, usize> = named
        .iter()
        .enumerate()
        .map(|(position, (name, _))| (name.as_str(), position))
        .collect();
    let found: Vec<usize> = inputs
        .iter()
        .map(|(buffer, input)| {
            positions
                .get(input.as_str())
                .copied()
                .ok_or_else(|| RecordsError::UnknownInput {
                    line: numbers[*buffer],
                    name: shortened_name(&named[*buffer].0),
                    input: shortened_name(input),
                })
        })
        .collect::<Result<_, _>>()?;
    for ((buffer, _), input) in inputs.iter().zip(found) {
        named[*buffer].1.in_place = Some(input);
    }
    Ok(())
}

/// The error in terms of lines.
fn at_line(error: UsageRecordsError, numbers: &[usize]) -> RecordsError {
    match error {
        UsageRecordsError::Duplicate {
            name,
            first,
            second,
        } => RecordsError::DuplicateLine {
            line: numbers[second],
            name,
            first: numbers[first],
        },
        error => match error.buffer() {
            Some(buffer) => RecordsError::AtLine {
                line: numbers[buffer],
                reason: Box::new(error.into()),
            },
            None => error.into(),
        },
    }
}

/// The table of these records, as MiniMalloc reads it, with the offsets of a plan where there are some.
///
/// Columns `alignment` and `in_place` are there if a buffer needs them; `offset` if there are offsets, or else if a
/// buffer is fixed.
pub fn write(records: &UsageRecords, offsets: Option<&[u64]>) -> String {
    let problem: &Problem = records.problem();
    let buffers = problem.buffers();
    let aligned = buffers.iter().any(|buffer| buffer.alignment != 1);
    let in_place = buffers.iter().any(|buffer| buffer.in_place.is_some());
    let placed = offsets.is_some() || buffers.iter().any(|buffer| buffer.fixed.is_some());
    let mut table = String::from("id,lower,upper,size");
    for (name, _) in [
        ("alignment", aligned),
        ("in_place", in_place),
        ("offset", placed),
    ]
    .iter()
    .filter(|(_, is)| *is)
    {
        write!(table, ",{name}").expect("a string takes all");
    }
    table.push('\n');
    for (number, (name, buffer)) in records.names().iter().zip(buffers).enumerate() {
        let Buffer {
            size, start, end, ..
        } = buffer;
        write!(table, "{},{start},{end},{size}", quoted(name)).expect("a string takes all");
        if aligned {
            write!(table, ",{}", buffer.alignment).expect("a string takes all");
        }
        if in_place {
            let input = buffer.in_place.map(|input| quoted(&records.names()[input]));
            write!(table, ",{}", input.unwrap_or_default()).expect("a string takes all");
        }
        if placed {
            let offset = offsets.map(|offsets| offsets[number]).or(buffer.fixed);
            let offset = offset.map(|offset| offset.to_string());
            write!(table, ",{}", offset.unwrap_or_default()).expect("a string takes all");
        }
        table.push('\n');
    }
    table
}
