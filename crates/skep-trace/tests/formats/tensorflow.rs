//! TensorFlow's logs: each trap of the format.

use crate::common::{free, malloc, packed, read, read_whole, refused};
use skep_trace::{TraceFormat, TraceReader};

const PREFIX: &str =
    "2026-11-20 13:29:22.281339: I tensorflow/core/framework/log_memory.cc:34] __LOG_MEMORY__ ";

fn log(messages: &[&str]) -> Vec<u8> {
    let lines = messages
        .iter()
        .map(|message| format!("{PREFIX}{message}\n"));
    lines.collect::<String>().into_bytes()
}

/// The allocation of a tensor by the CPU's allocator.
fn tensor(id: u64, bytes: u64) -> String {
    format!(
        "MemoryLogTensorAllocation {{ step_id: -6 kernel_name: \"Unknown (from Proto)\" tensor {{ dtype: DT_FLOAT shape \
         {{ dim {{ size: 16 }} dim {{ size: 1 }} }} allocation_description {{ requested_bytes: {bytes} allocated_bytes: \
         {bytes} allocator_name: \"cpu\" allocation_id: {id} has_single_reference: true ptr: 94185039203840 }} }} }}"
    )
}

fn freed(id: u64) -> String {
    format!("MemoryLogTensorDeallocation {{ allocation_id: {id} allocator_name: \"cpu\" }}")
}

#[test]
fn tensors_and_raw_memory() {
    let messages = [
        "MemoryLogStep { step_id: 1 handle: \"->/init/0/;0\" }",
        &tensor(3, 64),
        "MemoryLogRawAllocation { step_id: -3 operation: \"TF_NewTensor\" num_bytes: 602112 ptr: 140325572046912 \
         allocation_id: 4 allocator_name: \"cpu\" }",
        "MemoryLogTensorOutput { step_id: 1 kernel_name: \"a\" tensor { dtype: DT_FLOAT shape { } allocation_description { \
         requested_bytes: 4 allocated_bytes: 4 allocator_name: \"cpu\" allocation_id: 99 } } }",
        &freed(3),
        "MemoryLogRawDeallocation { step_id: -3 operation: \"TensorFlow C Api\" allocation_id: 4 allocator_name: \"cpu\" }",
    ];
    let log = log(&messages);
    let expected = vec![malloc(0, 64), malloc(1, 602_112), free(0), free(1)];
    assert_eq!(read_whole(&log), (expected, vec![]));
    let reader = TraceReader::open(&*log).expect("a log");
    assert_eq!(reader.format(), TraceFormat::TensorFlowLog);
}

#[test]
fn other_lines_are_passed_over() {
    let log = format!(
        "To enable the following instructions: AVX2, rebuild\r\n\n{{\"not\": \"JSON\"\n__LOG_MEMORY__ is on\n{PREFIX}{}\r\n\
         W0000 \u{1b}[31mred\u{1b}[0m\n{}\n1/1 [====] \x08\x08\n__LOG_MEMORY__ {}",
        tensor(1, 8),
        "y".repeat(1 << 20),
        freed(1),
    );
    assert_eq!(
        read_whole(log.as_bytes()),
        (vec![malloc(0, 8), free(0)], vec![])
    );
    // Bytes of another encoding.
    let mut bytes = b"\xff\xfe caf\xe9\n".to_vec();
    bytes.extend(log.as_bytes());
    assert_eq!(read_whole(&bytes).0.len(), 2);
}

#[test]
fn what_does_not_match_is_counted() {
    let without_id = "MemoryLogTensorAllocation { step_id: -6 kernel_name: \"Unknown\" tensor { dtype: DT_INT32 shape { dim { size: 4 } } \
         allocation_description { requested_bytes: 16 allocator_name: \"cpu\" ptr: 94185018807488 } } }";
    // 0 bytes, so no memory and no id.
    let empty = "MemoryLogTensorAllocation { step_id: 1 tensor { shape { dim { } } allocation_description { allocator_name: \
                 \"cpu\" has_single_reference: true } } }";
    let zero = "MemoryLogTensorAllocation { step_id: 1 tensor { allocation_description { allocator_name: \"cpu\" \
                allocation_id: 5 } } }";
    let log = log(&[
        without_id,
        empty,
        "MemoryLogTensorDeallocation { allocator_name: \"cpu\" }",
        "MemoryLogTensorDeallocation { }",
        "MemoryLogRawDeallocation { allocation_id: -1 allocator_name: \"cpu\" }",
        &freed(7),
        &tensor(7, 1),
        &tensor(7, 2),
        &freed(7),
        &freed(7),
        zero,
    ]);
    assert_eq!(
        read_whole(&log),
        (
            vec![malloc(0, 1), free(0), malloc(1, 2), free(1), malloc(2, 0)],
            vec![
                ("allocation without id", 2),
                ("free without id", 3),
                ("free of an id never allocated", 2),
                ("id allocated twice", 1),
                ("block of 0 bytes", 1),
            ]
        )
    );
}

#[test]
fn allocators_count_for_themselves() {
    let gpu = |message: String| message.replace("\"cpu\"", "\"GPU_0_bfc\"");
    let log = log(&[
        &tensor(1, 10),
        &gpu(tensor(1, 20)),
        &gpu(freed(1)),
        &freed(1),
    ]);
    let expected = vec![malloc(0, 10), malloc(1, 20), free(1), free(0)];
    assert_eq!(read_whole(&log), (expected, vec![]));
}

#[test]
fn texts_may_have_anything() {
    let log = log(&[
        r#"MemoryLogStep { step_id: -8446744073709551616 handle: "a:0->b {\"};\\" }"#,
        r#"MemoryLogTensorAllocation { step_id: -123 kernel_name: "x } allocation_id: 9 \" __LOG_MEMORY__ \\" tensor { allocation_description { requested_bytes: 3 allocator_name: "c\"p}u" allocation_id: 2 } } }"#,
        r#"MemoryLogTensorDeallocation { allocation_id: 2 allocator_name: "c\"p}u" }"#,
    ]);
    assert_eq!(read_whole(&log), (vec![malloc(0, 3), free(0)], vec![]));
}

#[test]
fn fields_elsewhere_do_not_count() {
    let log = log(&[
        "MemoryLogTensorAllocation { allocation_id: 1 allocator_name: \"cpu\" tensor { allocation_id: 8 other { allocation_id: \
         9 } allocation_description { allocation_id: 2 requested_bytes: 5 allocator_name: \"cpu\" } } other { \
         allocation_description { allocation_id: 3 requested_bytes: 6 } } }",
        &freed(2),
    ]);
    assert_eq!(read_whole(&log), (vec![malloc(0, 5), free(0)], vec![]));
}

#[test]
fn what_was_asked_for_counts_before_what_was_allocated() {
    let allocation = |id: u64, sizes: &str| {
        format!(
            "MemoryLogTensorAllocation {{ tensor {{ allocation_description {{ {sizes} allocator_name: \"GPU_0_bfc\" \
             allocation_id: {id} }} }} }}"
        )
    };
    let log = log(&[
        &allocation(1, "requested_bytes: 4 allocated_bytes: 256"),
        &allocation(2, "allocated_bytes: 256"),
        &allocation(3, "requested_bytes: 4"),
    ]);
    let expected = vec![malloc(0, 4), malloc(1, 256), malloc(2, 4)];
    assert_eq!(read_whole(&log), (expected, vec![]));
}

#[test]
fn deferred_frees_come_twice() {
    let raw = |id: i64, step: i64| {
        format!(
            "MemoryLogRawAllocation {{ step_id: {step} operation: \"Scan\" num_bytes: {id}00 allocation_id: {id} \
             allocator_name: \"GPU_0_bfc\" }}"
        )
    };
    let freed = |id: i64, step: i64, more: &str| {
        format!(
            "MemoryLogRawDeallocation {{ step_id: {step} operation: \"Scan\" allocation_id: {id} allocator_name: \
             \"GPU_0_bfc\"{more} }}"
        )
    };
    let log = log(&[
        &raw(1, 1),
        &freed(1, 1, " deferred: true"),
        // The address has another block by the time the stream has come so far, and then none.
        &raw(2, 1),
        &freed(2, 1, ""),
        &freed(2, 1, " deferred: true"),
        &freed(-1, 1, ""),
        // Two at once; of another step and of another operation, which defer nothing; and when all was said twice.
        &raw(3, 1),
        &raw(4, 1),
        &freed(3, 1, " deferred: true"),
        &freed(4, 1, " deferred: true"),
        &raw(5, 2),
        &freed(5, 2, ""),
        &raw(6, 1),
        &freed(6, 1, "").replace("Scan", "Sort"),
        &freed(3, 1, ""),
        &freed(4, 1, ""),
        &raw(7, 1),
        &freed(7, 1, ""),
    ]);
    let alone = |block: u32, bytes| [malloc(block, bytes), free(block)];
    let expected = [
        &alone(0, 100)[..],
        &alone(1, 200),
        &[malloc(2, 300), malloc(3, 400), free(2), free(3)],
        &alone(4, 500),
        &alone(5, 600),
        &alone(6, 700),
    ]
    .concat();
    assert_eq!(read_whole(&log), (expected, vec![]));
}

#[test]
fn errors_name_the_line() {
    let whole = tensor(1, 8);
    let description = whole.find("allocation_description").expect("there");
    let long = whole.replace("Unknown", &"z".repeat(1 << 16));
    for (message, expected) in [
        (
            &whole[..whole.len() - 1],
            "expected a whole message in braces, and nothing behind it, got ``",
        ),
        (
            &whole[..description + 10],
            "expected `:` or `{` after a field's name, got `allocation`",
        ),
        (
            "MemoryLogTensorDeallocation { allocation_id: x allocator_name: \"cpu\" }",
            "expected a whole number from -2^63 to 2^63 - 1, got `x`",
        ),
        (
            "MemoryLogRawAllocation { num_bytes: -1 allocation_id: 1 }",
            "expected a size from 0 to 2^63 - 1, got `-1`",
        ),
        (
            "MemoryLogRawAllocation { num_bytes: 9223372036854775808 allocation_id: 1 }",
            "expected a whole number from -2^63 to 2^63 - 1, got `9223372036854775808`",
        ),
        (
            "MemoryLogTensorOutput { step_id: 1 ker",
            "expected a whole message in braces, and nothing behind it, got `{ step_id: 1 ker`",
        ),
        (
            "MemoryLogOther { }",
            "expected `TensorAllocation`, `TensorDeallocation`, `TensorOutput`, `RawAllocation`, `RawDeallocation` or `Step` \
             behind `MemoryLog`, got `Other { }`",
        ),
        (&*long, "expected at most 65536 bytes"),
    ] {
        let log = log(&["MemoryLogStep { }", message]);
        assert_eq!(refused(&log), format!("line 2: {expected}"));
    }
    // A step's handle may be as long as it likes.
    let step = format!("MemoryLogStep {{ handle: \"{}\" }}", "z".repeat(1 << 17));
    assert_eq!(read_whole(&log(&[&step])), (vec![], vec![]));
    assert_eq!(
        refused(b"any other text\n"),
        "expected a line with `__LOG_MEMORY__` (TensorFlow logs them with `TF_CPP_VMODULE=log_memory=2`), got none"
    );
}

#[test]
fn truncated_logs_give_what_comes_before() {
    let messages: Vec<String> = (1..6).flat_map(|id| [tensor(id, id), freed(id)]).collect();
    let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
    let log = log(&messages);
    let whole = read_whole(&log).0;
    for end in PREFIX.len()..log.len() {
        let (events, unmatched, _) = read(&log[..end]);
        assert!(whole.starts_with(&events) && unmatched.is_empty(), "{end}");
    }
    let gzip = packed(&log);
    for end in 2..gzip.len() {
        let (events, _, error) = read(&gzip[..end]);
        assert!(whole.starts_with(&events), "{end}");
        let error = error.expect("truncated");
        let expected = format!("gzip data ends early, after {end} bytes (");
        assert!(error.starts_with(&expected), "{error}");
    }
}
