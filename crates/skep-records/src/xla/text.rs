//! `*-buffer-assignment.txt`: which values lie where in which allocation.

use std::collections::HashMap;

use skep_planner::{UsageRecords, shortened_name};

use super::{
    ASSIGNMENT_HEADING,
    groups::{ValueGroup, ValueGroups},
    live_range, sorted,
};
use crate::{
    MAX_BUFFERS,
    error::{RecordsError, text},
};

/// A value of an allocation, as the file has it.
struct AssignedValue<'a> {
    id: &'a str,
    name: &'a str,
    size: u64,
    offset: u64,
    /// Whether it is the table of an operation's several values, which is placed apart from them.
    is_tuple: bool,
}

/// A value with its live range: instructions, both ends included.
struct PlacedValue {
    name: String,
    size: u64,
    offset: u64,
    start: u64,
    end: u64,
}

/// Reads a buffer assignment and the live ranges of the same run: for each allocation of the heap simulator a title and
/// the buffers of its values.
///
/// # Errors
/// A line is not what it should be, a value has no live range, or no allocation is `preallocated-temp`.
pub fn read_text(
    assignment: &[u8],
    live_ranges: &[u8],
) -> Result<Vec<(String, UsageRecords)>, RecordsError> {
    let ranges = live_range::read(live_ranges)?;
    let mut heaps: Vec<(String, Vec<PlacedValue>)> = Vec::new();
    let mut in_heap = false;
    let mut count = 0;
    for (index, line) in text(assignment)?.lines().enumerate() {
        let number = index + 1;
        let wrong = |expected| RecordsError::Line {
            line: number,
            expected,
            got: shortened_name(line.trim()),
        };
        if index == 0 && !line.starts_with(ASSIGNMENT_HEADING) {
            return Err(wrong("`BufferAssignment:`, as a buffer assignment begins"));
        }
        if let Some(entry) = line.strip_prefix("allocation ") {
            const EXPECTED: &str =
                "an allocation as in `allocation 3: size 64, preallocated-temp:`";
            let (allocation, kind) = allocation(entry).ok_or_else(|| wrong(EXPECTED))?;
            in_heap = kind
                .split(", ")
                .any(|word| word.trim_end_matches(':') == "preallocated-temp");
            if in_heap {
                heaps.push((format!("allocation {allocation}"), Vec::new()));
            }
            continue;
        }
        let entry = line.trim_start().strip_prefix("value: ");
        let (Some(entry), Some((_, values))) = (entry, heaps.last_mut().filter(|_| in_heap)) else {
            // A line of another kind ends the list of an allocation's values.
            in_heap = false;
            continue;
        };
        const EXPECTED: &str =
            "a value as in `value: <7 add.1 @0> (size=64,offset=128): f32[16]{0}`";
        let value = value(entry).ok_or_else(|| wrong(EXPECTED))?;
        count += 1;
        if count > MAX_BUFFERS {
            return Err(RecordsError::TooMany { limit: MAX_BUFFERS });
        }
        if !value.is_tuple {
            values.push(placed(&value, &ranges, number)?);
        }
    }
    let heaps = heaps
        .into_iter()
        .map(|(title, values)| Ok((title, grouped(values)?)));
    let heaps = heaps.collect::<Result<_, RecordsError>>()?;
    sorted(heaps, "a `preallocated-temp` allocation with values")
}

/// `3: size 64, preallocated-temp:`: its number, and what is behind its size.
fn allocation(entry: &str) -> Option<(u64, &str)> {
    let (number, rest) = entry.split_once(": size ")?;
    let (size, kind) = rest.split_once(", ")?;
    size.parse::<u64>().ok()?;
    Some((number.parse().ok()?, kind))
}

/// `<7 add.1 @0> (size=64,offset=128): f32[16]{0}`.
fn value(entry: &str) -> Option<AssignedValue<'_>> {
    let (tag, place) = entry.strip_prefix('<')?.split_once("> (size=")?;
    let (id, name) = tag.rsplit_once(" @")?.0.split_once(' ')?;
    let (size, place) = place.split_once(",offset=")?;
    let (offset, shape) = place.split_once(')')?;
    Some(AssignedValue {
        id,
        name: live_range::without_empty_index(name),
        size: size.parse().ok()?,
        offset: offset.parse().ok()?,
        is_tuple: shape.strip_prefix(": ")?.starts_with('('),
    })
}

fn placed(
    value: &AssignedValue<'_>,
    ranges: &HashMap<&str, (u64, u64)>,
    line: usize,
) -> Result<PlacedValue, RecordsError> {
    let &AssignedValue {
        id,
        name,
        size,
        offset,
        ..
    } = value;
    match ranges.get(name) {
        Some(&(start, end)) => Ok(PlacedValue {
            name: format!("{id} {name}"),
            size,
            offset,
            start,
            end,
        }),
        None => Err(RecordsError::NoLiveRange {
            line,
            name: shortened_name(name),
        }),
    }
}

/// One buffer for values that lie at one offset while they are live.
fn grouped(mut values: Vec<PlacedValue>) -> Result<UsageRecords, RecordsError> {
    values.sort_by(|a, b| {
        (a.offset, a.start, a.end, &a.name).cmp(&(b.offset, b.start, b.end, &b.name))
    });
    let mut groups: Vec<(u64, ValueGroup)> = Vec::new();
    for PlacedValue {
        name,
        size,
        offset,
        start,
        end,
    } in values
    {
        // `live_range::read` leaves room for it.
        let end = end + 1;
        match groups.last_mut() {
            Some((at, group)) if *at == offset && start < group.end => {
                group.size = group.size.max(size);
                group.end = group.end.max(end);
            }
            _ => groups.push((
                offset,
                ValueGroup {
                    name,
                    size,
                    start,
                    end,
                },
            )),
        }
    }
    groups.sort_by_key(|(_, group)| group.start);
    let mut found = ValueGroups::default();
    for (_, group) in groups {
        found.push(group)?;
    }
    found.records()
}
