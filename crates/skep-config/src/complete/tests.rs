//! Completion from signatures: what is filled in, what stays unchanged, what is refused.

use skep_types::{DataType, Dims, ModelName, ModelSignature, TensorSpec};

use super::{Completion, complete};
use crate::{ConfigContext, ModelConfig, parse_pbtxt};

type Spec<'a> = (&'a str, DataType, Option<&'a [i64]>);

fn specs(specs: &[Spec<'_>]) -> Vec<TensorSpec> {
    let dims = |d: Option<&[i64]>| d.map(|d| Dims::new(d).expect("dims"));
    specs
        .iter()
        .map(|&(name, datatype, d)| TensorSpec {
            name: name.to_owned(),
            datatype,
            dims: dims(d),
        })
        .collect()
}

/// The completed configuration on one line, or the error.
fn completed(
    backend: &str,
    text: &str,
    signature: Option<(&[Spec<'_>], &[Spec<'_>])>,
) -> Result<String, String> {
    let model = ModelName::new("m").expect("name");
    let mut config = parse_pbtxt(text.as_bytes(), "c").expect("parses");
    let signature = signature.map(|(inputs, outputs)| ModelSignature {
        inputs: specs(inputs),
        outputs: specs(outputs),
    });
    let completion = Completion {
        model: &model,
        backend,
        model_filename: "model.onnx",
        default_max_batch_size: 4,
        signature: signature.as_ref(),
        is_unbatched: text.contains("max_batch_size: 0"),
    };
    complete(&mut config, &completion).map_err(|error| error.to_string())?;
    if let Some(signature) = &signature {
        // A completed configuration is valid and fits its model.
        let typed = ModelConfig::from_proto(config.clone(), &ConfigContext::new(&model))
            .map_err(|error| error.to_string())?;
        typed
            .with_signature(signature)
            .map_err(|error| error.to_string())?;
    }
    let tensors = config
        .input
        .iter()
        .map(|t| (&t.name, t.data_type(), &t.dims, &t.reshape));
    let tensors = tensors.chain(
        config
            .output
            .iter()
            .map(|t| (&t.name, t.data_type(), &t.dims, &t.reshape)),
    );
    let shown: Vec<String> = tensors
        .map(|(name, datatype, dims, reshape)| {
            let reshape = reshape
                .as_ref()
                .map_or_else(String::new, |r| format!(" as {:?}", r.shape));
            format!("{name} {} {dims:?}{reshape}", datatype.as_str_name())
        })
        .collect();
    let batching = if config.scheduling_choice.is_some() {
        " batched"
    } else {
        ""
    };
    Ok(format!(
        "{} {}/{} {} max {}{batching}: {}",
        config.name,
        config.platform,
        config.backend,
        config.default_model_filename,
        config.max_batch_size,
        shown.join(", ")
    ))
}

const FP32: DataType = DataType::Fp32;

#[test]
fn identity_comes_from_directory_and_caller() {
    for (backend, text, expected) in [
        (
            "onnxruntime",
            "",
            "m onnxruntime_onnx/onnxruntime model.onnx max 0: ",
        ),
        ("embedded", "", "m /embedded model.onnx max 0: "),
        (
            "embedded",
            "backend: 'onnxruntime'",
            "m onnxruntime_onnx/onnxruntime model.onnx max 0: ",
        ),
        (
            "embedded",
            "platform: 'onnxruntime_onnx'",
            "m onnxruntime_onnx/onnxruntime model.onnx max 0: ",
        ),
        (
            "embedded",
            "platform: 'tensorrt_plan'",
            "m tensorrt_plan/ model.onnx max 0: ",
        ),
        (
            "onnxruntime",
            "backend: 'mock' default_model_filename: 'x'",
            "m /mock x max 0: ",
        ),
        ("mock", "name: 'other'", "other /mock model.onnx max 0: "),
    ] {
        assert_eq!(
            completed(backend, text, None).as_deref(),
            Ok(expected),
            "{text}"
        );
    }
}

#[test]
fn tensors_and_batching_come_from_the_model() {
    let batched: (&[Spec<'_>], &[Spec<'_>]) = (
        &[
            ("a", FP32, Some(&[-1, 3, -1])),
            ("b", DataType::Bytes, Some(&[-1])),
        ],
        &[("y", DataType::Bf16, Some(&[-1, 2]))],
    );
    let fixed: (&[Spec<'_>], &[Spec<'_>]) = (
        &[("a", FP32, Some(&[-1, 3]))],
        &[("y", FP32, Some(&[2])), ("s", FP32, Some(&[]))],
    );
    for (text, signature, expected) in [
        (
            "",
            batched,
            "max 4 batched: a TYPE_FP32 [3, -1], b TYPE_STRING [1] as [], y TYPE_BF16 [2]",
        ),
        (
            // The caller found that the first dimensions are not batches.
            "max_batch_size: 0",
            batched,
            "max 0: a TYPE_FP32 [-1, 3, -1], b TYPE_STRING [-1], y TYPE_BF16 [-1, 2]",
        ),
        (
            "max_batch_size: 1",
            batched,
            "max 1: a TYPE_FP32 [3, -1], b TYPE_STRING [1] as [], y TYPE_BF16 [2]",
        ),
        (
            "max_batch_size: 16 dynamic_batching {}",
            batched,
            "max 16 batched: a TYPE_FP32 [3, -1], b TYPE_STRING [1] as [], y TYPE_BF16 [2]",
        ),
        // A tensor without a variable first dimension: no batching, and a scalar has dims [1] without reshape.
        (
            "",
            fixed,
            "max 0: a TYPE_FP32 [-1, 3], y TYPE_FP32 [2], s TYPE_FP32 [1]",
        ),
        // One side is given: its gaps are filled, and the other side is listed.
        (
            "output { name: 'y' dims: 2 }",
            fixed,
            "max 0: a TYPE_FP32 [-1, 3], y TYPE_FP32 [2]",
        ),
        (
            "input [ { name: 'b' }, { name: 'a' dims: [ 3, 7 ] } ]",
            batched,
            "max 4 batched: b TYPE_STRING [1] as [], a TYPE_FP32 [3, 7], y TYPE_BF16 [2]",
        ),
        (
            "input [ { name: 'b' data_type: TYPE_STRING }, { name: 'a' data_type: TYPE_FP32 dims: [ 3, 7 ] } ]",
            batched,
            "max 4 batched: b TYPE_STRING [1] as [], a TYPE_FP32 [3, 7], y TYPE_BF16 [2]",
        ),
    ] {
        let expected = format!("m /mock model.onnx {expected}");
        assert_eq!(
            completed("mock", text, Some(signature)),
            Ok(expected),
            "{text}"
        );
    }
}

#[test]
fn given_inputs_and_outputs_stay_unchanged() {
    let given = "input { name: 'a' data_type: TYPE_FP32 dims: [-1, 3] } output { name: 'y' data_type: TYPE_FP32 dims: [-1, 2] }";
    let signature: (&[Spec<'_>], &[Spec<'_>]) = (
        &[("a", FP32, Some(&[-1, 3]))],
        &[("y", FP32, Some(&[-1, 2]))],
    );
    assert_eq!(
        completed("mock", given, Some(signature)).as_deref(),
        Ok("m /mock model.onnx max 0: a TYPE_FP32 [-1, 3], y TYPE_FP32 [-1, 2]")
    );
    // Nothing is completed, not even what is missing. Validation refuses it in Triton's words.
    assert_eq!(
        completed(
            "mock",
            "input { name: 'a' } output { name: 'y' }",
            Some(signature)
        ),
        Err("model input 'a' must specify 'data_type' for m".to_owned())
    );
}

#[test]
fn incomplete_models_are_refused() {
    let fixed: (&[Spec<'_>], &[Spec<'_>]) =
        (&[("a", FP32, Some(&[3]))], &[("y", FP32, Some(&[-1, 2]))]);
    let unknown: (&[Spec<'_>], &[Spec<'_>]) =
        (&[("a", FP32, Some(&[-1, 3]))], &[("y", FP32, None)]);
    for (text, signature, expected) in [
        (
            "max_batch_size: 2",
            fixed,
            "autofill failed for model 'm': model does not support batching while non-zero max_batch_size is specified: tensor 'a' has shape [3], max_batch_size is 2\nwrite `max_batch_size: 0`, or make the first dimension of every tensor variable",
        ),
        (
            "",
            unknown,
            "output `y` of model `m` has no shape in the model's file, expected its dims in the configuration\nwrite `output [ { name: \"y\" data_type: TYPE_FP32 dims: [ .. ] } ]`, and the other outputs with it",
        ),
        (
            "input { name: 'q' }",
            fixed,
            "unexpected inference input 'q', allowed inputs are: a",
        ),
        (
            "input { data_type: TYPE_FP32 dims: 3 }",
            fixed,
            "model input must specify 'name' for m",
        ),
    ] {
        assert_eq!(
            completed("mock", text, Some(signature)),
            Err(expected.to_owned()),
            "{text}"
        );
    }
    // If its dims are given, a tensor of unknown rank prevents nothing, not even requested batching.
    assert_eq!(
        completed(
            "mock",
            "max_batch_size: 2 output { name: 'y' dims: 2 }",
            Some(unknown)
        )
        .as_deref(),
        Ok("m /mock model.onnx max 2 batched: a TYPE_FP32 [3], y TYPE_FP32 [2]")
    );
}
