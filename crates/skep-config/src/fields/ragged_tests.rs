//! Ragged batches: what is typed, what is refused, and what the model must look like.

use skep_types::{ModelName, ModelSignature, TensorSpec};

use super::*;
use crate::{ConfigContext, ModelConfig, parse_pbtxt};

const IO: &str = "input { name: 'x' data_type: TYPE_FP32 dims: [ -1, 2 ] allow_ragged_batch: true }
    output { name: 'y' data_type: TYPE_FP32 dims: [ -1, 2 ] }";

fn config(text: &str) -> Result<ModelConfig, ConfigError> {
    let text = if text.contains("dims:") {
        format!("backend: 'mock' {text}")
    } else {
        format!("backend: 'mock' max_batch_size: 4 {IO} {text}")
    };
    let name = ModelName::new("m").expect("name");
    let proto = parse_pbtxt(text.as_bytes(), "c").unwrap_or_else(|error| panic!("{error}"));
    ModelConfig::from_proto(proto, &ConfigContext::new(&name))
}

#[test]
fn everything_is_typed() {
    let config = config(
        "batch_input [
           { kind: BATCH_ELEMENT_COUNT target_name: [ 'n', 'n2' ] data_type: TYPE_INT32 source_input: 'x' },
           { kind: BATCH_ITEM_SHAPE target_name: 's' data_type: TYPE_FP32 source_input: 'x' } ]
         batch_output { target_name: 'y' kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: 'x' }",
    )
    .expect("valid");
    let batch_input = |name: &str, kind, datatype| BatchInput {
        name: name.to_owned(),
        kind,
        datatype,
        source: "x".to_owned(),
    };
    assert_eq!(
        config.batch_inputs(),
        [
            batch_input("n", BatchInputKind::ElementCount, DataType::Int32),
            batch_input("n2", BatchInputKind::ElementCount, DataType::Int32),
            batch_input("s", BatchInputKind::ItemShape, DataType::Fp32),
        ]
    );
    let scattered = BatchOutput {
        name: "y".to_owned(),
        source: "x".to_owned(),
    };
    assert_eq!(config.batch_outputs(), [scattered]);
    let x = config.input("x").expect("there");
    assert_eq!(x.full_dims().as_slice(), [-1], "flat for the model");
    assert_eq!(x.client_dims().as_slice(), [-1, -1, 2]);
}

#[test]
fn contradictions_are_refused_and_the_field_is_named() {
    let kind = "kind: BATCH_ELEMENT_COUNT";
    let output = "batch_output { target_name: 'y' source_input: 'x' }";
    for (text, field, expected) in [
        (
            format!("batch_input {{ {kind} target_name: 'n' data_type: TYPE_INT32 }}"),
            "batch_input[0].source_input",
            "batch input kind 'BATCH_ELEMENT_COUNT' expects 1 source input, got 0 for m",
        ),
        (
            format!("batch_input {{ {kind} target_name: 'n' data_type: TYPE_INT64 source_input: 'x' }}"),
            "batch_input[0].data_type",
            "batch input data type must be TYPE_INT32 or TYPE_FP32 for m",
        ),
        (
            format!("batch_input {{ {kind} target_name: 'n' data_type: TYPE_INT32 source_input: 'z' }}"),
            "batch_input[0].source_input",
            "unknown source input name 'z' for m",
        ),
        (
            format!("batch_input {{ {kind} target_name: 'x' data_type: TYPE_INT32 source_input: 'x' }}"),
            "batch_input[0].target_name",
            "target input name 'x' can only be specified once for m",
        ),
        (
            format!("batch_input {{ {kind} data_type: TYPE_INT32 source_input: 'x' }}"),
            "batch_input[0].target_name",
            "must specify 'target_name' for m",
        ),
        (
            "batch_output { target_name: 'z' source_input: 'x' }".to_owned(),
            "batch_output[0].target_name",
            "unknown target output name 'z' for m",
        ),
        (
            format!("{output} {output}"),
            "batch_output[1].target_name",
            "target output name 'y' can only be specified once for m",
        ),
        (
            "batch_output { target_name: 'y' source_input: [ 'x', 'x' ] }".to_owned(),
            "batch_output[0].source_input",
            "batch output kind 'BATCH_SCATTER_WITH_INPUT_SHAPE' expects 1 source input, got 2 for m",
        ),
        (
            format!("{IO} {output}"),
            "batch_output",
            "batch inputs and outputs need a batch: max_batch_size must be above 0 for m",
        ),
        (
            "max_batch_size: 4 input { name: 'x' data_type: TYPE_FP32 dims: 1 }
             output { name: 'y' data_type: TYPE_FP32 dims: [ 1, -1 ] } batch_output { target_name: 'y' source_input: 'x' }"
                .to_owned(),
            "batch_output[0].target_name",
            "target output 'y' with dims [1,-1] must have no reshape, and no variable dimension beyond the rank of input 'x' with dims [1] for m",
        ),
        (
            "max_batch_size: 4
             input { name: 'x' data_type: TYPE_FP32 dims: 1 optional: true allow_ragged_batch: true }
             output { name: 'y' data_type: TYPE_FP32 dims: 1 }"
                .to_owned(),
            "input[0].allow_ragged_batch",
            "model input 'x' is optional, which is not supported for ragged input for m",
        ),
    ] {
        let error = config(&text).expect_err(expected);
        assert_eq!((error.to_string().as_str(), error.field()), (expected, field));
    }
}

#[test]
fn without_a_batch_nothing_is_ragged() {
    let config = config(IO).expect("valid");
    assert_eq!(
        config.notices()[0].to_string(),
        "`input[0].allow_ragged_batch`: no effect: `max_batch_size` is 0, so requests are never joined"
    );
    assert_eq!(config.inputs()[0].full_dims().as_slice(), [-1, 2]);
}

#[test]
fn the_model_must_take_flat_inputs_and_have_the_computed_ones() {
    let spec = |name: &str, datatype, dims: &[i64]| TensorSpec {
        name: name.to_owned(),
        datatype,
        dims: Some(Dims::new(dims).expect("dims")),
    };
    let y = spec("y", DataType::Fp32, &[-1, -1, 2]);
    let check = |inputs: Vec<TensorSpec>| {
        let kind = "kind: BATCH_ITEM_SHAPE";
        let config = config(&format!(
            "batch_input {{ {kind} target_name: 's' data_type: TYPE_INT32 source_input: 'x' }}"
        ));
        let signature = ModelSignature {
            inputs,
            outputs: vec![y.clone()],
        };
        let checked = config.expect("valid").with_signature(&signature);
        checked.map(drop).map_err(|error| error.to_string())
    };
    let (x, s) = (
        spec("x", DataType::Fp32, &[-1]),
        spec("s", DataType::Int32, &[-1, 2]),
    );
    assert_eq!(check(vec![s.clone(), x.clone()]), Ok(()));
    for (inputs, expected) in [
        (
            vec![spec("x", DataType::Fp32, &[-1, -1, 2]), s.clone()],
            "unable to load model 'm', configuration expects model provides input with shape [-1]  for ragged input 'x', \
             model provides [-1,-1,2]",
        ),
        (
            vec![x.clone()],
            "unable to load model 'm', configuration expects 2 inputs, model provides 1\nthe model has no input `s`",
        ),
        (
            vec![x.clone(), spec("s", DataType::Int64, &[-1, 2])],
            "unable to load model 'm', configuration expects datatype TYPE_INT32 for batch input 's', model provides \
             TYPE_INT64",
        ),
        (
            vec![x, spec("s", DataType::Int32, &[-1])],
            "model 'm', batch input 's': the model expects shape [-1], its kind has [-1,-1]",
        ),
    ] {
        assert_eq!(check(inputs), Err(expected.to_owned()));
    }
}
