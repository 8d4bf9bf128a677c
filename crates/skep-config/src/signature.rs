//! The configuration against the model itself: names, datatypes, ranks, dims.

use std::collections::BTreeSet;

use skep_types::{DataType, Dims, ModelSignature, TensorSpec};

use crate::{
    error::ConfigError,
    model::ModelConfig,
    ragged::{BatchInput, BatchOutput},
    tensors::TensorConfig,
};

/// Refuses a configuration that contradicts the model's file: an unknown or missing input, an unknown output, another
/// datatype, rank or fixed dimension. `reshape`, where there is one, is what the model sees.
///
/// # Errors
/// [`ConfigError::Signature`] with both sides in its text.
pub fn check_signature(
    config: &ModelConfig,
    signature: &ModelSignature,
) -> Result<(), ConfigError> {
    let model = config.name().as_str();
    check_input_count(config, signature)?;
    for tensor in config.inputs() {
        Check {
            model,
            side: "input",
            tensor,
            scattered: false,
        }
        .run(&signature.inputs)?;
    }
    for input in config.batch_inputs() {
        check_batch_input(model, input, &signature.inputs)?;
    }
    for tensor in config.outputs() {
        // The elements of all requests, one behind the other in whatever shape.
        let scattered = |output: &BatchOutput| output.name == tensor.name;
        let scattered = config.batch_outputs().iter().any(scattered);
        Check {
            model,
            side: "output",
            tensor,
            scattered,
        }
        .run(&signature.outputs)?;
    }
    Ok(())
}

/// Says that a tensor of the model has another datatype than the configuration.
pub(crate) fn other_datatype(
    model: &str,
    side: &str,
    expected: DataType,
    spec: &TensorSpec,
) -> String {
    let (name, expected) = (&spec.name, expected.config_name());
    let provided = spec.datatype.config_name();
    format!(
        "unable to load model '{model}', configuration expects datatype {expected} for {side} '{name}', model provides {provided}"
    )
}

/// Whether the model's file says that a tensor has rank 0.
pub(crate) fn is_scalar(spec: &TensorSpec) -> bool {
    spec.dims.as_ref().is_some_and(|dims| dims.rank() == 0)
}

/// Every input of the model is needed for a run, so the configuration must list each.
fn check_input_count(config: &ModelConfig, signature: &ModelSignature) -> Result<(), ConfigError> {
    let (expected, provided) = (config.fed_inputs().count(), signature.inputs.len());
    if expected == provided {
        return Ok(());
    }
    let model = config.name().as_str();
    let missing = signature
        .inputs
        .iter()
        .find(|spec| config.fed_inputs().all(|name| name != spec.name));
    let mut fed = config.fed_inputs();
    let unknown = fed.find(|name| signature.input(name).is_none());
    let hint = match (missing, unknown) {
        (Some(missing), _) if expected < provided => {
            format!("the configuration lacks input `{}`", missing.name)
        }
        (_, Some(unknown)) => format!("the model has no input `{unknown}`"),
        _ => "the model lists an input twice".to_owned(),
    };
    Err(ConfigError::Signature {
        model: model.to_owned(),
        tensor: String::new(),
        reason: format!(
            "unable to load model '{model}', configuration expects {expected} inputs, model provides {provided}"
        ),
        hint: Some(hint),
    })
}

/// A computed input must be the model's, of its datatype and rank.
fn check_batch_input(
    model: &str,
    input: &BatchInput,
    specs: &[TensorSpec],
) -> Result<(), ConfigError> {
    let name = &input.name;
    let error = |reason: String| ConfigError::Signature {
        model: model.to_owned(),
        tensor: name.clone(),
        reason,
        hint: None,
    };
    let Some(spec) = specs.iter().find(|spec| spec.name == *name) else {
        let text = format!("unable to load model '{model}', it has no batch input '{name}'");
        return Err(error(text));
    };
    if spec.datatype != input.datatype {
        return Err(error(other_datatype(
            model,
            "batch input",
            input.datatype,
            spec,
        )));
    }
    let given = input.kind.dims();
    match &spec.dims {
        Some(dims) if dims.rank() != given.rank() => Err(error(format!(
            "model '{model}', batch input '{name}': the model expects shape {dims}, its kind has {given}"
        ))),
        _ => Ok(()),
    }
}

/// One tensor of the configuration.
struct Check<'a> {
    model: &'a str,
    side: &'static str,
    tensor: &'a TensorConfig,
    /// An output whose shape is that of no request.
    scattered: bool,
}

impl Check<'_> {
    fn run(&self, specs: &[TensorSpec]) -> Result<(), ConfigError> {
        let name = &self.tensor.name;
        let Some(spec) = specs.iter().find(|spec| spec.name == *name) else {
            let allowed: BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
            let allowed: Vec<&str> = allowed.into_iter().collect();
            let side = self.side;
            let text = format!(
                "unexpected inference {side} '{name}', allowed {side}s are: {}",
                allowed.join(", ")
            );
            return Err(self.error(text));
        };
        if spec.datatype != self.tensor.datatype {
            let text = other_datatype(self.model, self.side, self.tensor.datatype, spec);
            return Err(self.error(text));
        }
        // A file that says nothing about the shape contradicts nothing.
        spec.dims.as_ref().map_or(Ok(()), |dims| self.shape(dims))
    }

    fn shape(&self, model: &Dims) -> Result<(), ConfigError> {
        if self.scattered {
            return Ok(());
        }
        if self.tensor.ragged {
            if *model == self.tensor.full_dims() {
                return Ok(());
            }
            return Err(self.error(format!(
                "unable to load model '{}', configuration expects model provides input with shape [-1]  for ragged input \
                 '{}', model provides {model}",
                self.model, self.tensor.name
            )));
        }
        let (tensor, full) = (self.tensor, self.tensor.full_dims());
        if tensor.batched && model.as_slice().first() != Some(&-1) {
            return Err(self.error(format!(
                "model '{}', tensor '{}': for the model to support batching the shape should have at least 1 dimension \
                 and the first dimension must be -1; but shape expected by the model is {model}",
                self.model, tensor.name
            )));
        }
        let is_output = self.side == "output";
        if model.rank() == 0 {
            let is_open = |&d: &i64| d == -1 && is_output;
            if full.as_slice().iter().all(|d| *d == 1 || is_open(d)) {
                return Ok(());
            }
            return Err(self.error(format!(
                "unable to load model '{}', scalar tensor '{}', should only provide 1 in the model configuration when the \
                 model doesn't support batching. Model configuration provided: {full}.",
                self.model, tensor.name
            )));
        }
        // An input of variable size takes what the configuration narrows it to. An output's configuration may leave open (-1)
        // what the file fixes, because files are often wrong about it. It may not fix what the file leaves open.
        let fits = |(&m, &c): (&i64, &i64)| m == c || if is_output { c == -1 } else { m == -1 };
        if model.rank() == full.rank() && model.as_slice().iter().zip(full.as_slice()).all(fits) {
            return Ok(());
        }
        let how = if tensor.batched {
            format!(
                "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making \
                 complete shape {full}"
            )
        } else {
            format!("shape {full}")
        };
        Err(self.error(format!(
            "model '{}', tensor '{}': the model expects {} dimensions (shape {model}) but the model configuration \
             specifies {} dimensions ({how})",
            self.model,
            tensor.name,
            model.rank(),
            full.rank()
        )))
    }

    fn error(&self, reason: String) -> ConfigError {
        ConfigError::Signature {
            model: self.model.to_owned(),
            tensor: self.tensor.name.clone(),
            reason,
            hint: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use skep_types::{DataType, Dims, ModelName, ModelSignature, TensorSpec};

    use crate::{Context, ModelConfig, parse_pbtxt};

    fn spec(name: &str, datatype: DataType, dims: Option<&[i64]>) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            datatype,
            dims: dims.map(|d| Dims::new(d).expect("dims")),
        }
    }

    fn signature() -> ModelSignature {
        ModelSignature {
            inputs: vec![
                spec("a", DataType::Fp32, Some(&[-1, 3])),
                spec("b", DataType::Int64, Some(&[-1, -1])),
            ],
            outputs: vec![
                spec("y", DataType::Fp32, Some(&[-1, 5])),
                spec("z", DataType::Bytes, None),
            ],
        }
    }

    fn check(text: &str, signature: &ModelSignature) -> Result<ModelConfig, String> {
        let name = ModelName::new("m").expect("name");
        let proto = parse_pbtxt(format!("backend: 'mock' {text}").as_bytes(), "c").expect("parses");
        let config = ModelConfig::from_proto(proto, &Context::new(&name)).expect("valid");
        config
            .with_signature(signature)
            .map_err(|error| error.to_string())
    }

    const A: &str = "input { name: 'a' data_type: TYPE_FP32 dims: 3 }";
    const B: &str = "input { name: 'b' data_type: TYPE_INT64 dims: -1 }";
    const Y: &str = "output { name: 'y' data_type: TYPE_FP32 dims: 5 }";

    #[test]
    fn matching_configurations_are_accepted() {
        for text in [
            format!("max_batch_size: 8 {A} {B} {Y}"),
            // Inputs may be narrower than in the model, outputs may be fewer, and an unknown shape matches any.
            format!("max_batch_size: 8 {A} input {{ name: 'b' data_type: TYPE_INT64 dims: 7 }} output {{ name: 'z' data_type: TYPE_STRING dims: [1,2,3] }}"),
            format!("max_batch_size: 8 {B} {Y} input {{ name: 'a' data_type: TYPE_FP32 dims: [1,3,1] reshape {{ shape: 3 }} }}"),
            "input [{ name: 'a' data_type: TYPE_FP32 dims: [2,3] }, { name: 'b' data_type: TYPE_INT64 dims: [-1,1] }] output { name: 'y' data_type: TYPE_FP32 dims: [-1,5] }".to_owned(),
        ] {
            assert!(check(&text, &signature()).is_ok(), "{text}: {:?}", check(&text, &signature()));
        }
    }

    #[test]
    fn contradictions_are_refused_with_both_sides() {
        for (text, expected) in [
            (
                format!("max_batch_size: 8 {A} {Y}"),
                "unable to load model 'm', configuration expects 1 inputs, model provides 2\nthe configuration lacks input `b`",
            ),
            (
                format!("max_batch_size: 8 {A} {B} {Y} input {{ name: 'c' data_type: TYPE_FP32 dims: 3 }}"),
                "unable to load model 'm', configuration expects 3 inputs, model provides 2\nthe model has no input `c`",
            ),
            (
                format!("max_batch_size: 8 {A} {Y} input {{ name: 'c' data_type: TYPE_FP32 dims: 3 }}"),
                "unexpected inference input 'c', allowed inputs are: a, b",
            ),
            (
                format!("max_batch_size: 8 {A} {B} output {{ name: 'q' data_type: TYPE_FP32 dims: 3 }}"),
                "unexpected inference output 'q', allowed outputs are: y, z",
            ),
            (
                format!("max_batch_size: 8 {B} {Y} input {{ name: 'a' data_type: TYPE_FP16 dims: 3 }}"),
                "unable to load model 'm', configuration expects datatype TYPE_FP16 for input 'a', model provides TYPE_FP32",
            ),
            (
                format!("max_batch_size: 8 {B} {Y} input {{ name: 'a' data_type: TYPE_FP32 dims: 4 }}"),
                "model 'm', tensor 'a': the model expects 2 dimensions (shape [-1,3]) but the model configuration specifies 2 dimensions (an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making complete shape [-1,4])",
            ),
            (
                format!("max_batch_size: 8 {B} {Y} input {{ name: 'a' data_type: TYPE_FP32 dims: -1 }}"),
                "model 'm', tensor 'a': the model expects 2 dimensions (shape [-1,3]) but the model configuration specifies 2 dimensions (an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making complete shape [-1,-1])",
            ),
            (
                "input [{ name: 'a' data_type: TYPE_FP32 dims: 3 }, { name: 'b' data_type: TYPE_INT64 dims: [1,1] }] output { name: 'y' data_type: TYPE_FP32 dims: [-1,5] }".to_owned(),
                "model 'm', tensor 'a': the model expects 2 dimensions (shape [-1,3]) but the model configuration specifies 1 dimensions (shape [3])",
            ),
            (
                format!("max_batch_size: 8 {A} {B} output {{ name: 'y' data_type: TYPE_FP32 dims: 6 }}"),
                "model 'm', tensor 'y': the model expects 2 dimensions (shape [-1,5]) but the model configuration specifies 2 dimensions (an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making complete shape [-1,6])",
            ),
        ] {
            assert_eq!(check(&text, &signature()).map(|_| ()), Err(expected.to_owned()), "{text}");
        }
    }

    /// The configuration of an input may narrow a variable dimension. That of an output may not, but may leave a fixed one open.
    #[test]
    fn outputs_promise_no_more_than_the_file() {
        let variable = ModelSignature {
            inputs: vec![spec("a", DataType::Fp32, Some(&[-1]))],
            outputs: vec![spec("y", DataType::Fp32, Some(&[-1]))],
        };
        let text = |a: i64, y: i64| {
            format!(
                "input {{ name: 'a' data_type: TYPE_FP32 dims: {a} }} output {{ name: 'y' data_type: TYPE_FP32 dims: {y} }}"
            )
        };
        assert!(check(&text(7, -1), &variable).is_ok());
        assert_eq!(
            check(&text(-1, 7), &variable).map(|_| ()),
            Err("model 'm', tensor 'y': the model expects 1 dimensions (shape [-1]) but the model configuration specifies 1 dimensions (shape [7])".to_owned())
        );
        let fixed = |dims: &[i64]| ModelSignature {
            outputs: vec![spec("y", DataType::Fp32, Some(dims))],
            ..variable.clone()
        };
        assert!(check(&text(-1, -1), &fixed(&[7])).is_ok());
        let open =
            check(&text(-1, -1), &fixed(&[])).expect("an output that the file calls a scalar");
        assert_eq!(open.outputs()[0].full_dims(), Dims::default().with_batch());
    }

    #[test]
    fn scalars_have_one_element_in_a_configuration() {
        let scalar = ModelSignature {
            inputs: vec![spec("a", DataType::Fp32, Some(&[]))],
            outputs: vec![spec("y", DataType::Fp32, Some(&[2]))],
        };
        let io = |dims: &str| {
            format!(
                "input {{ name: 'a' data_type: TYPE_FP32 dims: {dims} }} output {{ name: 'y' data_type: TYPE_FP32 dims: 2 }}"
            )
        };
        let config = check(&io("1"), &scalar).expect("fits");
        assert_eq!(
            (
                config.inputs()[0].full_dims().rank(),
                config.inputs()[0].client_dims().rank()
            ),
            (0, 1)
        );
        assert_eq!(config.proto().input[0].reshape, None);
        assert_eq!(config.outputs()[0].reshape, None);
        assert_eq!(
            check(&io("2"), &scalar).map(|_| ()),
            Err("unable to load model 'm', scalar tensor 'a', should only provide 1 in the model configuration when the model doesn't support batching. Model configuration provided: [2].".to_owned())
        );
        assert_eq!(
            check(&format!("max_batch_size: 1 {}", io("1")), &scalar).map(|_| ()),
            Err("model 'm', tensor 'a': for the model to support batching the shape should have at least 1 dimension and the first dimension must be -1; but shape expected by the model is []".to_owned())
        );
    }
}
