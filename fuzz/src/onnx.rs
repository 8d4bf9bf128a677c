//! ONNX files.

use skep_config::{Completion, Context, ModelConfig, complete};
use skep_onnx::{OnnxModel, ShapeRules};
use skep_proto::inference;
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
    };
    let mut config = inference::ModelConfig::default();
    if complete(&mut config, &completion).is_ok()
        && let Ok(config) = ModelConfig::from_proto(config, &Context::new(&name))
    {
        let fitted = config.with_signature(&signature);
        fitted.expect("a configuration made for the model");
    }
}
