//! TensorFlow's memory log: lines `__LOG_MEMORY__ <message> { <fields> }` among any other lines
//! (`tensorflow/core/framework/log_memory.cc` and `log_memory.proto`).
//!
//! A block is known by its allocator's name and its number there. Tensors whose allocator does not number its blocks
//! have no id, on either side, and are counted only. `MemoryLogTensorOutput` tells of a tensor that leaves a kernel,
//! not of an allocation.

mod text;

use std::{collections::HashMap, io::Read};

use self::text::{TextField, TextFields};
use crate::{
    blocks::LiveBlocks,
    error::{TraceError, shown},
    input::Input,
    lines::{LineReader, MAX_LINE_BYTES},
};

/// What a line of the log has before its message, and how every message's name begins.
const MARKER: &[u8] = b"__LOG_MEMORY__ MemoryLog";

/// What a log without such a line lacks.
const EXPECTED: &str =
    "a line with `__LOG_MEMORY__` (TensorFlow logs them with `TF_CPP_VMODULE=log_memory=2`)";

/// Where the first marker is in these bytes.
pub(crate) fn marker(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(MARKER.len())
        // The first byte is compared apart, since it is enough nearly everywhere.
        .position(|window| window[0] == MARKER[0] && window == MARKER)
}

/// Reads a log line by line.
#[derive(Default)]
pub(crate) struct LogReader {
    lines: LineReader,
    deferred: DeferredFrees,
    has_message: bool,
}

impl LogReader {
    pub(crate) fn advance<R: Read>(
        &mut self,
        input: &mut Input<R>,
        blocks: &mut LiveBlocks,
    ) -> Result<bool, TraceError> {
        let Some(line) = self.lines.next(input)? else {
            return if self.has_message {
                Ok(false)
            } else {
                Err(TraceError::NothingFound { expected: EXPECTED })
            };
        };
        if let Some(at) = marker(line.bytes) {
            self.has_message = true;
            let message = line.bytes[at + MARKER.len()..].trim_ascii();
            let place = LinePlace {
                number: line.number,
                is_cut: line.is_cut,
            };
            take(message, &place, &mut self.deferred, blocks)?;
        }
        Ok(true)
    }
}

/// The names of messages, behind what all of them begin with.
const MESSAGES: &str = "`TensorAllocation`, `TensorDeallocation`, `TensorOutput`, `RawAllocation`, `RawDeallocation` or \
    `Step` behind `MemoryLog`";

/// Takes what is behind the marker.
fn take(
    message: &[u8],
    place: &LinePlace,
    deferred: &mut DeferredFrees,
    blocks: &mut LiveBlocks,
) -> Result<(), TraceError> {
    let name_end = message.iter().position(|byte| !byte.is_ascii_alphabetic());
    let (name, body) = message.split_at(name_end.unwrap_or(message.len()));
    let body = body.trim_ascii();
    match name {
        b"TensorAllocation" => {
            let record = record(body, place)?;
            // What was asked for: an allocator that replays the log rounds it in its own way.
            let bytes = record.requested_bytes.or(record.allocated_bytes);
            allocate(&record, bytes, place, blocks)
        }
        b"RawAllocation" => {
            let record = record(body, place)?;
            allocate(&record, record.num_bytes, place, blocks)
        }
        b"TensorDeallocation" => free(&record(body, place)?, place, blocks),
        b"RawDeallocation" => {
            let record = record(body, place)?;
            if matches!(record.deferred, Some(b"true")) {
                deferred.add(&record);
            } else if deferred.remove(&record) {
                return Ok(());
            }
            free(&record, place, blocks)
        }
        // Nothing of these matters, and handles of steps may be long.
        b"Step" | b"TensorOutput" if place.is_cut || body.ends_with(b"}") => Ok(()),
        b"Step" | b"TensorOutput" => Err(place.wrong(text::WHOLE, body)),
        _ => Err(place.wrong(MESSAGES, message)),
    }
}

/// Where a message is.
struct LinePlace {
    number: u64,
    is_cut: bool,
}

impl LinePlace {
    fn wrong(&self, expected: &'static str, got: &[u8]) -> TraceError {
        TraceError::Line {
            line: self.number,
            expected,
            got: shown(got),
        }
    }
}

/// The fields that matter of any message, as the log has them.
#[derive(Default)]
struct LogRecord<'a> {
    step_id: Option<&'a [u8]>,
    operation: Option<&'a [u8]>,
    num_bytes: Option<&'a [u8]>,
    requested_bytes: Option<&'a [u8]>,
    allocated_bytes: Option<&'a [u8]>,
    allocation_id: Option<&'a [u8]>,
    allocator_name: Option<&'a [u8]>,
    deferred: Option<&'a [u8]>,
}

/// Reads the fields of a message. Those of a tensor's allocation are two messages deep.
fn record<'a>(body: &'a [u8], place: &LinePlace) -> Result<LogRecord<'a>, TraceError> {
    if place.is_cut {
        return Err(TraceError::LineTooLong {
            line: place.number,
            limit: MAX_LINE_BYTES,
        });
    }
    let mut record = LogRecord::default();
    let mut path: Vec<&[u8]> = Vec::new();
    for field in TextFields::of(body) {
        match field.map_err(|(expected, got)| place.wrong(expected, got))? {
            TextField::Open(name) => path.push(name),
            TextField::Close => {
                path.pop();
            }
            TextField::Value(name, value) => {
                if !matches!(path[..], [] | [b"tensor", b"allocation_description"]) {
                    continue;
                }
                let field = match name {
                    b"step_id" => &mut record.step_id,
                    b"operation" => &mut record.operation,
                    b"num_bytes" => &mut record.num_bytes,
                    b"requested_bytes" => &mut record.requested_bytes,
                    b"allocated_bytes" => &mut record.allocated_bytes,
                    b"allocation_id" => &mut record.allocation_id,
                    b"allocator_name" => &mut record.allocator_name,
                    b"deferred" => &mut record.deferred,
                    _ => continue,
                };
                *field = Some(value);
            }
        }
    }
    Ok(record)
}

/// What the trace calls a record's block: the number behind the name. `None` without a number: allocators count from 1
/// if they count, and a field that is 0 is left out.
fn key(record: &LogRecord<'_>, place: &LinePlace) -> Result<Option<Vec<u8>>, TraceError> {
    let Some(id) = record.allocation_id else {
        return Ok(None);
    };
    let id = number(id, place)?;
    if id <= 0 {
        return Ok(None);
    }
    let mut key = record.allocator_name.unwrap_or_default().to_vec();
    key.extend(id.to_ne_bytes());
    Ok(Some(key))
}

fn number(text: &[u8], place: &LinePlace) -> Result<i64, TraceError> {
    let number = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok());
    number.ok_or_else(|| place.wrong("a whole number from -2^63 to 2^63 - 1", text))
}

fn allocate(
    record: &LogRecord<'_>,
    bytes: Option<&[u8]>,
    place: &LinePlace,
    blocks: &mut LiveBlocks,
) -> Result<(), TraceError> {
    let Some(key) = key(record, place)? else {
        blocks.unmatched.allocation_without_id += 1;
        return Ok(());
    };
    let bytes = bytes.unwrap_or(b"0");
    let size = u64::try_from(number(bytes, place)?);
    let size = size.map_err(|_| place.wrong("a size from 0 to 2^63 - 1", bytes))?;
    blocks.malloc(&key, size, 0)
}

fn free(
    record: &LogRecord<'_>,
    place: &LinePlace,
    blocks: &mut LiveBlocks,
) -> Result<(), TraceError> {
    match key(record, place)? {
        Some(key) => blocks.free(&key),
        None => blocks.unmatched.free_without_id += 1,
    }
    Ok(())
}

/// Frees of raw memory on a GPU, which are logged twice: `deferred` when the allocator gets the block back, in the order
/// of the stream, and once more when the stream has come so far (`EigenGpuStreamDevice` in `gpu_device.cc`). The first
/// frees. The second has whatever id lies at that address by then, so it is known by its kernel and step alone.
#[derive(Default)]
struct DeferredFrees(HashMap<Vec<u8>, u64>);

impl DeferredFrees {
    fn key(record: &LogRecord<'_>) -> Vec<u8> {
        // A text cannot have an unescaped quote, so the parts stay apart.
        let parts = [record.step_id, record.operation, record.allocator_name];
        parts.map(Option::unwrap_or_default).join(&b'"')
    }

    fn add(&mut self, record: &LogRecord<'_>) {
        *self.0.entry(Self::key(record)).or_default() += 1;
    }

    /// Whether this is the second time that a free is logged.
    fn remove(&mut self, record: &LogRecord<'_>) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let key = Self::key(record);
        let Some(count) = self.0.get_mut(&key) else {
            return false;
        };
        *count -= 1;
        if *count == 0 {
            self.0.remove(&key);
        }
        true
    }
}
