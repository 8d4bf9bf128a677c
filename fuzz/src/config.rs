//! Model configurations: `config.pbtxt`, and the JSON of a load request.

use skep_config::{Completion, ConfigContext, ModelConfig, complete, parse_json, parse_pbtxt};
use skep_proto::inference;
use skep_types::{DataType, Dims, ModelName, ModelSignature, TensorSpec};

/// A configuration in protobuf's text format.
pub fn pbtxt(data: &[u8]) {
    if let Ok(config) = parse_pbtxt(data, "config.pbtxt") {
        check(&config);
    }
}

/// A configuration in JSON.
pub fn json(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(config) = parse_json(text, "load parameter") {
        check(&config);
    }
}

/// Two configurations that are the same, not-a-number being the same as itself.
pub fn assert_same(left: &inference::ModelConfig, right: &inference::ModelConfig) {
    assert_eq!(format!("{left:?}"), format!("{right:?}"));
}

/// What is shown as JSON is read as what it was; what is completed and normalised stays as it is when it goes through
/// the same doors again.
fn check(config: &inference::ModelConfig) {
    assert_shown(config);
    let name = ModelName::new(&config.name).or_else(|_| ModelName::new("m"));
    let name = name.expect("a name");
    for signature in [None, Some(batched()), Some(unknown()), Some(scalar())] {
        let completion = Completion {
            model: &name,
            backend: "onnxruntime",
            model_filename: "",
            default_max_batch_size: 4,
            signature: signature.as_ref(),
            is_unbatched: false,
        };
        let mut completed = config.clone();
        if complete(&mut completed, &completion).is_err() {
            continue;
        }
        let mut again = completed.clone();
        complete(&mut again, &completion).expect("what is complete already");
        assert_same(&completed, &again);
        if let Ok(valid) = ModelConfig::from_proto(completed, &ConfigContext::new(&name)) {
            assert_valid(&valid);
            if let Some(signature) = &signature {
                // Most contradict the signature; that is for others to say.
                drop(valid.with_signature(signature));
            }
        }
    }
}

fn assert_shown(config: &inference::ModelConfig) {
    let shown = skep_wire::config::to_json(config);
    let shown = std::str::from_utf8(&shown).expect("JSON is text");
    let read = parse_json(shown, "shown").unwrap_or_else(|error| panic!("{error}: {shown}"));
    assert_same(config, &read);
}

fn assert_valid(valid: &ModelConfig) {
    assert_shown(valid.proto());
    let again = ModelConfig::from_proto(valid.proto().clone(), &ConfigContext::new(valid.name()));
    assert_same(valid.proto(), again.expect("what was valid").proto());
    let instances = valid.instance_groups().iter().map(|group| group.count);
    assert!((1..=1024).contains(&instances.sum::<u32>()));
    assert!(!valid.outputs().is_empty());
    assert!(valid.max_queue_size() > 0);
    let path = valid.model_filename();
    assert!(!path.starts_with('/') && path.split('/').all(|part| part != ".."));
    for tensor in valid.inputs().iter().chain(valid.outputs()) {
        assert_eq!(tensor.batched, valid.is_batched());
        for dims in [tensor.full_dims(), tensor.client_dims()] {
            let fixed = dims.as_slice().iter().filter(|&&dim| dim != -1);
            assert!(fixed.clone().all(|&dim| dim > 0));
            // Of eight bytes each they can be addressed.
            let elements = fixed.copied().reduce(|n, dim| n.saturating_mul(dim));
            assert!(elements.is_none_or(|n| n <= i64::MAX / 8));
        }
    }
    for warmup in valid.warmups() {
        assert!(warmup.batch_size > 0 && warmup.count > 0);
        for (name, input) in &warmup.inputs {
            let config = valid.input(name).expect("an input of the model");
            assert!(config.dims.accepts(input.dims.dims()));
            assert_eq!(config.datatype, input.datatype);
        }
    }
}

fn spec(name: &str, datatype: DataType, dims: Option<&[i64]>) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        datatype,
        dims: dims.map(|dims| Dims::new(dims).expect("dims")),
    }
}

/// A model that can batch.
fn batched() -> ModelSignature {
    ModelSignature {
        inputs: vec![
            spec("x", DataType::Fp32, Some(&[-1, 4])),
            spec("s", DataType::Bytes, Some(&[-1])),
        ],
        outputs: vec![spec("y", DataType::Fp32, Some(&[-1, -1]))],
    }
}

/// A model whose file says nothing about shapes.
fn unknown() -> ModelSignature {
    ModelSignature {
        inputs: vec![spec("x", DataType::Int64, None)],
        outputs: vec![spec("y", DataType::Bool, None)],
    }
}

/// A model of scalars, which cannot batch.
fn scalar() -> ModelSignature {
    ModelSignature {
        inputs: vec![spec("x", DataType::Fp32, Some(&[]))],
        outputs: vec![spec("y", DataType::Fp32, Some(&[]))],
    }
}
