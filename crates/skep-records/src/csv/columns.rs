//! Columns by the names that a heading may have for them, and rows by their columns.

use std::borrow::Cow;

use skep_planner::{Buffer, shortened_name};

use super::cells;
use crate::error::RecordsError;

/// What a column says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ColumnMeaning {
    Name,
    Start,
    End { inclusive: bool },
    Size,
    Alignment,
    Offset,
    InPlace,
    IsOutput,
    Gaps,
}

/// Every name that has a meaning, in small letters.
const NAMES: [(&str, ColumnMeaning); 22] = [
    ("id", ColumnMeaning::Name),
    ("buffer", ColumnMeaning::Name),
    ("buffer_id", ColumnMeaning::Name),
    ("name", ColumnMeaning::Name),
    ("tensor", ColumnMeaning::Name),
    ("tensor_id", ColumnMeaning::Name),
    ("lower", ColumnMeaning::Start),
    ("begin", ColumnMeaning::Start),
    ("start", ColumnMeaning::Start),
    ("first_op", ColumnMeaning::Start),
    ("first_task", ColumnMeaning::Start),
    ("upper", ColumnMeaning::End { inclusive: false }),
    ("end", ColumnMeaning::End { inclusive: true }),
    ("last_op", ColumnMeaning::End { inclusive: true }),
    ("last_task", ColumnMeaning::End { inclusive: true }),
    ("size", ColumnMeaning::Size),
    ("size_bytes", ColumnMeaning::Size),
    ("alignment", ColumnMeaning::Alignment),
    ("offset", ColumnMeaning::Offset),
    ("in_place", ColumnMeaning::InPlace),
    ("is_output", ColumnMeaning::IsOutput),
    ("gaps", ColumnMeaning::Gaps),
];

impl ColumnMeaning {
    fn of(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, meaning)| *meaning)
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Name => "names",
            Self::Start => "first steps",
            Self::End { .. } => "ends",
            Self::Size => "sizes",
            Self::Alignment => "alignments",
            Self::Offset => "fixed offsets",
            Self::InPlace => "whose place a buffer may take",
            Self::IsOutput => "which tensors are outputs",
            Self::Gaps => "gaps",
        }
    }

    fn same(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

/// A heading.
pub(super) struct Columns {
    /// What each column means, if anything, and its name.
    meanings: Vec<(Option<ColumnMeaning>, String)>,
}

/// A buffer, and the name of its input if it may be in its place.
pub(super) struct TableRow {
    pub(super) name: String,
    pub(super) buffer: Buffer,
    pub(super) input: Option<String>,
}

impl Columns {
    /// Reads a heading; also gives the columns without effect.
    pub(super) fn of(heading: &str, line: usize) -> Result<(Self, Vec<String>), RecordsError> {
        let mut meanings: Vec<(Option<ColumnMeaning>, String)> = Vec::new();
        cells(heading, line, |_, name| {
            let meaning = ColumnMeaning::of(&name);
            let other = meanings
                .iter()
                .find(|(other, _)| matches!((*other, meaning), (Some(a), Some(b)) if a.same(b)));
            if let (Some((_, other)), Some(meaning)) = (other, meaning) {
                return Err(RecordsError::TwoColumns {
                    line,
                    first: other.clone(),
                    second: name.into_owned(),
                    what: meaning.words(),
                });
            }
            meanings.push((meaning, shortened_name(&name)));
            Ok(())
        })?;
        for needed in [
            ColumnMeaning::Name,
            ColumnMeaning::Start,
            ColumnMeaning::End { inclusive: false },
            ColumnMeaning::Size,
        ] {
            let is_there = meanings
                .iter()
                .any(|(meaning, _)| meaning.is_some_and(|meaning| meaning.same(needed)));
            if !is_there {
                let names = NAMES.iter().filter(|(_, meaning)| meaning.same(needed));
                let names: Vec<String> = names.map(|(name, _)| format!("`{name}`")).collect();
                return Err(RecordsError::MissingColumn {
                    line,
                    what: needed.words(),
                    names: names.join(", "),
                    got: shortened_name(heading.trim()),
                });
            }
        }
        let ignored = meanings.iter().filter(|(meaning, _)| meaning.is_none());
        let ignored = ignored.map(|(_, name)| name.clone()).collect();
        Ok((Self { meanings }, ignored))
    }

    /// Reads a line; none for an output.
    pub(super) fn row(&self, line: &str, number: usize) -> Result<Option<TableRow>, RecordsError> {
        let mut name = String::new();
        let mut buffer = Buffer::new(0, 0, 0);
        let mut input = None;
        let mut is_output = false;
        let count = cells(line, number, |index, cell| {
            let Some((Some(meaning), column)) = self.meanings.get(index) else {
                return Ok(());
            };
            let cell = TableCell {
                text: cell,
                line: number,
                column,
            };
            match *meaning {
                ColumnMeaning::Name if cell.text.is_empty() => return Err(cell.wrong("a name")),
                ColumnMeaning::Name => name = cell.text.into_owned(),
                ColumnMeaning::Start => buffer.start = cell.number()?,
                ColumnMeaning::End { inclusive } => {
                    let end = cell.number()?.checked_add(u64::from(inclusive));
                    buffer.end = end.ok_or_else(|| cell.wrong("a step below 2^64 - 1"))?;
                }
                ColumnMeaning::Size => buffer.size = cell.number()?,
                ColumnMeaning::Alignment => {
                    let alignment = cell.number()?;
                    if !alignment.is_power_of_two() {
                        return Err(cell.wrong("a power of two"));
                    }
                    buffer.alignment = alignment;
                }
                ColumnMeaning::Offset => {
                    let anywhere = matches!(&*cell.text, "" | "-1");
                    buffer.fixed = (!anywhere).then(|| cell.number()).transpose()?;
                }
                ColumnMeaning::InPlace => {
                    input = Some(cell.text.into_owned()).filter(|input| !input.is_empty())
                }
                ColumnMeaning::IsOutput => {
                    is_output = match &*cell.text.to_ascii_lowercase() {
                        "1" | "true" => true,
                        "0" | "false" | "" => false,
                        _ => return Err(cell.wrong("0 or 1")),
                    }
                }
                ColumnMeaning::Gaps if cell.text.is_empty() => {}
                ColumnMeaning::Gaps => {
                    return Err(
                        cell.wrong("an empty cell, since gaps in live ranges are not supported")
                    );
                }
            }
            Ok(())
        })?;
        let expected = self.meanings.len();
        if count != expected {
            return Err(RecordsError::Cells {
                line: number,
                expected,
                got: count,
            });
        }
        let Buffer { start, end, .. } = buffer;
        if start >= end {
            let name = shortened_name(&name);
            return Err(RecordsError::Range {
                line: number,
                name,
                start,
                end,
            });
        }
        Ok((!is_output).then_some(TableRow {
            name,
            buffer,
            input,
        }))
    }
}

/// A cell, and where it is.
struct TableCell<'a> {
    text: Cow<'a, str>,
    line: usize,
    column: &'a str,
}

impl TableCell<'_> {
    fn number(&self) -> Result<u64, RecordsError> {
        // `parse` would allow a sign.
        let number = self
            .text
            .parse()
            .ok()
            .filter(|_| !self.text.starts_with('+'));
        number.ok_or_else(|| self.wrong("a whole number from 0 to 2^64 - 1"))
    }

    fn wrong(&self, expected: &'static str) -> RecordsError {
        RecordsError::Cell {
            line: self.line,
            column: self.column.to_owned(),
            expected,
            got: shortened_name(&self.text),
        }
    }
}
