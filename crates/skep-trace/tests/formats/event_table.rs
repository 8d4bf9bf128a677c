//! Event tables: what is read, what is refused and in which words, and that what is written is read.

use crate::common::{free, malloc, malloc_on, read, read_whole, refused};
use proptest::prelude::*;
use skep_trace::{MAX_BLOCK_BYTES, TraceEvent, TraceFormat, TraceReader, write_events};

fn written(events: &[TraceEvent]) -> String {
    let mut table = Vec::new();
    write_events(&mut table, events).expect("memory");
    String::from_utf8(table).expect("text")
}

#[test]
fn events_of_a_table() {
    let expected = vec![malloc(0, 64), malloc(1, 32), free(0), malloc(2, 8), free(2)];
    for table in [
        "op,id,bytes\na,x,64\na,y,32\nf,x,\na,x,8\nf,x,\n",
        // A mark of the encoding, capitals, another line break, empty lines, quotes, no break at the end.
        "\u{feff}OP, Id ,bytes\r\n\r\na,\"x\",64\r\na,\"y,\"\"\", 32 \r\nf,x,\r\n\r\na,x,8\r\nf, x ,",
        "op,id,bytes,stream\na,x,64,0\na,y,32,\nf,x,,\na,x,8,\nf,x,,\n",
    ] {
        assert_eq!(read_whole(table.as_bytes()), (expected.clone(), vec![]));
        let mut reader = TraceReader::open(table.as_bytes()).expect("a table");
        assert_eq!(reader.format(), TraceFormat::EventTable);
        assert_eq!(reader.by_ref().count(), expected.len());
        assert!(reader.unmatched().is_empty());
    }
    assert_eq!(read_whole(b"op,id,bytes"), (vec![], vec![]));
}

#[test]
fn what_does_not_match_is_counted() {
    let mut reader = TraceReader::open(&b"op,id,bytes\nf,x,\n"[..]).expect("a table");
    assert!(reader.next().is_none() && !reader.unmatched().is_empty());
    let table = "op,id,bytes,stream\na,,1,\nf,,,\nf,x,,\na,x,0,7\na,x,9223372036854775808,18446744073709551615\nf,x,,\nf,x,,\n";
    assert_eq!(
        read_whole(table.as_bytes()),
        (
            vec![
                malloc_on(0, 0, 7),
                free(0),
                malloc_on(1, 1 << 63, u64::MAX),
                free(1),
            ],
            vec![
                ("allocation without id", 1),
                ("free without id", 1),
                ("free of an id never allocated", 2),
                ("id allocated twice", 1),
                ("block of 0 bytes", 1),
            ]
        )
    );
}

#[test]
fn errors_name_line_and_column() {
    const SIZE: &str = "a whole number from 0 to 2^63";
    let long = format!("a,{},1", "x".repeat(1 << 16));
    for (rows, expected) in [
        (
            "x,y,1",
            "line 2, column `op`: expected `a`, which allocates, or `f`, which frees, got `x`"
                .to_owned(),
        ),
        (
            "a,y,",
            format!("line 2, column `bytes`: expected {SIZE}, got ``"),
        ),
        (
            "a,y,-1",
            format!("line 2, column `bytes`: expected {SIZE}, got `-1`"),
        ),
        (
            "a,y,+1",
            format!("line 2, column `bytes`: expected {SIZE}, got `+1`"),
        ),
        (
            "a,y,9223372036854775809",
            format!("line 2, column `bytes`: expected {SIZE}, got `9223372036854775809`"),
        ),
        (
            "a,y",
            "line 2: expected as many cells as the heading has, got `a,y`".to_owned(),
        ),
        (
            "a,y,1,2",
            "line 2: expected as many cells as the heading has, got `a,y,1,2`".to_owned(),
        ),
        (
            "a,y,1\n\nf,y,1",
            "line 4, column `bytes`: expected an empty cell in a line that frees, got `1`"
                .to_owned(),
        ),
        (
            "a,\"y,1",
            "line 2: expected a quoted cell to end with a quote and a comma, got `a,\"y,1`"
                .to_owned(),
        ),
        (&*long, "line 2: expected at most 65536 bytes".to_owned()),
    ] {
        assert_eq!(
            refused(format!("op,id,bytes\n{rows}\n").as_bytes()),
            expected
        );
    }
    assert_eq!(
        refused(b"op,id,bytes,stream\na,y,1,x\n"),
        "line 2, column `stream`: expected a whole number from 0 to 2^64 - 1, got `x`"
    );
    assert_eq!(
        refused(b"op,id,bytes,stream\na,y,1,\nf,y,,0\n"),
        "line 3, column `stream`: expected an empty cell in a line that frees, got `0`"
    );
    assert_eq!(
        refused(b"op,id,bytes,device\n"),
        "line 1: expected the heading `op,id,bytes` or `op,id,bytes,stream`, got `op,id,bytes,device`"
    );
    assert_eq!(
        refused(b"op,id,bytes\na,\xff,1\n"),
        "line 2: expected UTF-8, got byte 0xff"
    );
}

#[test]
fn events_before_an_error_are_given() {
    let (events, _, error) = read(b"op,id,bytes\na,x,1\nf,x,\n?\na,x,2\n");
    assert_eq!(events, [malloc(0, 1), free(0)]);
    assert!(error.is_some());
}

#[test]
fn a_line_of_the_largest_length_is_read() {
    let id = "x".repeat((1 << 16) - 4);
    let table = format!("op,id,bytes\na,{id},1\nf,{id},\n");
    assert_eq!(
        read_whole(table.as_bytes()),
        (vec![malloc(0, 1), free(0)], vec![])
    );
}

#[test]
fn streams_have_a_column_where_there_are_some() {
    let events = [malloc(0, 1), malloc(1, 2), free(0)];
    assert_eq!(written(&events), "op,id,bytes\na,0,1\na,1,2\nf,0,\n");
    let events = [malloc(0, 1), malloc_on(1, 2, 9), free(0)];
    assert_eq!(
        written(&events),
        "op,id,bytes,stream\na,0,1,0\na,1,2,9\nf,0,,\n"
    );
}

/// Events as a reader gives them: allocations, and frees of any block that is live.
fn any_events() -> impl Strategy<Value = Vec<TraceEvent>> {
    let step = (
        any::<bool>(),
        any::<prop::sample::Index>(),
        0..=MAX_BLOCK_BYTES,
        0..3_u64,
    );
    prop::collection::vec(step, 0..200).prop_map(|steps| {
        let (mut events, mut live, mut count) = (Vec::new(), Vec::new(), 0);
        for (allocates, which, bytes, stream) in steps {
            if allocates || live.is_empty() {
                events.push(malloc_on(count, bytes, stream));
                live.push(count);
                count += 1;
            } else {
                events.push(free(live.swap_remove(which.index(live.len()))));
            }
        }
        events
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(events in any_events()) {
        let zeros = events.iter().filter(|event| matches!(event, TraceEvent::Malloc { bytes: 0, .. })).count();
        let unmatched = if zeros == 0 { vec![] } else { vec![("block of 0 bytes", zeros as u64)] };
        prop_assert_eq!(read_whole(written(&events).as_bytes()), (events, unmatched));
    }
}
