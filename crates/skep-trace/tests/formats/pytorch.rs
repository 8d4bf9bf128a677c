//! PyTorch's profiles and CUDA snapshots: order, what is passed over, what is refused.

use crate::common::{free, malloc, malloc_on, read, read_whole, refused};
use skep_trace::{TraceFormat, TraceReader};

/// An event as Kineto writes it.
fn event(time: &str, index: u64, bytes: i64, address: u64) -> String {
    format!(
        "{{\n    \"ph\": \"i\", \"cat\": \"cpu_instant_event\", \"s\": \"t\", \"name\": \"[memory]\",\n    \"pid\": 1, \"tid\": \
         1,\n    \"ts\": {time},\n    \"args\": {{\n      \"Total Reserved\": 0, \"Total Allocated\": 1, \"Bytes\": {bytes}, \
         \"Addr\": {address}, \"Device Id\": -1, \"Device Type\": 0, \"Ev Idx\": {index}\n    }}\n  }}"
    )
}

fn profile(events: &[String]) -> Vec<u8> {
    format!(
        "{{\n  \"schemaVersion\": 1,\n  \"deviceProperties\": [\n  ],\n  \"traceEvents\": [\n  {}\n  ],\n  \"ERROR\": [\"x\"],\n  \
         \"traceName\": \"t\"\n}}\n",
        events.join(",\n  ")
    )
    .into_bytes()
}

#[test]
fn events_are_put_in_order() {
    let profile = profile(&[
        // Nanoseconds since 1970, which an f64 would make equal.
        event("1790857026000000.003", 7, 30, 0x30),
        event("1790857026000000.001", 9, 10, 0x10),
        event("1790857026000000.002", 8, -10, 0x10),
        // At the same time the index counts, and after that the file's order.
        event("1790857026000000.004", 2, 50, 0x50),
        event("1790857026000000.004", 1, 40, 0x40),
        event("1790857026000000.004", 2, -50, 0x50),
    ]);
    let expected = vec![
        malloc(0, 10),
        free(0),
        malloc(1, 30),
        malloc(2, 40),
        malloc(3, 50),
        free(3),
    ];
    assert_eq!(read_whole(&profile), (expected, vec![]));
    let reader = TraceReader::open(&*profile).expect("a profile");
    assert_eq!(reader.format(), TraceFormat::PyTorchProfile);
}

#[test]
fn events_of_other_kinds_are_passed_over() {
    let windows = r#"{"name": "torch\cuda\__init__.py(219)", "args": {"memory bandwidth (GB/s)": inf, "Bytes": 1}}"#;
    let nested = r#"{"args": {"Input Dims": [[2, 3], []], "a": {"name": "[memory]"}}, "name": "aten::add", "ts": "x"}"#;
    let other_order =
        r#"{"args": {"Addr": 16, "x": [1], "Bytes": 5}, "ts": 1, "name": "[memory]"}"#;
    let long = format!(r#"{{"name": "{}"}}"#, "[memory]".repeat(100_000));
    let events: Vec<String> = [windows, nested, "7", "[{}]", "null", other_order, &long]
        .map(str::to_owned)
        .into();
    let profile = String::from_utf8(profile(&events)).expect("text");
    // Objects in another array.
    let profile = profile.replacen("[\"x\"]", &format!("[{other_order}]"), 1);
    let expected = (vec![malloc(0, 5)], vec![]);
    assert_eq!(read_whole(profile.as_bytes()), expected);
}

#[test]
fn devices_have_addresses_of_their_own() {
    let cuda = |text: String| {
        text.replace(
            "\"Device Id\": -1, \"Device Type\": 0",
            "\"Device Id\": 0, \"Device Type\": 1",
        )
    };
    let second = |text: String| text.replace("\"Device Id\": 0", "\"Device Id\": 1");
    let privateuse = |text: String| text.replace("\"Device Type\": 1", "\"Device Type\": 20");
    let profile = profile(&[
        event("1", 0, 1, 0xffff_ffff_ffff_ffff),
        cuda(event("2", 0, 512, 0xffff_ffff_ffff_ffff)),
        second(cuda(event("3", 0, 1024, 0xffff_ffff_ffff_ffff))),
        privateuse(cuda(event("4", 0, 2048, 0xffff_ffff_ffff_ffff))),
        event("5", 0, -1, 0xffff_ffff_ffff_ffff),
    ]);
    let expected = vec![
        malloc(0, 1),
        malloc(1, 512),
        malloc(2, 1024),
        malloc(3, 2048),
        free(0),
    ];
    assert_eq!(read_whole(&profile), (expected, vec![]));
}

#[test]
fn what_does_not_match_is_counted() {
    let profile = profile(&[
        event("1", 0, -64, 0x10),
        event("2", 0, 0, 0x10),
        event("3", 0, 64, 0x10),
        event("4", 0, 32, 0x10),
    ]);
    assert_eq!(
        read_whole(&profile),
        (
            vec![malloc(0, 64), free(0), malloc(1, 32)],
            vec![
                ("free of an id never allocated", 1),
                ("id allocated twice", 1),
                ("block of 0 bytes", 1),
            ]
        )
    );
}

#[test]
fn events_beyond_the_window_are_late() {
    let count = (1 << 16) + 1_u64;
    let mut events: Vec<String> = (0..count)
        .map(|time| {
            format!(r#"{{"name":"[memory]","ts":{time}.5,"args":{{"Bytes":8,"Addr":{time}}}}}"#)
        })
        .collect();
    events.push(r#"{"name":"[memory]","ts":0.9,"args":{"Bytes":1,"Addr":70000}}"#.to_owned());
    events.push(r#"{"name":"[memory]","ts":0.1,"args":{"Bytes":-8,"Addr":0}}"#.to_owned());
    let (events, unmatched) = read_whole(&profile(&events));
    assert_eq!(events.len() as u64, count + 2);
    // The first one had to leave the window before the last one came.
    assert_eq!(
        events[..4],
        [malloc(0, 8), malloc(1, 1), free(0), malloc(2, 8)]
    );
    assert_eq!(unmatched, [("event out of order", 1)]);
}

#[test]
fn errors_in_a_profile_say_where() {
    let one = String::from_utf8(profile(&[event("1", 0, 64, 0x10)])).expect("text");
    let begin = one.find("{\n    \"ph\"").expect("there");
    let without = |part: &str, instead: &str| one.replacen(part, instead, 1);
    for (text, expected) in [
        (
            without("\"ts\": 1,", ""),
            format!("byte {begin}: expected an event `[memory]` with a number `ts`, got one without"),
        ),
        (
            without("\"Addr\": 16", "\"Addr\": \"0x10\""),
            format!(
                "byte {begin}: expected an event `[memory]` with `Addr`, a whole number of 64 bits, got one without"
            ),
        ),
        (
            without("\"Bytes\": 64", "\"Bytes\": 9223372036854775809"),
            format!(
                "byte {begin}: expected an event `[memory]` with `Bytes`, a whole number from -2^63 to 2^63, got one without"
            ),
        ),
        (
            without("\"Bytes\": 64", "\"Bytes\": 6.5"),
            format!(
                "byte {begin}: expected an event `[memory]` with `Bytes`, a whole number from -2^63 to 2^63, got one without"
            ),
        ),
        (
            format!("{one}x"),
            format!("byte {}: expected the end of the input, got `x`", one.len()),
        ),
        (
            "{\"traceEvents\": []}".to_owned(),
            "expected an event `[memory]` in `traceEvents` (PyTorch's profiler writes them with `profile_memory=True`), got none"
                .to_owned(),
        ),
        (
            "{}".to_owned(),
            "expected an event `[memory]` in `traceEvents` (PyTorch's profiler writes them with `profile_memory=True`), got none"
                .to_owned(),
        ),
    ] {
        assert_eq!(refused(text.as_bytes()), expected, "{text}");
    }
    for end in 1..one.trim_end().len() {
        let error = refused(&one.as_bytes()[..end]);
        assert!(error.starts_with("byte "), "{end}: {error}");
        assert!(
            error.contains("got the end of the input") || error.contains("expected a value"),
            "{end}: {error}"
        );
    }
}

#[test]
fn snapshots_of_every_protocol() {
    let pickles: [&[u8]; 2] = [
        include_bytes!("data/snapshot-2.pickle"),
        include_bytes!("data/snapshot-4.pickle"),
    ];
    for pickle in pickles {
        assert_eq!(
            read_whole(pickle),
            (
                vec![
                    malloc(0, 300),
                    malloc_on(1, 1 << 40, 94_000_000_000_000),
                    free(0),
                    malloc(2, 0),
                ],
                vec![
                    ("free of an id never allocated", 2),
                    ("block of 0 bytes", 1),
                ]
            )
        );
        let reader = TraceReader::open(pickle).expect("a snapshot");
        assert_eq!(reader.format(), TraceFormat::PyTorchSnapshot);
        for end in 2..pickle.len() {
            let (events, _, error) = read(&pickle[..end]);
            assert!(events.is_empty());
            let error = error.expect("truncated");
            assert!(
                error.ends_with("got the end of the input"),
                "{end}: {error}"
            );
        }
    }
}

/// A pickle with these opcodes behind its version.
fn pickle(opcodes: &[&[u8]]) -> Vec<u8> {
    [&b"\x80\x02"[..], &opcodes.concat()].concat()
}

/// A short text.
fn text(text: &str) -> Vec<u8> {
    [&[b'U', text.len() as u8][..], text.as_bytes()].concat()
}

/// A snapshot with this value for its list of devices.
fn snapshot(devices: &[u8]) -> Vec<u8> {
    pickle(&[b"}", &text("device_traces"), devices, b"s."])
}

/// An entry with these opcodes for its address, size and stream.
fn entry(action: &str, address: &[u8], size: &[u8], stream: &[u8]) -> Vec<u8> {
    let members: [&[u8]; 10] = [
        b"}(",
        &text("action"),
        &text(action),
        &text("addr"),
        address,
        &text("size"),
        size,
        &text("stream"),
        stream,
        b"u",
    ];
    members.concat()
}

#[test]
fn numbers_of_every_size() {
    let largest = b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00";
    let half = b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x80\x00";
    let four = b"\x8b\x02\x00\x00\x00\x34\x12";
    let entries: [&[u8]; 6] = [
        b"](](",
        &entry("alloc", largest, half, b"J\xff\xff\xff\x7f"),
        &entry("alloc", b"\x8a\x00", b"M\x01\x02", four),
        &entry("free_completed", b"K\x00", b"N", b"N"),
        b"ee",
        b"",
    ];
    assert_eq!(
        read_whole(&snapshot(&entries.concat())),
        (
            vec![
                malloc_on(0, 1 << 63, 0x7fff_ffff),
                malloc_on(1, 513, 0x1234),
                free(1),
            ],
            vec![]
        )
    );
}

#[test]
fn values_of_other_kinds_are_passed_over() {
    for value in [
        &b"N"[..],
        b"\x88",
        b"\x89",
        b"G\x3f\xe0\x00\x00\x00\x00\x00\x00",
        b"C\x02..",
        b"B\x02\x00\x00\x00..",
        b"\x8e\x02\x00\x00\x00\x00\x00\x00\x00..",
        b"\x96\x02\x00\x00\x00\x00\x00\x00\x00..",
        b"U\x02..",
        b"T\x02\x00\x00\x00..",
        b"\x8c\x02..",
        b"X\x02\x00\x00\x00..",
        b"\x8d\x02\x00\x00\x00\x00\x00\x00\x00..",
        b"\x8a\x0c............",
        b"\x8b\x0c\x00\x00\x00............",
        b"NNN\x87",
    ] {
        let members = [
            &text("segments"),
            value,
            b"s",
            &text("device_traces"),
            b"]s.",
        ];
        let snapshot = pickle(&[b"}", &members.concat()]);
        assert_eq!(read_whole(&snapshot), (vec![], vec![]), "{value:?}");
    }
}

#[test]
fn the_last_of_equal_names_and_numbers_counts() {
    let entry = [
        &b"}("[..],
        &text("action"),
        &text("oom"),
        &text("action"),
        &text("alloc"),
        &text("addr"),
        b"K\x01q\x00",
        &text("size"),
        b"K\x07q\x00",
        &text("stream"),
        b"h\x00u",
    ];
    let devices = [&b"](]("[..], &entry.concat(), b"ee"].concat();
    let expected = vec![malloc_on(0, 7, 7)];
    assert_eq!(read_whole(&snapshot(&devices)), (expected, vec![]));
}

#[test]
fn containers_may_be_written_in_many_ways() {
    let entry = [&b"("[..], &text("action"), &text("oom"), b"d"].concat();
    for devices in [
        // A tuple of a tuple with the same entry twice; a list and a tuple of one.
        [&entry[..], b"q\x00h\x00\x86\x85"].concat(),
        [&b"("[..], &entry, b"q\x00h\x00\x86l"].concat(),
        [
            &b"("[..],
            &entry,
            b"r\x00\x00\x00\x00j\x00\x00\x00\x00\x86t",
        ]
        .concat(),
        // Without entries, and one of no meaning here.
        b")".to_vec(),
        [&b"]]"[..], &entry, b"aa"].concat(),
    ] {
        assert_eq!(read_whole(&snapshot(&devices)), (vec![], vec![]));
    }
}

#[test]
fn what_would_run_code_is_refused() {
    for (opcodes, at, name) in [
        (&b"cos\nsystem\n"[..], 2, "GLOBAL"),
        (b"\x8c\x02os\x8c\x06system\x93", 14, "STACK_GLOBAL"),
        (b")R", 3, "REDUCE"),
        (b"}b", 3, "BUILD"),
        (b"(ios\nsystem\n", 3, "INST"),
        (b"(o", 3, "OBJ"),
        (b"\x81", 2, "NEWOBJ"),
        (b"\x92", 2, "NEWOBJ_EX"),
        (b"Pid\n", 2, "PERSID"),
        (b"Q", 2, "BINPERSID"),
        (b"\x82\x01", 2, "EXT1"),
        (b"\x83\x01\x00", 2, "EXT2"),
        (b"\x84\x01\x00\x00\x00", 2, "EXT4"),
        (b"\x97", 2, "NEXT_BUFFER"),
        (b"\x8f", 2, "EMPTY_SET"),
        (b"N0", 3, "POP"),
        (b"I1\n", 2, "INT"),
    ] {
        assert_eq!(
            refused(&pickle(&[opcodes])),
            format!(
                "byte {at}: opcode {name} is refused, expected a pickle of dicts, lists, tuples, texts and numbers alone"
            )
        );
    }
}

#[test]
fn broken_pickles_say_where() {
    for (opcodes, expected) in [
        (&b"\xff"[..], "byte 2: expected an opcode, got byte 0xff"),
        (b".", "byte 2: expected a value for an opcode, got none"),
        (b"a", "byte 2: expected a value for an opcode, got none"),
        (
            b"]]e",
            "byte 4: expected a mark before this opcode, got none",
        ),
        // Nothing below a mark can be taken.
        (b"]N(a", "byte 5: expected a value for an opcode, got none"),
        (b"]N(s", "byte 5: expected a value for an opcode, got none"),
        (
            b"](\x85",
            "byte 4: expected a value for an opcode, got none",
        ),
        (
            b"](q\x00",
            "byte 4: expected a value for an opcode, got none",
        ),
        (b"}Na", "byte 4: expected a list to fill, got another value"),
        (
            b"]NNs",
            "byte 5: expected a dict to fill, got another value",
        ),
        (
            b"}(Nu",
            "byte 5: expected a value for each name, got one less",
        ),
        (b"h\x00", "byte 2: expected the number of a value, got 0"),
        (
            b"]q\x01",
            "byte 3: expected the next number for a value, or one that was given, got 1",
        ),
        (
            b"X\xff\xff\xff\xff",
            "byte 7: expected the argument of an opcode, got the end of the input",
        ),
        (
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff1",
            "byte 12: expected the argument of an opcode, got the end of the input",
        ),
        (
            b"N..",
            "byte 4: expected the end of the input, got byte 0x2e",
        ),
    ] {
        assert_eq!(refused(&pickle(&[opcodes])), expected);
    }
    let marks = pickle(&[&b"(".repeat(1025)]);
    assert_eq!(
        refused(&marks),
        "more than 1024 containers within each other, which is the limit"
    );
    assert_eq!(
        refused(&pickle(&[b"}."])),
        "expected a dict with a list `device_traces`, as `torch.cuda.memory._dump_snapshot` writes it, got none"
    );
}

#[test]
fn broken_snapshots_say_where() {
    let good = entry("alloc", b"K\x01", b"K\x02", b"K\x03");
    for (second, expected) in [
        (&b"N"[..], "a dict with a text `action`"),
        (b"}", "a dict with a text `action`"),
        (
            &*entry("alloc", b"N", b"K\x02", b"K\x03"),
            "`addr`, a whole number from 0 to 2^64 - 1",
        ),
        (
            &*entry("free_completed", b"J\xff\xff\xff\xff", b"K\x02", b"K\x03"),
            "`addr`, a whole number from 0 to 2^64 - 1",
        ),
        (
            &*entry(
                "alloc",
                b"K\x02",
                b"\x8a\x09\x01\x00\x00\x00\x00\x00\x00\x80\x00",
                b"K\x03",
            ),
            "`size`, a whole number from 0 to 2^63",
        ),
        (
            &*entry(
                "alloc",
                b"K\x02",
                b"\x8a\x0a\x01\x00\x00\x00\x00\x00\x00\x80\x00\x00",
                b"K\x03",
            ),
            "`size`, a whole number from 0 to 2^63",
        ),
        (
            &*entry("alloc", b"K\x02", b"\x8a\x02\xff\xff", b"K\x03"),
            "`size`, a whole number from 0 to 2^63",
        ),
        (
            &*entry("alloc", b"K\x02", b"K\x03", b"N"),
            "`stream`, a whole number from 0 to 2^64 - 1",
        ),
    ] {
        let devices = [&b"](]("[..], &*good, second, b"ee"].concat();
        let (events, _, error) = read(&snapshot(&devices));
        assert_eq!(events, [malloc_on(0, 2, 3)]);
        assert_eq!(
            error,
            Some(format!("device 0, entry 1: expected {expected}"))
        );
    }
    assert_eq!(
        refused(&snapshot(b"]Na")),
        "device 0, entry 0: expected a list of entries"
    );
    // One list for two devices.
    let devices = [&b"](]("[..], &*good, b"eq\x00h\x00e"].concat();
    assert_eq!(
        read(&snapshot(&devices)),
        (
            vec![malloc_on(0, 2, 3)],
            vec![],
            Some("device 1, entry 0: expected a list of its own".to_owned())
        )
    );
    // A list within itself.
    assert_eq!(
        refused(&snapshot(b"]q\x00h\x00a")),
        "device 0, entry 0: expected a dict with a text `action`"
    );
}
