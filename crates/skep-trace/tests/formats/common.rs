//! What the tests of all formats begin with.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use skep_trace::{BlockId, TraceEvent, TraceReader};

pub(crate) fn malloc(block: u32, bytes: u64) -> TraceEvent {
    malloc_on(block, bytes, 0)
}

pub(crate) fn malloc_on(block: u32, bytes: u64, stream: u64) -> TraceEvent {
    TraceEvent::Malloc {
        block: BlockId(block),
        bytes,
        stream,
    }
}

pub(crate) fn free(block: u32) -> TraceEvent {
    TraceEvent::Free {
        block: BlockId(block),
    }
}

pub(crate) fn packed(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).expect("memory");
    encoder.finish().expect("memory")
}

/// What a reader gives: events, what did not match, and the error at the end if there is one.
pub(crate) type Outcome = (Vec<TraceEvent>, Vec<(&'static str, u64)>, Option<String>);

/// Reads a trace to its end or its error.
pub(crate) fn read(input: &[u8]) -> Outcome {
    let mut events = Vec::new();
    let mut reader = match TraceReader::open(input) {
        Ok(reader) => reader,
        Err(error) => return (events, Vec::new(), Some(error.to_string())),
    };
    let mut error = None;
    for event in reader.by_ref() {
        assert_eq!(error, None, "nothing follows an error");
        match event {
            Ok(event) => events.push(event),
            Err(found) => error = Some(found.to_string()),
        }
    }
    let unmatched = reader.unmatched().iter().collect();
    (events, unmatched, error)
}

/// What a trace without errors gives, which is the same if it is compressed.
pub(crate) fn read_whole(input: &[u8]) -> (Vec<TraceEvent>, Vec<(&'static str, u64)>) {
    let outcome = read(input);
    assert_eq!(outcome, read(&packed(input)));
    let (events, unmatched, error) = outcome;
    assert_eq!(error, None);
    (events, unmatched)
}

/// The error of a trace that has one.
pub(crate) fn refused(input: &[u8]) -> String {
    read(input).2.expect("an error")
}
