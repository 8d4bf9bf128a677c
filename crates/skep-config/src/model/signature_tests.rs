//! Which configurations fit a model's file, and what the refusals say.

use skep_types::{DataType, Dims, ModelName, ModelSignature, TensorSpec};

use crate::{ConfigContext, ModelConfig, parse_pbtxt};

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
    let config = ModelConfig::from_proto(proto, &ConfigContext::new(&name)).expect("valid");
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
        // Inputs may be narrower than the model, outputs fewer, and a tensor of unknown shape is anything.
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

/// The configuration of an input may narrow a variable dimension. That of an output may not, but may leave a fixed one
/// open.
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
    let open = check(&text(-1, -1), &fixed(&[])).expect("an output that the file calls a scalar");
    assert_eq!(open.outputs()[0].full_dims(), Dims::default().with_batch());
}

#[test]
fn an_optional_input_needs_a_default_in_the_file() {
    let config = check(
        &format!("max_batch_size: 8 {A} {Y} input {{ name: 'b' data_type: TYPE_INT64 dims: -1 optional: true }}"),
        &signature(),
    )
    .expect("fits");
    assert!(config.check_optional(|name| name == "b").is_ok());
    let error = config.check_optional(|_| false).expect_err("no default");
    assert_eq!(
        error.to_string(),
        "unable to load model 'm', configuration says that input 'b' is optional, but the model requires it: its file has no default for it\nwrite `optional: false`, or give the graph an initializer with the input's name"
    );
    let required = check(&format!("max_batch_size: 8 {A} {B} {Y}"), &signature()).expect("fits");
    assert!(required.check_optional(|_| false).is_ok());
}

#[test]
fn outputs_that_the_file_does_not_declare_come_from_the_configuration() {
    let config = check(&format!("max_batch_size: 8 {A} {B} {Y}"), &signature()).expect("fits");
    let expected = spec("y", DataType::Fp32, None);
    assert_eq!(config.undeclared_output("y"), Some(expected));
    assert_eq!(config.undeclared_output("q"), None);

    let reported = |name, datatype| config.check_reported_output(&spec(name, datatype, None));
    assert!(reported("y", DataType::Fp32).is_ok());
    assert!(reported("q", DataType::Bool).is_ok());
    assert_eq!(
        reported("y", DataType::Bool),
        Err("unable to load model 'm', configuration expects datatype TYPE_FP32 for output 'y', model provides TYPE_BOOL".to_owned())
    );
}

#[test]
fn an_input_that_the_model_lists_twice_is_said_to_be() {
    let twice = ModelSignature {
        inputs: vec![
            spec("a", DataType::Fp32, Some(&[-1])),
            spec("a", DataType::Fp32, Some(&[-1])),
        ],
        outputs: vec![spec("y", DataType::Fp32, Some(&[-1]))],
    };
    let text = "input { name: 'a' data_type: TYPE_FP32 dims: -1 } output { name: 'y' data_type: TYPE_FP32 dims: -1 }";
    assert_eq!(
        check(text, &twice).map(|_| ()),
        Err("unable to load model 'm', configuration expects 1 inputs, model provides 2\nthe model lists an input twice".to_owned())
    );
    // More inputs than the model has, of which it has another one: what is too much is said.
    let text = format!(
        "{text} input {{ name: 'b' data_type: TYPE_FP32 dims: 1 }} input {{ name: 'c' data_type: TYPE_FP32 dims: 1 }}"
    );
    let two = ModelSignature {
        inputs: vec![
            spec("a", DataType::Fp32, Some(&[-1])),
            spec("d", DataType::Fp32, Some(&[-1])),
        ],
        ..twice
    };
    let error = check(&text, &two).expect_err("too many");
    assert!(error.ends_with("the model has no input `b`"), "{error}");
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
    // An input may not leave it open.
    assert!(check(&io("-1"), &scalar).is_err());
    assert_eq!(
        check(&io("2"), &scalar).map(|_| ()),
        Err("unable to load model 'm', scalar tensor 'a', should only provide 1 in the model configuration when the model doesn't support batching. Model configuration provided: [2].".to_owned())
    );
    assert_eq!(
        check(&format!("max_batch_size: 1 {}", io("1")), &scalar).map(|_| ()),
        Err("model 'm', tensor 'a': for the model to support batching the shape should have at least 1 dimension and the first dimension must be -1; but shape expected by the model is []".to_owned())
    );
}
