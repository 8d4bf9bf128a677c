//! `*.hlo.pb`: the trace of the heap simulator in the buffer assignment of an `HloProto`.

use std::collections::HashMap;

use skep_planner::UsageRecords;

use super::{
    sorted,
    wire::{self, WireField, WireFields, WireValue},
};
use crate::{
    MAX_BUFFERS,
    error::RecordsError,
    xla::groups::{ValueGroup, ValueGroups},
};

/// Numbers of fields, by message.
mod field {
    pub(super) const PROTO_BUFFER_ASSIGNMENT: u32 = 3;
    pub(super) const ASSIGNMENT_LOGICAL_BUFFER: u32 = 1;
    pub(super) const ASSIGNMENT_TRACE: u32 = 4;
    pub(super) const BUFFER_ID: u32 = 1;
    pub(super) const BUFFER_SIZE: u32 = 2;
    pub(super) const BUFFER_DEFINED_AT: u32 = 3;
    pub(super) const LOCATION_INDEX: u32 = 3;
    pub(super) const TRACE_EVENT: u32 = 1;
    pub(super) const EVENT_KIND: u32 = 1;
    pub(super) const EVENT_BUFFER: u32 = 2;
    pub(super) const EVENT_INSTRUCTION: u32 = 4;
    pub(super) const EVENT_SHARES_WITH: u32 = 5;
}

/// Kinds of events.
const ALLOC: u64 = 0;
const FREE: u64 = 1;
const SHARE_WITH: u64 = 2;

/// What a dump without events lacks.
const EXPECTED: &str = "a trace of the heap simulator in the buffer assignment, with an allocation";

/// Reads an `HloProto`: for each trace of the heap simulator a title and the buffers of its values.
///
/// # Errors
/// The message is broken, says something that cannot be, or has no trace.
pub fn read_proto(bytes: &[u8]) -> Result<Vec<(String, UsageRecords)>, RecordsError> {
    let heaps = traces(bytes)?.into_iter().enumerate();
    let heaps =
        heaps.map(|(number, (groups, _))| Ok((format!("heap {number}"), groups.records()?)));
    sorted(heaps.collect::<Result<_, RecordsError>>()?, EXPECTED)
}

/// A block of the heap simulator: what its values share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapBlock {
    /// Bytes, those of the largest of the values.
    pub size: u64,
    /// The event that allocates it, from 0 within the trace.
    pub start: u64,
    /// The event that frees the last of its values; `None` if one of them stays.
    pub end: Option<u64>,
}

/// Reads an `HloProto`: for each trace of the heap simulator, in the order of the file, its blocks in the order of
/// allocation.
///
/// # Errors
/// As [`read_proto`].
pub fn read_heap_blocks(bytes: &[u8]) -> Result<Vec<Vec<HeapBlock>>, RecordsError> {
    let heaps = traces(bytes)?;
    if heaps.iter().all(|(groups, _)| groups.is_empty()) {
        return Err(RecordsError::NothingToPlan { expected: EXPECTED });
    }
    let heaps = heaps.into_iter();
    Ok(heaps
        .map(|(groups, events)| {
            let blocks = groups.into_groups().map(|group| HeapBlock {
                size: group.size,
                start: group.start,
                // Of a block that is live after the last event, the end is that of the trace.
                end: Some(group.end).filter(|end| *end < events),
            });
            blocks.collect()
        })
        .collect())
}

/// The traces of the heap simulator: the buffers of each, and how many events it has.
fn traces(bytes: &[u8]) -> Result<Vec<(ValueGroups, u64)>, RecordsError> {
    let mut logical_buffers = HashMap::new();
    let mut traces = Vec::new();
    for (message, at) in messages(bytes, 0, field::PROTO_BUFFER_ASSIGNMENT)? {
        for field in WireFields::new(message, at) {
            let WireField { number, value } = field?;
            match (number, value) {
                (field::ASSIGNMENT_LOGICAL_BUFFER, WireValue::Bytes { bytes, at }) => {
                    let (id, logical_buffer) = logical_buffer(bytes, at)?;
                    if logical_buffers.len() == MAX_BUFFERS {
                        return Err(RecordsError::TooMany { limit: MAX_BUFFERS });
                    }
                    logical_buffers.insert(id, logical_buffer);
                }
                (field::ASSIGNMENT_TRACE, WireValue::Bytes { bytes, at }) => {
                    traces.push((bytes, at))
                }
                _ => {}
            }
        }
    }
    let traces = traces.into_iter();
    traces
        .map(|(message, at)| trace(message, at, &logical_buffers))
        .collect()
}

/// The messages in fields of this number, with their positions.
fn messages(bytes: &[u8], at: usize, number: u32) -> Result<Vec<(&[u8], usize)>, RecordsError> {
    let mut found = Vec::new();
    for field in WireFields::new(bytes, at) {
        let field = field?;
        if let (true, WireValue::Bytes { bytes, at }) = (field.number == number, field.value) {
            found.push((bytes, at));
        }
    }
    Ok(found)
}

/// What a value is, apart from its id.
struct LogicalBuffer {
    size: u64,
    /// Which of an operation's several values it is, as in `{1}`; empty for that of one alone.
    index: String,
}

/// A value by its id. A number that is 0 is left out of a message.
fn logical_buffer(message: &[u8], at: usize) -> Result<(u64, LogicalBuffer), RecordsError> {
    let (mut id, mut size, mut index) = (0, 0, String::new());
    for field in WireFields::new(message, at) {
        let WireField { number, value } = field?;
        match (number, value) {
            (field::BUFFER_ID, WireValue::Varint(value)) => id = value,
            (field::BUFFER_SIZE, WireValue::Varint(value)) => size = value,
            (field::BUFFER_DEFINED_AT, WireValue::Bytes { bytes, at }) => {
                if let Some((packed, at)) = messages(bytes, at, field::LOCATION_INDEX)?.last() {
                    let positions = wire::packed(packed, *at)?;
                    let positions: Vec<String> = positions.iter().map(u64::to_string).collect();
                    index = format!("{{{}}}", positions.join(","));
                }
            }
            _ => {}
        }
    }
    // A signed number in XLA's definition.
    if i64::try_from(size).is_err() {
        let expected = "a size from 0 to 2^63 - 1";
        return Err(RecordsError::Wire { byte: at, expected });
    }
    Ok((id, LogicalBuffer { size, index }))
}

/// An event of a trace.
struct TraceEvent<'a> {
    kind: u64,
    buffer: u64,
    shares_with: u64,
    instruction: &'a [u8],
}

fn event(message: &[u8], at: usize) -> Result<TraceEvent<'_>, RecordsError> {
    let mut event = TraceEvent {
        kind: ALLOC,
        buffer: 0,
        shares_with: 0,
        instruction: &[],
    };
    for field in WireFields::new(message, at) {
        match field? {
            WireField {
                number: field::EVENT_KIND,
                value: WireValue::Varint(kind),
            } => event.kind = kind,
            WireField {
                number: field::EVENT_BUFFER,
                value: WireValue::Varint(buffer),
            } => event.buffer = buffer,
            WireField {
                number: field::EVENT_SHARES_WITH,
                value: WireValue::Varint(other),
            } => event.shares_with = other,
            WireField {
                number: field::EVENT_INSTRUCTION,
                value: WireValue::Bytes { bytes, .. },
            } => event.instruction = bytes,
            _ => {}
        }
    }
    Ok(event)
}

/// The buffers of a trace, live from the event that allocates one to the event that frees the last of its values; and
/// how many events it has.
///
/// A value may share a buffer that the event before has freed: the instruction that ends one begins the other.
fn trace(
    message: &[u8],
    at: usize,
    logical_buffers: &HashMap<u64, LogicalBuffer>,
) -> Result<(ValueGroups, u64), RecordsError> {
    let mut groups = ValueGroups::default();
    // Each value's buffer, and whether the value is live.
    let mut values: HashMap<u64, (usize, bool)> = HashMap::new();
    let mut step = 0;
    for (bytes, byte) in messages(message, at, field::TRACE_EVENT)? {
        let event = event(bytes, byte)?;
        let wrong = |expected| RecordsError::Wire { byte, expected };
        if event.kind == FREE {
            let value = values.get_mut(&event.buffer).filter(|(_, live)| *live);
            let (group, live) =
                value.ok_or_else(|| wrong("an event that frees a buffer which is allocated"))?;
            *live = false;
            groups.end(*group, step);
        } else {
            let LogicalBuffer { size, index } = logical_buffers
                .get(&event.buffer)
                .ok_or_else(|| wrong("an event of a logical buffer of the assignment"))?;
            let group = match event.kind {
                ALLOC => {
                    let instruction = String::from_utf8_lossy(event.instruction);
                    let name = format!("{} {instruction}{index}", event.buffer);
                    groups.push(ValueGroup {
                        name,
                        size: *size,
                        start: step,
                        end: 0,
                    })?
                }
                SHARE_WITH => {
                    let shared = values.get(&event.shares_with);
                    shared
                        .ok_or_else(|| wrong("an event that shares a buffer which was allocated"))?
                        .0
                }
                _ => return Err(wrong("an event of kind 0, 1 or 2")),
            };
            groups.grow(group, *size);
            if values.insert(event.buffer, (group, true)).is_some() {
                return Err(wrong("an event of a buffer that was not allocated before"));
            }
        }
        step += 1;
    }
    for (group, live) in values.into_values() {
        if live {
            groups.end(group, step);
        }
    }
    Ok((groups, step))
}
