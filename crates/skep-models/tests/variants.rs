//! Variants: which tensors they share with the model that they are variants of, and what that can save.

use std::collections::HashMap;

use skep_models::{GeneratedModel, Kind, Options, Sharing, Variant, generate};

fn model(kind: &str, variant: Option<(&str, u64)>) -> GeneratedModel {
    let kind: Kind = kind.parse().expect("a kind");
    let variant =
        variant.map(|(name, seed)| Variant::named(&kind, name, seed).expect("a variant of it"));
    let options = Options {
        seed: 1,
        variant,
        ..Options::default()
    };
    generate(&kind, &options).expect("generates")
}

/// Dims and bytes of each initializer, by name.
fn tensors(model: &GeneratedModel) -> HashMap<String, (Vec<i64>, bytes::Bytes)> {
    let graph = model.to_proto().expect("small").graph.expect("a graph");
    graph
        .initializer
        .into_iter()
        .map(|t| {
            (
                t.name.unwrap_or_default(),
                (t.dims, t.raw_data.unwrap_or_default()),
            )
        })
        .collect()
}

#[test]
fn what_is_shared_is_identical_and_as_much_as_is_said() {
    let cases = [
        ("mlp:layers=16x8x8x4", "head"),
        ("mlp:layers=16x8x8x4", "last-layer"),
        ("cnn", "last-block"),
        ("mobilenetv2", "last-3-blocks"),
        ("bert-tiny:vocab=50", "head"),
        ("bert-tiny:vocab=50", "last-layer"),
        ("bert-tiny:vocab=50,layers=4", "last-2-layers"),
    ];
    for (kind, name) in cases {
        let [base, one, other] =
            [None, Some((name, 2)), Some((name, 3))].map(|variant| model(kind, variant));
        let sharing = one.sharing();
        let [base, one, other] = [&base, &one, &other].map(tensors);
        let same_names = base.keys().all(|name| one.contains_key(name));
        assert!(same_names && base.len() == one.len(), "{kind} {name}");
        let shared = |a: &HashMap<_, (Vec<i64>, bytes::Bytes)>| -> u64 {
            let same = one.iter().filter(|(name, tensor)| a[*name] == **tensor);
            same.map(|(_, (_, bytes))| bytes.len() as u64).sum()
        };
        let total: u64 = one.values().map(|(_, bytes)| bytes.len() as u64).sum();
        assert_eq!(total, sharing.bytes, "{kind} {name}");
        assert_eq!(shared(&base), total - sharing.own_bytes, "{kind} {name}");
        assert_eq!(
            shared(&other),
            shared(&base),
            "{kind} {name}: two variants share what each shares with the model"
        );
        assert!(
            sharing.own_bytes > 0 && sharing.own_bytes < total,
            "{kind} {name}"
        );
    }
}

#[test]
fn a_variants_seed_decides_its_end() {
    let digest = |seed| {
        let made = model("bert-tiny:vocab=50", Some(("last-layer", seed)));
        made.digest().expect("small")
    };
    assert_eq!(digest(2), digest(2));
    assert_ne!(digest(2), digest(3));
    let base = model("bert-tiny:vocab=50", None);
    assert_eq!(
        digest(1),
        base.digest().expect("small"),
        "with the model's own seed a variant is the model"
    );
    assert_eq!(base.sharing().own_bytes, 0);
}

/// ResNet-50 holds 25,557,032 parameters and 53,120 statistics. A bottleneck of 2048 channels takes 2048 x 512 +
/// 512 x 512 x 9 + 512 x 2048 weights and 4 x (512 + 512 + 2048) for its normalisations; the first of the stage reads
/// 1024 channels and adds a shortcut of 1024 x 2048 and 4 x 2048; the head 2048 x 1000 + 1000. BERT-base holds
/// 109,482,240 parameters; an encoder layer 4 x (768 x 768 + 768) + 2 x 768 x 3072 + 3072 + 768 + 4 x 768; the pooler,
/// its head, 768 x 768 + 768. The text recogniser's head is 512 x 37 + 37 of 44,282,885 parameters.
#[test]
fn what_ten_variants_can_save_follows_from_the_sizes() {
    let bottleneck = 2048 * 512 + 512 * 512 * 9 + 512 * 2048 + 4 * (512 + 512 + 2048);
    let widening =
        1024 * 512 + 512 * 512 * 9 + 512 * 2048 + 1024 * 2048 + 4 * (512 + 512 + 2 * 2048);
    let fc = 2048 * 1000 + 1000;
    let layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768;
    let pooler = 768 * 768 + 768;
    let prediction = 512 * 37 + 37;
    let cases = [
        ("resnet50", "head", fc, "83"),
        ("resnet50", "last-block", fc + bottleneck, "67"),
        (
            "resnet50",
            "last-3-blocks",
            fc + 2 * bottleneck + widening,
            "30",
        ),
        ("bert-base", "head", pooler, "90"),
        ("bert-base", "last-2-layers", pooler + 2 * layer, "78"),
        ("bert-base", "last-6-layers", pooler + 6 * layer, "55"),
        ("text-recogniser", "head", prediction, "90"),
    ];
    for (kind, name, own_values, percent) in cases {
        let sharing = model(kind, Some((name, 2))).sharing();
        assert_eq!(sharing.own_bytes, 4 * own_values, "{kind} {name}");
        let rounded = format!("{:.0}", 100.0 * sharing.saving(10));
        assert_eq!(rounded, percent, "{kind} {name}: {sharing:?}");
    }
    assert_eq!(
        model("resnet50", None).sharing().bytes,
        4 * (25_557_032 + 53_120)
    );
}

#[test]
fn savings_are_of_all_models_apart() {
    let quarter_own = Sharing {
        bytes: 400,
        own_bytes: 100,
    };
    assert!((quarter_own.fraction() - 0.75).abs() < 1e-12);
    assert_eq!(quarter_own.distinct_bytes(1), 400);
    assert_eq!(quarter_own.distinct_bytes(10), 300 + 10 * 100);
    assert!((quarter_own.saving(10) - (1.0 - 1300.0 / 4000.0)).abs() < 1e-12);
    assert!(quarter_own.saving(1).abs() < 1e-12);
    let nothing = Sharing {
        bytes: 0,
        own_bytes: 0,
    };
    assert!((nothing.fraction() - 1.0).abs() < 1e-12);
}

#[test]
fn names_of_variants_that_a_kind_does_not_have_are_refused() {
    let refused = |kind: &str, name: &str| {
        let kind: Kind = kind.parse().expect("a kind");
        Variant::named(&kind, name, 2).expect_err(name).to_string()
    };
    assert_eq!(
        refused("resnet50", "last-2-layers"),
        "parameter `variant` of model kind `resnet50` is `last-2-layers`, expected head, last-block or last-N-blocks"
    );
    assert_eq!(
        refused("bert-tiny", "last-blocks"),
        "parameter `variant` of model kind `bert-tiny` is `last-blocks`, expected head, last-layer or last-N-layers"
    );
    assert!(refused("identity", "head").contains("no blocks of weights"));
    for name in [
        "",
        "last-",
        "last--blocks",
        "last-x-blocks",
        "Head",
        "last-2blocks",
        "last-2-block",
    ] {
        refused("cnn", name);
    }
}
