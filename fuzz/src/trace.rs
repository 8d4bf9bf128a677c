//! Files of `skep replay`: memory traces of other tools.

use std::collections::HashSet;

use skep_records::unpack;
use skep_trace::{BlockId, TraceEvent, TraceFormat, TraceReader, write_events};

/// What is unpacked may be a million times as long, which is as it should be and would be slow.
const MOST_BYTES: usize = 1 << 20;

/// How compressed data begins.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Each block is allocated in its turn and freed once; the events come back from the table that they are written as, and
/// are the same if the trace is compressed.
pub fn trace(data: &[u8]) {
    let Ok(plain) = unpack(data) else {
        return;
    };
    // Compressed twice, it would be read as what is in the first.
    if plain.len() > MOST_BYTES || plain.starts_with(&GZIP_MAGIC) {
        return;
    }
    let (format, events, is_whole) = read(&plain);
    let (mut count, mut live) = (0, HashSet::new());
    for event in &events {
        match *event {
            TraceEvent::Malloc { block, .. } => {
                assert_eq!(block, BlockId(count));
                live.insert(block);
                count += 1;
            }
            TraceEvent::Free { block } => assert!(live.remove(&block)),
        }
    }
    // Every event takes some bytes; an id that is allocated twice makes two of one.
    assert!(events.len() <= 2 * plain.len());
    let mut table = Vec::new();
    write_events(&mut table, &events).expect("memory");
    assert_eq!(
        read(&table),
        (Some(TraceFormat::EventTable), events.clone(), true)
    );
    if data.starts_with(&GZIP_MAGIC) {
        assert_eq!(read(data), (format, events, is_whole));
    }
}

/// The format, the events before the first error, and whether the trace was read to its end without one.
fn read(data: &[u8]) -> (Option<TraceFormat>, Vec<TraceEvent>, bool) {
    let Ok(reader) = TraceReader::open(data) else {
        return (None, Vec::new(), false);
    };
    let format = reader.format();
    let mut is_whole = true;
    let events = reader
        .map_while(|event| {
            is_whole &= event.is_ok();
            event.ok()
        })
        .collect();
    (Some(format), events, is_whole)
}
