//! Broken configurations of the model `identity` (FP32, `INPUT0` [-1,16] to `OUTPUT0` [-1,16]).

use super::{BrokenFile, refused};

/// Depth of nested messages: a parser that recurses without a limit runs out of stack on it.
const NESTING: usize = 100_000;

const INPUT: &str = "input { name: \"INPUT0\" data_type: TYPE_FP32 dims: 16 }\n";
const OUTPUT: &str = "output { name: \"OUTPUT0\" data_type: TYPE_FP32 dims: 16 }\n";

/// `config.pbtxt` files that must be refused beside a generated `identity-fp32` model.
#[must_use]
pub fn config_files() -> Vec<BrokenFile> {
    let with = |head: &str| format!("{head}\n{INPUT}{OUTPUT}").into_bytes();
    let io = |input: &str, output: &str| format!("max_batch_size: 8\n{input}{output}").into_bytes();
    let files: Vec<(&str, &str, &str, Vec<u8>)> = vec![
        (
            "config-garbage",
            "bytes that are no text",
            "",
            (128..=255u8).collect(),
        ),
        (
            "config-json",
            "JSON in place of the text format",
            "",
            br#"{"max_batch_size": 8}"#.to_vec(),
        ),
        (
            "config-unclosed",
            "a brace that is never closed",
            "",
            b"max_batch_size: 8\ninput {\n  name: \"INPUT0\"\n".to_vec(),
        ),
        (
            "config-unclosed-string",
            "a string that is never closed",
            "",
            b"name: \"identity\nmax_batch_size: 8\n".to_vec(),
        ),
        (
            "config-unknown-field",
            "a field that does not exist",
            "max_batch_sise",
            with("max_batch_sise: 8"),
        ),
        (
            "config-unknown-inner-field",
            "an unknown field in a message",
            "preferred",
            with("dynamic_batching { preferred: 4 }"),
        ),
        (
            "config-unknown-enum",
            "a value that its enumeration lacks",
            "KIND_TPU",
            with("instance_group { kind: KIND_TPU }"),
        ),
        (
            "config-wrong-type",
            "text where a number belongs",
            "max_batch_size",
            with("max_batch_size: \"eight\""),
        ),
        (
            "config-overflow",
            "a number beyond its field",
            "max_batch_size",
            with("max_batch_size: 99999999999"),
        ),
        (
            "config-negative-batch",
            "a batch size below zero",
            "max_batch_size",
            with("max_batch_size: -1"),
        ),
        (
            "config-given-twice",
            "a single field given twice",
            "max_batch_size",
            with("max_batch_size: 8\nmax_batch_size: 4"),
        ),
        (
            "config-wrong-name",
            "another model's name",
            "other",
            with("name: \"other\"\nmax_batch_size: 8"),
        ),
        (
            "config-unknown-backend",
            "a backend that does not exist",
            "abacus",
            with("backend: \"abacus\"\nmax_batch_size: 8"),
        ),
        (
            "config-unknown-input",
            "an input that the model lacks",
            "INPUT9",
            io(
                "input { name: \"INPUT9\" data_type: TYPE_FP32 dims: 16 }\n",
                OUTPUT,
            ),
        ),
        (
            "config-wrong-datatype",
            "a datatype that is not the model's",
            "INPUT0",
            io(
                "input { name: \"INPUT0\" data_type: TYPE_INT32 dims: 16 }\n",
                OUTPUT,
            ),
        ),
        (
            "config-wrong-dims",
            "dims that are not the model's",
            "INPUT0",
            io(
                "input { name: \"INPUT0\" data_type: TYPE_FP32 dims: 17 }\n",
                OUTPUT,
            ),
        ),
        (
            "config-negative-dim",
            "a dimension below -1",
            "INPUT0",
            io(
                "input { name: \"INPUT0\" data_type: TYPE_FP32 dims: -2 }\n",
                OUTPUT,
            ),
        ),
        (
            "config-no-datatype",
            "an input without a datatype",
            "INPUT0",
            io("input { name: \"INPUT0\" dims: 16 }\n", OUTPUT),
        ),
        (
            "config-duplicate-input",
            "the same input twice",
            "INPUT0",
            io(&INPUT.repeat(2), OUTPUT),
        ),
        (
            "config-missing-labels",
            "a file of labels that is not there",
            "absent.txt",
            io(
                INPUT,
                "output { name: \"OUTPUT0\" data_type: TYPE_FP32 dims: 16 label_filename: \"absent.txt\" }\n",
            ),
        ),
        (
            "config-deep-nesting",
            "messages within messages, 100000 deep",
            "",
            "input {".repeat(NESTING).into_bytes(),
        ),
    ];
    files
        .into_iter()
        .map(|(name, fault, mentions, bytes)| refused(name, fault, mentions, bytes))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_can_mention_what_the_file_holds() {
        for file in config_files()
            .into_iter()
            .filter(|file| file.bytes.is_ascii())
        {
            let text = String::from_utf8(file.bytes).expect("ASCII");
            assert!(text.contains(file.mentions), "{}", file.name);
        }
    }
}
