//! Lines of text, each with its number, none longer than a bound.

use std::io::Read;

use crate::{error::TraceError, input::Input};

/// No line that matters is nearly as long: a tensor has at most 254 dims. What a line has beyond is not kept.
pub(crate) const MAX_LINE_BYTES: usize = 64 << 10;

/// A line, without what ends it.
pub(crate) struct TextLine<'a> {
    /// From 1.
    pub(crate) number: u64,
    pub(crate) bytes: &'a [u8],
    /// The line is longer than [`MAX_LINE_BYTES`].
    pub(crate) is_cut: bool,
}

/// Reads lines.
#[derive(Default)]
pub(crate) struct LineReader {
    line: Vec<u8>,
    number: u64,
}

impl LineReader {
    /// The next line. The last one may end with the input.
    pub(crate) fn next<R: Read>(
        &mut self,
        input: &mut Input<R>,
    ) -> Result<Option<TextLine<'_>>, TraceError> {
        self.line.clear();
        let (mut is_there, mut is_cut) = (false, false);
        loop {
            let bytes = input.bytes()?;
            if bytes.is_empty() {
                break;
            }
            is_there = true;
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            let kept = part.len().min(MAX_LINE_BYTES - self.line.len());
            is_cut |= kept < part.len();
            self.line.extend_from_slice(&part[..kept]);
            let count = part.len() + usize::from(end.is_some());
            input.consume(count);
            if end.is_some() {
                break;
            }
        }
        if !is_there {
            return Ok(None);
        }
        self.number += 1;
        let bytes = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        Ok(Some(TextLine {
            number: self.number,
            bytes,
            is_cut,
        }))
    }
}
