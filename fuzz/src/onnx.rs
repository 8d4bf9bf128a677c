//! ONNX files.

use std::collections::HashMap;

use skep_config::{Completion, ConfigContext, ModelConfig, complete, looks_batched};
use skep_onnx::{OnnxModel, ShapeRules};
use skep_proto::inference;
use skep_shapes::{GivenShapes, InferredShapes, computed_outputs, infer_shapes, why_not_batched};
use skep_types::{ModelName, Shape};

/// A model's file, up to the configuration that is made for it.
///
/// Output shapes that follow from input shapes fit the declared dims. A model that a configuration can be made for fits
/// that configuration.
pub fn file(data: &[u8]) {
    let Ok(model) = OnnxModel::decode(data.to_vec().into()) else {
        return;
    };
    let mut graphs = 0;
    model.visit(&mut |_| graphs += 1);
    assert!(graphs > 0);
    assert!(computed_outputs(&model).len() <= model.undeclared_outputs().count());
    let rules = ShapeRules::of(&model);
    let Ok(signature) = model.signature() else {
        return;
    };
    if let Some(rules) = rules {
        for size in [0, 1, 3, usize::MAX >> 5] {
            let sized = |dim: &i64| usize::try_from(*dim).unwrap_or(size);
            let inputs = signature.inputs.iter().map(|spec| {
                let dims = spec.dims.as_ref().map_or(&[][..], |dims| dims.as_slice());
                Shape::new(&dims.iter().map(sized).collect::<Vec<_>>()).unwrap_or_default()
            });
            let inputs: Vec<Shape> = inputs.collect();
            let Some(outputs) = rules.output_shapes(&inputs.iter().collect::<Vec<_>>()) else {
                continue;
            };
            assert_eq!(outputs.len(), signature.outputs.len());
            for (shape, spec) in outputs.iter().zip(&signature.outputs) {
                let dims = spec
                    .dims
                    .as_ref()
                    .expect("declared, or there were no rules");
                assert!(dims.accepts(shape.dims()), "{shape} in {dims}");
            }
        }
    }
    let name = ModelName::new("m").expect("a name");
    let completion = Completion {
        model: &name,
        backend: "embedded",
        model_filename: "",
        default_max_batch_size: 4,
        signature: Some(&signature),
        is_unbatched: looks_batched(&signature) && why_not_batched(&model, &|_| true).is_some(),
    };
    let mut config = inference::ModelConfig::default();
    if complete(&mut config, &completion).is_ok()
        && let Ok(config) = ModelConfig::from_proto(config, &ConfigContext::new(&name))
    {
        let fitted = config.with_signature(&signature);
        fitted.expect("a configuration made for the model");
    }
}

/// A model's file, up to the shapes of its tensors, with a size for whatever its inputs leave open.
///
/// The order has each node once, behind what it reads, and every tensor has bytes that can be addressed.
pub fn infer(data: &[u8]) {
    let Ok(model) = OnnxModel::decode(data.to_vec().into()) else {
        return;
    };
    let mut given = GivenShapes {
        batch: Some(2),
        ..GivenShapes::default()
    };
    for round in 0..2 {
        if let Ok(inferred) = infer_shapes(&model, &given) {
            check(&model, &inferred);
        }
        if round == 0 {
            let Ok(signature) = model.signature() else {
                return;
            };
            given.batch = None;
            for spec in signature.inputs {
                let dims = spec.dims.iter().flat_map(|dims| dims.as_slice());
                let sized = dims.map(|dim| usize::try_from(*dim).unwrap_or(3));
                given.inputs.insert(spec.name, sized.collect());
            }
        }
    }
}

fn check(model: &OnnxModel, inferred: &InferredShapes) {
    let nodes = &model.graph().node;
    let mut places = vec![usize::MAX; nodes.len()];
    for (place, &node) in inferred.order.iter().enumerate() {
        assert_eq!(places[node], usize::MAX, "node {node} comes twice");
        places[node] = place;
    }
    assert_eq!(inferred.order.len(), nodes.len());
    let outputs = nodes.iter().enumerate();
    let outputs = outputs.flat_map(|(at, node)| node.output.iter().map(move |name| (name, at)));
    let producers: HashMap<&String, usize> = outputs.collect();
    for (at, node) in nodes.iter().enumerate() {
        for name in node.input.iter().filter(|name| !name.is_empty()) {
            if let Some(&producer) = producers.get(name) {
                assert!(places[producer] < places[at], "`{name}` is read too early");
            }
        }
    }
    for tensor in inferred.tensors.values() {
        assert!(tensor.bytes() <= isize::MAX as usize);
    }
}
