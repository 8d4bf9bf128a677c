//! Whatever the bytes: no panic, and events that a caller can believe.

use std::{
    collections::HashSet,
    io::{self, Read},
};

use crate::common::{packed, read};
use proptest::prelude::*;
use skep_trace::{BlockId, TraceError, TraceEvent, TraceReader};

/// One byte at a time, with interruptions, as no file gives them.
struct SlowInput<'a>(&'a [u8], bool);

impl Read for SlowInput<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let count = buffer.len().min(1);
        self.0.read(&mut buffer[..count])
    }
}

/// An input that fails after some bytes.
struct FailingInput<'a>(&'a [u8]);

impl Read for FailingInput<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::Error::other("the disk is gone")),
            count => Ok(count),
        }
    }
}

/// Each block is allocated in its turn, and freed once, while it is live.
fn check(events: &[TraceEvent]) {
    let (mut count, mut live) = (0, HashSet::new());
    for event in events {
        match *event {
            TraceEvent::Malloc { block, .. } => {
                assert_eq!(block, BlockId(count));
                live.insert(block);
                count += 1;
            }
            TraceEvent::Free { block } => assert!(live.remove(&block), "{block:?}"),
        }
    }
}

/// A trace of each format, without compression.
fn samples() -> Vec<Vec<u8>> {
    let tensorflow = "other\n1: I log_memory.cc:34] __LOG_MEMORY__ MemoryLogTensorAllocation { tensor { allocation_description { \
                      requested_bytes: 4 allocator_name: \"cpu\" allocation_id: 1 } } }\n__LOG_MEMORY__ \
                      MemoryLogRawDeallocation { allocation_id: 1 allocator_name: \"cpu\" deferred: true }\n";
    let profile = r#"{"a": [1, {}], "traceEvents": [{"name": "[memory]", "ts": 1.5, "args": {"Bytes": 8, "Addr": 16, "Ev Idx": 3}},
        {"name": "[memory]", "ts": 1.25, "args": {"Bytes": -8, "Addr": 16}}, {"name": "x\\\"y"}], "b": "c"}"#;
    let xla = b"\x0a\x01m\x1a\x18\x0a\x04\x08\x01\x10\x40\x22\x10\x0a\x06\x08\x00\x10\x01\x28\x00\x0a\x06\x08\x01\x10\x01\x28\x00";
    let table = "op,id,bytes,stream\na,x,5,1\na,\"y,\",6,\nf,x,,\nf,z,,\n";
    vec![
        tensorflow.into(),
        profile.into(),
        xla.to_vec(),
        table.into(),
        include_bytes!("data/snapshot-2.pickle").to_vec(),
        include_bytes!("data/snapshot-4.pickle").to_vec(),
    ]
}

#[test]
fn an_input_that_fails_says_so() {
    for sample in samples() {
        for input in [sample.clone(), packed(&sample)] {
            let length = input.len() as u64;
            let error = match TraceReader::open(FailingInput(&input)) {
                Err(error) => error,
                Ok(mut reader) => reader.find_map(Result::err).expect("it fails"),
            };
            let expected = TraceError::Read {
                byte: length,
                reason: "the disk is gone".to_owned(),
            };
            assert_eq!(error, expected);
        }
    }
}

#[test]
fn a_broken_checksum_is_found_whatever_the_format() {
    for sample in samples() {
        assert_eq!(read(&sample).2, None);
        let mut broken = packed(&sample);
        let checksum = broken.len() - 8;
        broken[checksum] ^= 1;
        let error = read(&broken).2.expect("broken");
        let expected = format!(
            "gzip data is broken after {} decompressed bytes: ",
            sample.len()
        );
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn pieces_of_one_byte_make_no_difference() {
    for sample in samples() {
        for input in [sample.clone(), packed(&sample)] {
            let reader = TraceReader::open(SlowInput(&input, false)).expect("a trace");
            let events: Vec<TraceEvent> = reader.collect::<Result<_, _>>().expect("whole");
            assert_eq!(events, read(&sample).0);
        }
    }
}

/// Bytes that are a trace but for some.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let samples = samples();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    let cut = any::<prop::sample::Index>();
    (0..samples.len(), changes, cut, any::<bool>()).prop_map(move |(which, changes, cut, cuts)| {
        let mut bytes = samples[which].clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&read(&bytes).0);
    }

    #[test]
    fn any_bytes_behind_a_beginning(
        beginning in prop::sample::select(vec![
            "op,id,bytes\n", "{\"traceEvents\":[", "\u{80}\u{4}", "__LOG_MEMORY__ MemoryLog", "\n", "\u{1a}",
        ]),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut input: Vec<u8> = beginning.chars().map(|letter| letter as u8).collect();
        input.extend(bytes);
        check(&read(&input).0);
    }

    #[test]
    fn traces_with_changes(bytes in mutated()) {
        let outcome = read(&bytes);
        check(&outcome.0);
        // A stream of another length in gzip, the same in it.
        if !bytes.is_empty() {
            prop_assert_eq!(read(&packed(&bytes)), outcome);
        }
    }
}
