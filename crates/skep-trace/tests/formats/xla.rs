//! XLA's dumps: the heap simulator's traces.

use crate::common::{free, malloc, read, read_whole, refused};
use skep_trace::{TraceFormat, TraceReader};

/// A field of a message.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len();
    let length = [(length & 0x7f) as u8 | 0x80, (length >> 7) as u8];
    [&[number << 3 | 2][..], &length, value].concat()
}

/// A value of the assignment. A number that is 0 is left out.
fn logical_buffer(id: u8, size: u8) -> Vec<u8> {
    let id = if id == 0 { vec![] } else { vec![0x08, id] };
    field(1, &[&id[..], &[0x10, size]].concat())
}

/// An event: 0 allocates, 1 frees, 2 shares.
fn event(kind: u8, id: u8, shares_with: u8) -> Vec<u8> {
    field(1, &[0x08, kind, 0x10, id, 0x28, shares_with])
}

fn dump(parts: &[Vec<u8>]) -> Vec<u8> {
    [field(1, b"module"), field(3, &parts.concat())].concat()
}

fn heap(events: &[Vec<u8>]) -> Vec<u8> {
    field(4, &events.concat())
}

#[test]
fn values_that_share_are_one_block() {
    let dump = dump(&[
        logical_buffer(0, 10),
        logical_buffer(1, 20),
        logical_buffer(2, 30),
        logical_buffer(3, 40),
        heap(&[
            event(0, 0, 0),
            event(0, 1, 0),
            // Value 2 takes the place of 0, which the event before has freed; it is larger.
            event(1, 0, 0),
            event(2, 2, 0),
            event(1, 1, 0),
            event(1, 2, 0),
            event(0, 3, 0),
        ]),
    ]);
    let expected = vec![
        malloc(0, 30),
        malloc(1, 20),
        free(1),
        free(0),
        malloc(2, 40),
    ];
    assert_eq!(read_whole(&dump), (expected, vec![]));
    let reader = TraceReader::open(&*dump).expect("a dump");
    assert_eq!(reader.format(), TraceFormat::XlaProto);
}

#[test]
fn heaps_come_one_after_the_other() {
    let dump = dump(&[
        logical_buffer(1, 10),
        logical_buffer(2, 0),
        heap(&[event(0, 1, 0)]),
        heap(&[]),
        heap(&[event(0, 2, 0), event(1, 2, 0)]),
    ]);
    let expected = vec![malloc(0, 10), malloc(1, 0), free(1)];
    assert_eq!(read_whole(&dump), (expected, vec![("block of 0 bytes", 1)]));
}

#[test]
fn broken_dumps_say_where() {
    let whole = dump(&[
        logical_buffer(1, 10),
        heap(&[event(0, 1, 0), event(1, 1, 0)]),
    ]);
    assert_eq!(read_whole(&whole).0.len(), 2);
    for end in 2..whole.len() {
        let (events, _, error) = read(&whole[..end]);
        assert!(events.is_empty());
        let error = error.expect("truncated");
        assert!(
            error.starts_with("byte ")
                || error.starts_with("expected a trace of the heap simulator"),
            "{end}: {error}"
        );
    }
    let freed = dump(&[logical_buffer(1, 10), heap(&[event(1, 1, 0)])]);
    assert_eq!(
        refused(&freed),
        "byte 25: expected an event that frees a buffer which is allocated"
    );
}
