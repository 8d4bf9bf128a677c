//! XLA's dumps, as text and as a message of the same run.

use proptest::prelude::*;
use skep_planner::{Buffer, UsageRecords};
use skep_records::{Format, RecordsError, csv, unpack, xla};

const ASSIGNMENT: &str = "\
BufferAssignment:
allocation 0: size 64, output shape is |f32[16]|, maybe-live-out:
 value: <1 add.1 @0> (size=64,offset=0): f32[16]{0}
allocation 1: size 4, thread-local:
 value: <2 add.2 @0> (size=4,offset=0): f32[]
allocation 2: size 448, preallocated-temp:
 value: <10 dot.1 @0> (size=120,offset=0): f32[30]{0}
 value: <11 pair{} @0> (size=16,offset=384): (f32[16]{0}, f32[16]{0})
 value: <12 pair{0} @0> (size=64,offset=128): f32[16]{0}
 value: <13 pair{1} @0> (size=64,offset=192): f32[16]{0}
 value: <14 add.3 @0> (size=128,offset=0): f32[32]{0}
 value: <15 mul.1 @0> (size=256,offset=0): f32[64]{0}

Total bytes used: 516
 value: <99 of another list @0> (size=1,offset=0): f32[]
";

const LIVE_RANGES: &str = "\
HloLiveRange (max 9):
  InstructionSequence:
    0:p
    1:dot.1
  BufferLiveRange:
    dot.1{}:1-3
    pair{}:2-4
    pair{0}:2-2
    pair{1}:2-5
    add.3{}:3-5
    mul.1{}:6-8
  Live ranges at 3 (peak):
    dot.1: 128 bytes
";

/// A field of a message.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len())
        .ok()
        .filter(|length| *length < 128);
    let mut field = vec![number << 3 | 2, length.expect("a short message")];
    field.extend(value);
    field
}

fn logical_buffer(id: u8, size: u16, index: &[u8]) -> Vec<u8> {
    let size = [0x10, (size & 0x7f) as u8 | 0x80, (size >> 7) as u8];
    let index = if index.is_empty() {
        Vec::new()
    } else {
        field(3, index)
    };
    field(1, &[&[0x08, id][..], &size, &field(3, &index)].concat())
}

fn event(kind: u8, id: u8, name: &str, shares_with: u8) -> Vec<u8> {
    let numbers = [0x08, kind, 0x10, id, 0x28, shares_with];
    field(1, &[&numbers[..], &field(4, name.as_bytes())].concat())
}

/// What [`ASSIGNMENT`] and [`LIVE_RANGES`] say, as events.
fn message() -> Vec<u8> {
    let buffers = [
        logical_buffer(10, 120, &[]),
        logical_buffer(12, 64, &[0]),
        logical_buffer(13, 64, &[1]),
        logical_buffer(14, 128, &[]),
        logical_buffer(15, 256, &[]),
    ];
    let events = [
        event(0, 10, "dot.1", 0),
        event(0, 12, "pair", 0),
        event(0, 13, "pair", 0),
        event(1, 12, "pair", 0),
        event(1, 10, "dot.1", 0),
        event(2, 14, "add.3", 10),
        event(1, 13, "pair", 0),
        event(1, 14, "add.3", 0),
        event(0, 15, "mul.1", 0),
    ];
    // Longer than a byte can say.
    let long = |number: u8, value: Vec<u8>| {
        let length = value.len();
        [
            vec![
                number << 3 | 2,
                (length & 0x7f) as u8 | 0x80,
                (length >> 7) as u8,
            ],
            value,
        ]
        .concat()
    };
    let assignment = [buffers.concat(), long(4, events.concat())].concat();
    [field(1, &[0x0a, 1, b'm']), long(3, assignment)].concat()
}

fn only(heaps: Result<Vec<(String, UsageRecords)>, RecordsError>) -> (String, UsageRecords) {
    let mut heaps = heaps.expect("valid");
    assert_eq!(heaps.len(), 1);
    heaps.remove(0)
}

#[test]
fn a_buffer_assignment_and_its_live_ranges() {
    assert_eq!(
        Format::of(ASSIGNMENT.as_bytes()),
        Some(Format::BufferAssignment)
    );
    assert_eq!(Format::of(LIVE_RANGES.as_bytes()), Some(Format::LiveRange));
    let (title, records) = only(xla::read_text(
        ASSIGNMENT.as_bytes(),
        LIVE_RANGES.as_bytes(),
    ));
    assert_eq!(title, "allocation 2");
    assert_eq!(
        csv::write(&records, None),
        "id,lower,upper,size\n10 dot.1,1,6,128\n12 pair{0},2,3,64\n13 pair{1},2,6,64\n15 mul.1,6,9,256\n"
    );
}

#[test]
fn a_message_of_the_same_run() {
    let message = message();
    assert_eq!(Format::of(&message), Some(Format::HloProto));
    let (title, records) = only(xla::read_proto(&message));
    assert_eq!(title, "heap 0");
    assert_eq!(
        records.names(),
        ["10 dot.1", "12 pair{0}", "13 pair{1}", "15 mul.1"]
    );
    let expected = [
        Buffer::new(128, 0, 7),
        Buffer::new(64, 1, 3),
        Buffer::new(64, 2, 6),
        Buffer::new(256, 8, 9),
    ];
    assert_eq!(records.problem().buffers(), expected);
}

#[test]
fn blocks_of_a_message() {
    let block = |size, start, end| xla::HeapBlock { size, start, end };
    let expected = [
        block(128, 0, Some(7)),
        block(64, 1, Some(3)),
        block(64, 2, Some(6)),
        block(256, 8, None),
    ];
    let blocks = xla::read_heap_blocks(&message()).expect("valid");
    assert_eq!(blocks, [expected]);
    let error = xla::read_heap_blocks(&[0x0a, 1, b'm']).expect_err("no assignment");
    assert_eq!(
        error.to_string(),
        "expected a trace of the heap simulator in the buffer assignment, with an allocation, got none"
    );
}

#[test]
fn errors_in_a_text_are_named() {
    let refused = |assignment: &str, ranges: &str| {
        let result = xla::read_text(assignment.as_bytes(), ranges.as_bytes());
        result.expect_err("invalid").to_string()
    };
    assert_eq!(
        refused(ASSIGNMENT, ASSIGNMENT),
        "line 1: expected `HloLiveRange`, as a file of live ranges begins, got `BufferAssignment:`"
    );
    assert_eq!(
        refused(LIVE_RANGES, LIVE_RANGES),
        "line 1: expected `BufferAssignment:`, as a buffer assignment begins, got `HloLiveRange (max 9):`"
    );
    assert_eq!(
        refused(ASSIGNMENT, &LIVE_RANGES.replace("    add.3{}:3-5\n", "")),
        "line 11: value `add.3` has no live range, expected one in the file of live ranges of the same run"
    );
    assert_eq!(
        refused(
            &ASSIGNMENT.replace("(size=120,offset=0)", "(size=1e9,offset=0)"),
            LIVE_RANGES
        ),
        "line 7: expected a value as in `value: <7 add.1 @0> (size=64,offset=128): f32[16]{0}`, got \
         `value: <10 dot.1 @0> (size=1e9,offset=0): f32[30]{0}`"
    );
    assert_eq!(
        refused(
            &ASSIGNMENT.replace("allocation 1: size 4", "allocation 1: 4"),
            LIVE_RANGES
        ),
        "line 4: expected an allocation as in `allocation 3: size 64, preallocated-temp:`, got `allocation 1: 4, thread-local:`"
    );
    assert_eq!(
        refused(
            &ASSIGNMENT.replace("preallocated-temp", "constant"),
            LIVE_RANGES
        ),
        "expected a `preallocated-temp` allocation with values, got none"
    );
}

#[test]
fn errors_in_a_message_are_named() {
    let with_events = |events: &[Vec<u8>]| {
        let assignment = [logical_buffer(10, 128, &[]), field(4, &events.concat())].concat();
        field(3, &assignment)
    };
    let alloc = event(0, 10, "a", 0);
    for (message, expected) in [
        (
            with_events(&[]),
            "expected a trace of the heap simulator in the buffer assignment, with an allocation, got none",
        ),
        (
            with_events(&[event(0, 7, "a", 0)]),
            "byte 15: expected an event of a logical buffer of the assignment",
        ),
        (
            with_events(&[event(1, 10, "a", 0)]),
            "byte 15: expected an event that frees a buffer which is allocated",
        ),
        (
            with_events(&[event(2, 10, "a", 7)]),
            "byte 15: expected an event that shares a buffer which was allocated",
        ),
        (
            with_events(&[event(3, 10, "a", 0)]),
            "byte 15: expected an event of kind 0, 1 or 2",
        ),
        (
            with_events(&[alloc.clone(), alloc]),
            "byte 26: expected an event of a buffer that was not allocated before",
        ),
        (
            vec![0x1a, 5, 0],
            "byte 0: expected a whole field before the message ends",
        ),
        (
            field(3, &[0x0b]),
            "byte 2: expected a field of wire type 0, 1, 2 or 5",
        ),
    ] {
        let error = xla::read_proto(&message).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
}

proptest! {
    #[test]
    fn a_damaged_dump_is_read_or_refused(
        at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 0..4), removed in 0..9_usize,
    ) {
        let damaged = |whole: &[u8]| {
            let at = at.index(whole.len());
            let mut damaged = whole.to_vec();
            damaged.splice(at..whole.len().min(at + removed), bytes.iter().copied());
            damaged
        };
        drop(xla::read_proto(&damaged(&message())));
        drop(xla::read_text(&damaged(ASSIGNMENT.as_bytes()), LIVE_RANGES.as_bytes()));
        drop(xla::read_text(ASSIGNMENT.as_bytes(), &damaged(LIVE_RANGES.as_bytes())));
    }

    #[test]
    fn anything_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Format::of(&bytes);
        drop(unpack(&bytes));
        drop(unpack(&[&[0x1f, 0x8b, 8, 0], &bytes[..]].concat()));
        drop(xla::read_proto(&bytes));
        drop(xla::read_text(&bytes, &bytes));
    }
}
