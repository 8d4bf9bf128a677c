//! Tables: what is read, what is refused and in which words, and that what is written is read.

use proptest::prelude::*;
use skep_planner::{Buffer, UsageRecords};
use skep_records::csv;

fn read(text: &str) -> Result<csv::BufferTable, String> {
    csv::read(text.as_bytes()).map_err(|error| error.to_string())
}

fn refused(text: &str) -> String {
    read(text).expect_err(text)
}

#[test]
fn minimallocs_tables() {
    let expected = [Buffer::new(4, 0, 3), Buffer::new(8, 3, 9)];
    for text in [
        "id,lower,upper,size\nb1,0,3,4\nb2,3,9,8\n",
        // Any order, another line break, a mark of the encoding, empty lines, notes above, no break at the end.
        "\u{feff}# from somewhere\r\n\r\nsize,Upper,lower,buffer_id\r\n4,3,0,b1\r\n\r\n8,9,3,b2",
        // Inclusive ends.
        "buffer,start,end,size\nb1,0,2,4\nb2,3,8,8\n",
        "name,first_op,last_op,size_bytes,is_output\nb1,0,2,4,0\nout,8,8,100,1\nb2,3,8,8,0\n",
        "\"tensor\", first_task ,last_task,size\n\"b1\",0,2,4\n b2 , 3 , 8 , 8 \n",
        "id,lower,upper,size,gaps,offset,alignment\nb1,0,3,4,,,1\nb2,3,9,8,,-1,1\n",
    ] {
        let table = read(text).expect(text);
        assert_eq!(table.records.names(), ["b1", "b2"], "{text}");
        assert_eq!(table.records.problem().buffers(), expected, "{text}");
        assert!(table.ignored.is_empty(), "{text}");
    }
}

#[test]
fn conditions_of_buffers() {
    let text = "id,lower,upper,size,alignment,offset,in_place,hint,Shape\n\
                b,3,9,8,16,32,a,,\"[1,2]\"\na,0,4,8,1,,,7,x\n";
    let table = read(text).expect("valid");
    let expected = [
        Buffer::new(8, 3, 9).aligned(16).at(32).in_place_of(1),
        Buffer::new(8, 0, 4),
    ];
    assert_eq!(table.records.problem().buffers(), expected);
    assert_eq!(table.ignored, ["hint", "Shape"]);
    assert_eq!(
        csv::write(&table.records, None),
        "id,lower,upper,size,alignment,in_place,offset\nb,3,9,8,16,a,32\na,0,4,8,1,,\n"
    );
    assert_eq!(
        csv::write(&table.records, Some(&[32, 0])),
        "id,lower,upper,size,alignment,in_place,offset\nb,3,9,8,16,a,32\na,0,4,8,1,,0\n"
    );
}

#[test]
fn errors_name_line_and_column() {
    const HEAD: &str = "id,lower,upper,size\n";
    let cases = [
        ("", "expected usage records, got nothing"),
        ("\n# only a note\n", "expected usage records, got nothing"),
        (HEAD, "expected a line with a buffer, got none"),
        (
            "id,lower,upper\na,0,1\n",
            "line 1: expected a column of sizes (`size`, `size_bytes`), got `id,lower,upper`",
        ),
        (
            "lower,upper,size\n0,1,1\n",
            "line 1: expected a column of names (`id`, `buffer`, `buffer_id`, `name`, `tensor`, `tensor_id`), got `lower,upper,size`",
        ),
        (
            "id,name,lower,upper,size\n",
            "line 1: columns `id` and `name` both say names, expected one",
        ),
        (
            "id,lower,upper,end,size\n",
            "line 1: columns `upper` and `end` both say ends, expected one",
        ),
        (
            "id,lower,upper,size\na,0,1,1\nb,0,1\n",
            "line 3: expected 4 cells, as the heading has, got 3",
        ),
        (
            "id,lower,upper,size\na,0,1,1,1\n",
            "line 2: expected 4 cells, as the heading has, got 5",
        ),
        (
            "id,lower,upper,size\n\na,0,1,-1\n",
            "line 3, column `size`: expected a whole number from 0 to 2^64 - 1, got `-1`",
        ),
        (
            "id,lower,upper,size\na,0,18446744073709551616,1\n",
            "line 2, column `upper`: expected a whole number from 0 to 2^64 - 1, got `18446744073709551616`",
        ),
        (
            "id,start,end,size\na,0,18446744073709551615,1\n",
            "line 2, column `end`: expected a step below 2^64 - 1, got `18446744073709551615`",
        ),
        (
            "id,lower,upper,size\na,3,3,1\n",
            "line 2: buffer `a` is live from 3 to before 3, expected an end after the start",
        ),
        (
            "id,lower,upper,size\na,9,3,1\n",
            "line 2: buffer `a` is live from 9 to before 3, expected an end after the start",
        ),
        (
            "id,lower,upper,size\na,0,1,1\n\nb,0,1,1\na,5,6,1\n",
            "line 5: buffer `a` is in line 2 already, expected names that differ",
        ),
        (
            "id,lower,upper,size\na,0,1,4611686018427387904\n",
            "line 2: sizes up to buffer `a` add up to 2^62 bytes or more with their alignment, expected less",
        ),
        (
            "id,lower,upper,size\n,0,1,1\n",
            "line 2, column `id`: expected a name, got ``",
        ),
        (
            "id,lower,upper,size,alignment\na,0,1,1,3\n",
            "line 2, column `alignment`: expected a power of two, got `3`",
        ),
        (
            "id,lower,upper,size,gaps\na,0,9,1,3-4\n",
            "line 2, column `gaps`: expected an empty cell, since gaps in live ranges are not supported, got `3-4`",
        ),
        (
            "id,lower,upper,size,in_place\na,0,9,1,b\n",
            "line 2: buffer `a` may take the place of `b`, expected the name of a buffer",
        ),
        (
            "id,lower,upper,size,in_place\na,0,9,1,a\n",
            "line 2: buffer `a` may take the place of buffer `a`, expected one that starts before it",
        ),
        (
            "id,lower,upper,size,offset\na,0,9,8,0\nb,0,9,8,7\n",
            "line 3: buffers `a` and `b` are live together, and fixed where they overlap",
        ),
        (
            "id,lower,upper,size,is_output\na,0,9,8,maybe\n",
            "line 2, column `is_output`: expected 0 or 1, got `maybe`",
        ),
        (
            "id,lower,upper,size\n\"a,0,9,8\n",
            "line 2: expected a quoted cell to end with a quote and a comma, got `\"a,0,9,8`",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(refused(text), expected, "{text}");
    }
    let latin = csv::read(b"id,lower,upper,size\n\xe9,0,1,1\n").expect_err("Latin 1");
    assert_eq!(latin.to_string(), "line 2: expected UTF-8, got byte 0xe9");
}

#[test]
fn a_table_has_an_end() {
    let mut text = String::from("id,lower,upper,size\n");
    for number in 0..=skep_records::MAX_BUFFERS {
        text.push_str(&format!("{number},0,1,1\n"));
    }
    assert_eq!(
        refused(&text),
        "more than 4194304 buffers, which is the limit"
    );
}

prop_compose! {
    fn named()(
        name in "[ -~ü]{1,12}",
        (size, start, width) in (0..1_u64 << 40, 0..1000_u64, 1..1000_u64),
        alignment in 0..8_u32,
        fixed in prop::option::weighted(0.1, Just(0)),
    ) -> (String, Buffer) {
        let buffer = Buffer::new(size, start, start + width).aligned(1 << alignment);
        (name, Buffer { fixed, ..buffer })
    }
}

proptest! {
    #[test]
    fn written_tables_are_read_back(list in prop::collection::vec(named(), 1..40)) {
        if let Ok(records) = UsageRecords::new(list) {
            let table = csv::read(csv::write(&records, None).as_bytes());
            // White space around a name has no meaning, and two may differ in nothing else.
            if let Ok(table) = table {
                prop_assert_eq!(table.records.problem().buffers(), records.problem().buffers());
                let trimmed: Vec<&str> = table.records.names().iter().map(|name| name.trim()).collect();
                let expected: Vec<&str> = records.names().iter().map(|name| name.trim()).collect();
                prop_assert_eq!(trimmed, expected);
            } else {
                prop_assert!(records.names().iter().any(|name| name.trim() != name));
            }
        }
    }

    #[test]
    fn anything_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), lines in "[id,lowerupsz0-9\"\n -]{0,200}") {
        drop(csv::read(&bytes));
        drop(csv::read(lines.as_bytes()));
        drop(csv::read(format!("id,lower,upper,size,offset\n{lines}").as_bytes()));
    }
}
