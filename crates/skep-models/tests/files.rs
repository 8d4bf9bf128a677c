//! Generated files: the same bytes for the same seed, side files, variants.

use std::{collections::HashMap, fs};

use skep_models::{GenerateError, GeneratedModel, Kind, Options, Variant, generate};

const SMALL: [&str; 4] = [
    "mlp:layers=16x8x4",
    "cnn",
    "bert-tiny:vocab=50",
    "addsub-int64",
];

fn model(kind: &str, options: &Options) -> GeneratedModel {
    generate(&kind.parse::<Kind>().expect("a kind"), options).expect("generates")
}

/// The bytes of each initializer.
fn weights(model: &GeneratedModel) -> HashMap<String, bytes::Bytes> {
    let graph = model.to_proto().expect("small").graph.expect("a graph");
    graph
        .initializer
        .into_iter()
        .map(|t| (t.name.unwrap_or_default(), t.raw_data.unwrap_or_default()))
        .collect()
}

#[test]
fn a_seed_decides_every_byte() {
    for kind in SMALL {
        let [first, again] = [5, 5].map(|seed| {
            model(
                kind,
                &Options {
                    seed,
                    ..Options::default()
                },
            )
        });
        assert_eq!(
            first.to_bytes().expect("small"),
            again.to_bytes().expect("small"),
            "{kind}"
        );
        let other = model(
            kind,
            &Options {
                seed: 6,
                ..Options::default()
            },
        );
        let same = first.digest().expect("small") == other.digest().expect("small");
        assert_eq!(
            same,
            kind.starts_with("addsub"),
            "{kind}: only weights depend on the seed"
        );
    }
}

#[test]
fn files_are_the_same_on_every_machine() {
    let digests = SMALL
        .map(|kind| model(kind, &Options::default()).digest().expect("small")[..16].to_owned());
    assert_eq!(
        digests,
        [
            "81ad99c13296e017",
            "78a0ff389dd9d803",
            "05851105ffebbde8",
            "835a7ecdf9250b7d"
        ]
    );
}

#[test]
fn the_file_is_what_is_in_memory() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("m.onnx");
    let made = model("cnn", &Options::default());
    made.write(&path).expect("writes");
    let written = fs::read(&path).expect("reads");
    assert_eq!(written, made.to_bytes().expect("small"));
    assert_eq!(written.len() as u64, made.file_bytes());
}

#[test]
fn a_side_file_holds_the_large_weights() {
    let directory = tempfile::tempdir().expect("a directory");
    let inline = model("cnn", &Options::default());
    let split = model(
        "cnn",
        &Options {
            external_data: true,
            ..Options::default()
        },
    );
    split
        .write_repository(directory.path(), "split", Some("max_batch_size: 8\n"))
        .expect("writes");
    let version = directory.path().join("split/1");
    let file = fs::read(version.join("model.onnx")).expect("the model");
    let side = fs::read(version.join("model.onnx.data")).expect("the side file");
    assert!(
        file.len() < 20_000 && side.len() > 500_000,
        "{} {}",
        file.len(),
        side.len()
    );
    assert_eq!(
        split.digest().expect("small"),
        inline.digest().expect("small"),
        "where weights lie changes none of them"
    );
    assert_eq!(
        fs::read_to_string(directory.path().join("split/config.pbtxt")).expect("the config"),
        "max_batch_size: 8\n"
    );

    let proto: skep_proto::onnx::ModelProto = prost::Message::decode(&file[..]).expect("decodes");
    let expected = weights(&inline);
    let mut external = 0;
    for tensor in proto.graph.expect("a graph").initializer {
        let entry = |key| {
            tensor
                .external_data
                .iter()
                .find(|e| e.key() == key)
                .map(|e| e.value().to_owned())
        };
        let Some(location) = entry("location") else {
            continue;
        };
        assert_eq!(location, "model.onnx.data");
        let [offset, length] = ["offset", "length"].map(|key| {
            entry(key)
                .expect("given")
                .parse::<usize>()
                .expect("a number")
        });
        assert_eq!(offset % 4096, 0);
        assert_eq!(side[offset..offset + length], expected[tensor.name()]);
        external += 1;
    }
    assert_eq!(external, 5);
}

#[test]
fn a_variant_differs_from_its_last_blocks_on() {
    let options = |variant| Options {
        seed: 1,
        variant,
        ..Options::default()
    };
    let changed = |kind: &str, blocks| {
        let [base, variant] =
            [None, Some(Variant { seed: 2, blocks })].map(|v| weights(&model(kind, &options(v))));
        let mut names: Vec<String> = base
            .keys()
            .filter(|name| base[*name] != variant[*name])
            .cloned()
            .collect();
        names.sort();
        names
    };
    assert_eq!(
        changed("bert-tiny:vocab=50", 0),
        ["pooler.bias", "pooler.weight"]
    );
    let one = changed("bert-tiny:vocab=50", 1);
    assert!(
        one.iter()
            .all(|name| name.starts_with("encoder.1") || name.starts_with("pooler")),
        "{one:?}"
    );
    assert_eq!(one.len(), 18);
    assert_eq!(changed("mlp:layers=4x4x4", 1).len(), 4);
}

#[test]
fn variants_that_cannot_be_are_refused() {
    let message = |kind: &str, blocks| {
        let options = Options {
            variant: Some(Variant { seed: 2, blocks }),
            ..Options::default()
        };
        generate(&kind.parse().expect("a kind"), &options)
            .expect_err(kind)
            .to_string()
    };
    assert_eq!(
        message("bert-tiny", 3),
        "parameter `variant` of model kind `bert-tiny` is `last-3-layers`, expected head, last-layer or last-N-layers with N of \
         at most 2"
    );
    assert!(message("identity", 0).contains("no blocks of weights"));
}

#[test]
fn a_file_above_two_gigabytes_is_refused_before_it_is_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let huge = model("bert:vocab=1000000", &Options::default());
    let path = directory.path().join("model.onnx");
    assert!(
        matches!(huge.write(&path), Err(GenerateError::TooLarge { bytes }) if bytes > 3_000_000_000)
    );
    assert!(!path.exists());
}

#[test]
fn names_that_leave_the_repository_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let made = model("identity", &Options::default());
    assert!(matches!(
        made.write_repository(directory.path(), "../out", None),
        Err(GenerateError::InvalidModelName(_))
    ));
    let blocked = made
        .write(directory.path().join("absent/model.onnx"))
        .expect_err("no such directory");
    assert_eq!(blocked.kind(), skep_models::GenerateErrorKind::Io);
}
