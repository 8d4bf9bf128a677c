//! The generated networks are the published ones: parameters, inputs, outputs.

use skep_models::{BatchDim, Kind, Options, generate};

fn parameters(kind: &str) -> usize {
    generate(&kind.parse().expect("a kind"), &Options::default())
        .expect("generates")
        .parameter_count()
}

#[test]
fn networks_have_the_published_numbers_of_parameters() {
    assert_eq!(parameters("resnet50"), 25_557_032);
    assert_eq!(parameters("mobilenetv2"), 3_504_872);
    assert_eq!(parameters("bert-base"), 109_482_240);
    assert_eq!(parameters("text-recogniser"), 44_282_885);
    assert_eq!(
        parameters("mlp"),
        256 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10
    );
}

#[test]
fn signatures_are_as_documented() {
    let signature = |kind: &str, options: &Options| {
        let model = generate(&kind.parse().expect("a kind"), options).expect("generates");
        let signature = model.signature();
        let specs = signature
            .inputs
            .iter()
            .map(|t| ("in", t))
            .chain(signature.outputs.iter().map(|t| ("out", t)));
        let lines = specs.map(|(way, t)| {
            format!(
                "{way} {} {} {}",
                t.name,
                t.datatype,
                t.dims.as_ref().expect("dims")
            )
        });
        lines.collect::<Vec<_>>().join("; ")
    };
    let usual = Options::default();
    let expected = [
        ("mlp", "in input FP32 [-1,256]; out output FP32 [-1,10]"),
        ("cnn", "in input FP32 [-1,3,32,32]; out output FP32 [-1,10]"),
        (
            "text-recogniser",
            "in input.1 FP32 [-1,1,32,100]; out 308 FP32 [-1,26,37]",
        ),
        (
            "resnet50",
            "in data FP32 [-1,3,224,224]; out output FP32 [-1,1000]",
        ),
        (
            "mobilenetv2:classes=7",
            "in data FP32 [-1,3,224,224]; out output FP32 [-1,7]",
        ),
        (
            "bert-tiny",
            "in input_ids INT64 [-1,-1]; in attention_mask INT64 [-1,-1]; in token_type_ids INT64 [-1,-1]; \
             out last_hidden_state FP32 [-1,-1,128]; out pooler_output FP32 [-1,128]",
        ),
        (
            "identity-bf16",
            "in INPUT0 BF16 [-1,16]; out OUTPUT0 BF16 [-1,16]",
        ),
        (
            "addsub-bytes:width=3",
            "in INPUT0 BYTES [-1,3]; in INPUT1 BYTES [-1,3]; out OUTPUT0 BYTES [-1,3]; out OUTPUT1 BYTES [-1,3]",
        ),
    ];
    for (kind, text) in expected {
        assert_eq!(signature(kind, &usual), text, "{kind}");
    }
    let fixed = Options {
        batch: BatchDim::Fixed(4.try_into().expect("positive")),
        ..usual
    };
    assert_eq!(
        signature("mlp", &fixed),
        "in input FP32 [4,256]; out output FP32 [4,10]"
    );
}

#[test]
fn inputs_fit_every_kind() {
    for kind in Kind::all() {
        let signature = generate(&kind, &Options::default())
            .expect("generates")
            .signature();
        let inputs = skep_models::inputs(
            &kind,
            skep_models::Inputs {
                seed: 1,
                batch: 1,
                sequence: 8,
            },
        );
        assert_eq!(inputs.len(), signature.inputs.len(), "{kind}");
        for (tensor, spec) in inputs.iter().zip(&signature.inputs) {
            assert_eq!(
                (&tensor.name, tensor.datatype),
                (&spec.name, spec.datatype),
                "{kind}"
            );
            assert!(
                spec.dims
                    .as_ref()
                    .expect("dims")
                    .accepts(tensor.shape.dims()),
                "{kind}"
            );
            if let Some(size) = tensor.datatype.element_size() {
                assert_eq!(
                    tensor.data.len(),
                    tensor.shape.element_count() * size,
                    "{kind}"
                );
            }
        }
    }
}

#[test]
fn every_value_that_a_node_uses_is_given_before() {
    for kind in Kind::all() {
        // The structure does not depend on the size of a table; this one would take 400 MB to build.
        let kind = if kind.name() == "bert-base" {
            "bert-base:vocab=10,layers=1,hidden=12"
                .parse()
                .expect("valid")
        } else {
            kind
        };
        if matches!(kind, Kind::TextRecogniser | Kind::Resnet50 { .. }) {
            continue; // tens of megabytes each; their blocks are built as those of the smaller networks are
        }
        let proto = generate(&kind, &Options::default())
            .expect("generates")
            .to_proto()
            .expect("small enough");
        let graph = proto.graph.expect("a graph");
        let mut given: Vec<&str> = graph.input.iter().map(|v| v.name()).collect();
        given.extend(graph.initializer.iter().map(|t| t.name()));
        for node in &graph.node {
            for input in &node.input {
                assert!(
                    given.contains(&input.as_str()),
                    "{kind}: `{input}` of {}",
                    node.op_type()
                );
            }
            given.extend(node.output.iter().map(String::as_str));
        }
        assert!(
            graph.output.iter().all(|v| given.contains(&v.name())),
            "{kind}"
        );
    }
}
