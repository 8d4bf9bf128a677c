//! Static shape inference on every kind of generated model.

use std::collections::BTreeMap;

use skep_models::{Kind, Options, generate};
use skep_onnx::OnnxModel;
use skep_proto::onnx::{GraphProto, ModelProto};
use skep_shapes::{GivenShapes, InferredShapes, infer_shapes};

/// The graph without its weights' values: inference must not need those of any but small constants.
fn model(kind: &Kind) -> OnnxModel {
    let mut proto = generate(kind, &Options::default())
        .expect("a model")
        .to_proto()
        .expect("in memory");
    for tensor in &mut proto.graph.as_mut().expect("a graph").initializer {
        if tensor.raw_data().len() > 1024 {
            tensor.raw_data = None;
        }
    }
    decoded(&proto)
}

fn decoded(proto: &ModelProto) -> OnnxModel {
    use prost::Message;
    OnnxModel::decode(proto.encode_to_vec().into()).expect("decodes")
}

fn given(kind: &Kind, batch: usize) -> GivenShapes {
    let mut given = GivenShapes {
        batch: Some(batch),
        ..GivenShapes::default()
    };
    if matches!(kind, Kind::Bert(_)) {
        given.dims = BTreeMap::from([("sequence".to_owned(), 17)]);
    }
    given
}

/// How many tensors the nodes give, and their bytes in all.
fn totals(graph: &GraphProto, inferred: &InferredShapes) -> (usize, usize) {
    let outputs = graph.node.iter().flat_map(|node| &node.output);
    let bytes: Vec<usize> = outputs.map(|name| inferred.tensors[name].bytes()).collect();
    (bytes.len(), bytes.iter().sum())
}

/// What ONNX Runtime 1.31.1 gave at batch 4 and sequence length 17 with each tensor an output; compared one by one, of
/// which these sums are left.
#[test]
fn generated_models_have_the_shapes_of_a_run() {
    let expected = [
        ("mlp", 5, 32_928),
        ("cnn", 16, 1_511_584),
        ("text-recogniser", 111, 106_018_880),
        ("resnet50", 175, 600_989_312),
        ("mobilenetv2", 152, 314_911_360),
        ("bert-tiny", 82, 3_815_512),
    ];
    for (name, count, bytes) in expected {
        let kind: Kind = name.parse().expect("a kind");
        let model = model(&kind);
        let inferred = infer_shapes(&model, &given(&kind, 4)).expect(name);
        assert_eq!(totals(model.graph(), &inferred), (count, bytes), "{name}");
        let file_order: Vec<usize> = (0..model.graph().node.len()).collect();
        assert_eq!(inferred.order, file_order, "{name}");
    }
}

#[test]
fn every_kind_is_inferred_as_its_signature_says() {
    for kind in Kind::all()
        .iter()
        .filter(|kind| !matches!(kind, Kind::Bert(size) if size.layers > 2))
    {
        let model = model(kind);
        let signature = model.signature().expect("servable");
        for batch in [1, 3] {
            let inferred = infer_shapes(&model, &given(kind, batch)).expect("inferred");
            for spec in signature.outputs.iter().chain(&signature.inputs) {
                let tensor = &inferred.tensors[&spec.name];
                let dims = spec.dims.as_ref().expect("declared");
                assert!(dims.accepts(tensor.shape.dims()), "{kind}: {}", spec.name);
                assert_eq!(tensor.element.datatype(), Some(spec.datatype), "{kind}");
                assert_eq!(tensor.shape.dims()[0], batch, "{kind}");
            }
        }
    }
}
