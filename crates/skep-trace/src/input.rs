//! Input in pieces: compressed or not, with the position of each byte, and a beginning that can be looked at.

use std::io::{Chain, Cursor, ErrorKind, Read};

use flate2::read::MultiGzDecoder;

use crate::error::TraceError;

/// How gzip data begins.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// How much is read at once, and how far the beginning is looked at: a log may begin with many lines of other kinds.
const BUFFER_BYTES: usize = 64 << 10;

/// What an error says is there where nothing is.
pub(crate) const END: &str = "the end of the input";

/// Decompressed input.
pub(crate) struct Input<R> {
    source: PlainSource<R>,
    buffer: Box<[u8]>,
    /// What of the buffer is not consumed.
    start: usize,
    end: usize,
    /// Position of `start` in the input.
    at: u64,
    ended: bool,
}

enum PlainSource<R> {
    Plain(CountedSource<R>),
    Gzip(Box<MultiGzDecoder<CountedSource<R>>>),
}

impl<R: Read> Input<R> {
    /// Looks at the first two bytes to see whether the input is compressed.
    pub(crate) fn open(mut input: R) -> Result<Self, TraceError> {
        let mut magic = Vec::with_capacity(GZIP_MAGIC.len());
        let read = input
            .by_ref()
            .take(GZIP_MAGIC.len() as u64)
            .read_to_end(&mut magic);
        read.map_err(|error| TraceError::Read {
            byte: magic.len() as u64,
            reason: error.to_string(),
        })?;
        let is_gzip = magic == GZIP_MAGIC;
        let counted = CountedSource {
            input: Cursor::new(magic).chain(input),
            bytes: 0,
            has_failed: false,
        };
        Ok(Self {
            source: if is_gzip {
                PlainSource::Gzip(Box::new(MultiGzDecoder::new(counted)))
            } else {
                PlainSource::Plain(counted)
            },
            buffer: vec![0; BUFFER_BYTES].into(),
            start: 0,
            end: 0,
            at: 0,
            ended: false,
        })
    }

    /// Position of the next byte.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// The beginning, as far as it fits. Only before anything is consumed.
    pub(crate) fn head(&mut self) -> Result<&[u8], TraceError> {
        debug_assert_eq!(self.start, 0);
        while !self.ended && self.end < self.buffer.len() {
            self.fill()?;
        }
        Ok(&self.buffer[..self.end])
    }

    /// Some of the next bytes; none at the end alone.
    pub(crate) fn bytes(&mut self) -> Result<&[u8], TraceError> {
        if self.start == self.end && !self.ended {
            (self.start, self.end) = (0, 0);
            self.fill()?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// Passes over bytes that [`Input::bytes`] has shown.
    pub(crate) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.end - self.start);
        self.start += count;
        self.at += count as u64;
    }

    /// The next byte, which stays.
    pub(crate) fn peek(&mut self) -> Result<Option<u8>, TraceError> {
        Ok(self.bytes()?.first().copied())
    }

    /// The next byte.
    pub(crate) fn next(&mut self) -> Result<Option<u8>, TraceError> {
        let next = self.peek()?;
        if next.is_some() {
            self.consume(1);
        }
        Ok(next)
    }

    /// The next bytes into `taken`, until it is full. `expected` is for the error where the input ends before.
    pub(crate) fn take(
        &mut self,
        taken: &mut [u8],
        expected: &'static str,
    ) -> Result<(), TraceError> {
        let mut filled = 0;
        while filled < taken.len() {
            let wanted = taken.len() - filled;
            let bytes = self.some_of(wanted, expected)?;
            taken[filled..filled + bytes.len()].copy_from_slice(bytes);
            let count = bytes.len();
            filled += count;
            self.consume(count);
        }
        Ok(())
    }

    /// Passes over this many bytes.
    pub(crate) fn skip(&mut self, count: u64, expected: &'static str) -> Result<(), TraceError> {
        let mut left = count;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX);
            let count = self.some_of(wanted, expected)?.len();
            self.consume(count);
            left -= count as u64;
        }
        Ok(())
    }

    /// At least one byte and at most `wanted`.
    fn some_of(&mut self, wanted: usize, expected: &'static str) -> Result<&[u8], TraceError> {
        let byte = self.at;
        let bytes = self.bytes()?;
        if bytes.is_empty() {
            let got = END.to_owned();
            return Err(TraceError::Byte {
                byte,
                expected,
                got,
            });
        }
        Ok(&bytes[..bytes.len().min(wanted)])
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self, limit: usize) -> Result<Vec<u8>, TraceError> {
        let mut rest = Vec::new();
        loop {
            let bytes = self.bytes()?;
            let count = bytes.len();
            if count == 0 {
                return Ok(rest);
            }
            if count > limit - rest.len() {
                return Err(TraceError::TooMany {
                    what: "bytes of a file that is read whole",
                    limit: limit as u64,
                });
            }
            rest.extend_from_slice(bytes);
            self.consume(count);
        }
    }

    /// Reads more behind what is there.
    fn fill(&mut self) -> Result<(), TraceError> {
        loop {
            let room = &mut self.buffer[self.end..];
            let read = match &mut self.source {
                PlainSource::Plain(source) => source.read(room),
                PlainSource::Gzip(source) => source.read(room),
            };
            match read {
                Ok(count) => {
                    self.end += count;
                    self.ended = count == 0;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failure(&error)),
            }
        }
    }

    /// The input's own failure, or what the decompression found.
    fn failure(&self, error: &std::io::Error) -> TraceError {
        let (source, is_gzip) = match &self.source {
            PlainSource::Plain(source) => (source, false),
            PlainSource::Gzip(decoder) => (decoder.get_ref(), true),
        };
        let bytes = source.bytes;
        let plain = self.at + (self.end - self.start) as u64;
        let reason = error.to_string();
        if source.has_failed || !is_gzip {
            TraceError::Read {
                byte: bytes,
                reason,
            }
        } else if error.kind() == ErrorKind::UnexpectedEof {
            TraceError::Truncated { bytes, plain }
        } else {
            TraceError::Gzip { plain, reason }
        }
    }
}

/// The caller's input: how much of it was read, and whether it failed.
struct CountedSource<R> {
    /// The bytes that were looked at, and the rest.
    input: Chain<Cursor<Vec<u8>>, R>,
    bytes: u64,
    has_failed: bool,
}

impl<R: Read> Read for CountedSource<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.input.read(buffer);
        match &read {
            Ok(count) => self.bytes += *count as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.has_failed = true,
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_ends_at_its_limit() {
        let rest = |limit| Input::open(&b"abc"[..]).expect("plain").rest(limit);
        assert_eq!(rest(3).expect("as long as may be"), b"abc");
        assert_eq!(
            rest(2).expect_err("too long").to_string(),
            "more than 2 bytes of a file that is read whole, which is the limit"
        );
    }
}
