//! The event table: what `skep` writes of any trace, and anyone may write by hand.
//!
//! ```text
//! op,id,bytes,stream
//! a,x,64,0            allocates 64 bytes under the name `x`
//! f,x,,               frees them
//! ```
//!
//! Column `stream` may be left out. A name is any text, quoted where it has a comma; once it is freed it may be used
//! again. Empty lines do not count.

use std::{
    borrow::Cow,
    io::{self, Read, Write},
};

use skep_planner::shortened_name;
use skep_records::csv::cells;

use crate::{
    MAX_BLOCK_BYTES,
    blocks::LiveBlocks,
    error::{TraceError, shown},
    event::{BlockId, TraceEvent},
    input::Input,
    lines::{LineReader, MAX_LINE_BYTES},
};

/// The columns, of which the last may be missing.
const COLUMNS: [&str; 4] = ["op", "id", "bytes", "stream"];
const NEEDED_COLUMNS: usize = 3;

/// Whether text begins as a table does.
pub(crate) fn is_heading(text: &[u8]) -> bool {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or(text);
    let mut cells = line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    COLUMNS[..NEEDED_COLUMNS].iter().all(|column| {
        cells
            .next()
            .is_some_and(|cell| cell.eq_ignore_ascii_case(column.as_bytes()))
    })
}

/// Reads a table line by line.
#[derive(Default)]
pub(crate) struct TableReader {
    lines: LineReader,
    /// How many columns the heading has; 0 before it.
    columns: usize,
}

impl TableReader {
    pub(crate) fn advance<R: Read>(
        &mut self,
        input: &mut Input<R>,
        blocks: &mut LiveBlocks,
    ) -> Result<bool, TraceError> {
        let Some(line) = self.lines.next(input)? else {
            return Ok(false);
        };
        let number = line.number;
        if line.is_cut {
            return Err(TraceError::LineTooLong {
                line: number,
                limit: MAX_LINE_BYTES,
            });
        }
        let text = std::str::from_utf8(line.bytes).map_err(|error| TraceError::Encoding {
            line: number,
            byte: line.bytes[error.valid_up_to()],
        })?;
        if text.trim().is_empty() {
            return Ok(true);
        }
        let mut row: Vec<Cow<'_, str>> = Vec::with_capacity(COLUMNS.len());
        let shown_number = usize::try_from(number).unwrap_or(usize::MAX);
        cells(text, shown_number, |_, cell| {
            row.push(cell);
            Ok(())
        })?;
        if self.columns == 0 {
            self.columns = heading(&row).ok_or_else(|| TraceError::Line {
                line: number,
                expected: "the heading `op,id,bytes` or `op,id,bytes,stream`",
                got: shown(line.bytes),
            })?;
            return Ok(true);
        }
        if row.len() != self.columns {
            return Err(TraceError::Line {
                line: number,
                expected: "as many cells as the heading has",
                got: shown(line.bytes),
            });
        }
        event(&row, number, blocks)?;
        Ok(true)
    }
}

/// How many columns a heading has, if it is one.
fn heading(row: &[Cow<'_, str>]) -> Option<usize> {
    let columns = COLUMNS.get(..row.len())?;
    let fits = row
        .iter()
        .zip(columns)
        .all(|(cell, column)| cell.eq_ignore_ascii_case(column));
    (fits && row.len() >= NEEDED_COLUMNS).then_some(row.len())
}

/// Takes a line with as many cells as the heading.
fn event(row: &[Cow<'_, str>], line: u64, blocks: &mut LiveBlocks) -> Result<(), TraceError> {
    let wrong = |column: usize, expected| TraceError::Cell {
        line,
        column: COLUMNS[column],
        expected,
        got: shortened_name(&row[column]),
    };
    let id = row[1].as_bytes();
    match &*row[0] {
        "a" => {
            let bytes = whole(&row[2]).filter(|bytes| *bytes <= MAX_BLOCK_BYTES);
            let bytes = bytes.ok_or_else(|| wrong(2, "a whole number from 0 to 2^63"))?;
            let stream = match row.get(3).map_or("", |stream| &**stream) {
                "" => 0,
                stream => {
                    whole(stream).ok_or_else(|| wrong(3, "a whole number from 0 to 2^64 - 1"))?
                }
            };
            if id.is_empty() {
                blocks.unmatched.allocation_without_id += 1;
                return Ok(());
            }
            blocks.malloc(id, bytes, stream)
        }
        "f" => {
            if let Some(column) = (2..row.len()).find(|column| !row[*column].is_empty()) {
                return Err(wrong(column, "an empty cell in a line that frees"));
            }
            if id.is_empty() {
                blocks.unmatched.free_without_id += 1;
            } else {
                blocks.free(id);
            }
            Ok(())
        }
        _ => Err(wrong(0, "`a`, which allocates, or `f`, which frees")),
    }
}

/// A number without a sign, which `parse` would allow.
fn whole(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

/// Writes events as a table, with column `stream` where a block has another one than 0. Read back, the table gives the
/// same events if these come from a [`crate::TraceReader`].
///
/// # Errors
/// `out` fails.
pub fn write_events(mut out: impl Write, events: &[TraceEvent]) -> io::Result<()> {
    let has_streams = events
        .iter()
        .any(|event| matches!(event, TraceEvent::Malloc { stream: 1.., .. }));
    let columns = if has_streams {
        COLUMNS.len()
    } else {
        NEEDED_COLUMNS
    };
    writeln!(out, "{}", COLUMNS[..columns].join(","))?;
    for event in events {
        match *event {
            TraceEvent::Malloc {
                block: BlockId(block),
                bytes,
                stream,
            } => {
                write!(out, "a,{block},{bytes}")?;
                if has_streams {
                    write!(out, ",{stream}")?;
                }
            }
            TraceEvent::Free {
                block: BlockId(block),
            } => {
                write!(out, "f,{block},")?;
                if has_streams {
                    write!(out, ",")?;
                }
            }
        }
        writeln!(out)?;
    }
    Ok(())
}
