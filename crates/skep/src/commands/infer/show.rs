//! Answers for people.

use std::{fmt::Write, path::Path};

use anyhow::Context;
use bytes::Bytes;
use serde_json::json;
use skep_client::InferResponse;
use skep_tensor::{Tensor, TensorView};
use skep_types::DataType;

/// How many elements of a tensor are printed.
const SHOWN: usize = 8;

/// The class with the largest score, and that score: `3 (99.8 %)`. Any other answer is printed as it is.
pub(super) fn best(answer: &InferResponse) -> String {
    let [(_, tensor)] = answer.outputs.as_slice() else {
        return outputs(answer);
    };
    if tensor.datatype() != DataType::Fp32 || tensor.shape().element_count() < 2 {
        return outputs(answer);
    }
    let scores = floats(tensor);
    let Some((class, score)) = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)) else {
        return outputs(answer);
    };
    let sum: f32 = scores.iter().sum();
    // Probabilities add up to 1; other scores have no unit.
    if (sum - 1.0).abs() < 1e-3 {
        format!("{class} ({:.1} %)", score * 100.0)
    } else {
        format!("{class} (score {score})")
    }
}

/// Each output in a line: name, datatype, shape, first elements.
pub(super) fn outputs(answer: &InferResponse) -> String {
    let mut text = String::new();
    for (name, tensor) in &answer.outputs {
        let count = tensor.shape().element_count();
        let more = if count > SHOWN { ", ..." } else { "" };
        let elements = elements(tensor.view()).join(", ");
        writeln!(
            text,
            "{name} {} {}: {elements}{more}",
            tensor.datatype(),
            tensor.shape()
        )
        .expect("a string takes all");
    }
    text
}

/// An answer in the protocol's words on one line, with every element; `picture` is what it was about.
pub(super) fn json(answer: &InferResponse, picture: Option<&Path>) -> anyhow::Result<String> {
    let mut text = String::from("{");
    if let Some(picture) = picture {
        let picture = json!(picture.to_string_lossy());
        write!(text, "\"picture\":{picture},").expect("a string takes all");
    }
    let (model, version) = (json!(answer.model), json!(answer.version));
    write!(
        text,
        "\"model_name\":{model},\"model_version\":{version},\"outputs\":["
    )
    .expect("a string takes all");
    for (index, (name, tensor)) in answer.outputs.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let (datatype, shape) = (tensor.datatype(), tensor.shape());
        let mut data = Vec::new();
        skep_wire::json::write(widened(tensor).view(), &mut data).with_context(|| {
            format!("output `{name}` cannot be JSON: `--output DIR` writes it into a file")
        })?;
        write!(
            text,
            "{comma}{{\"name\":{},\"datatype\":\"{datatype}\",\"shape\":{shape},\"data\":{}}}",
            json!(name),
            String::from_utf8_lossy(&data)
        )
        .expect("a string takes all");
    }
    text.push_str("]}");
    Ok(text)
}

/// Elements of 16 bits, which JSON has no form for, as FP32, which has each of them.
fn widened(tensor: &Tensor) -> Tensor {
    let value = match tensor.datatype() {
        DataType::Fp16 => |bytes| half::f16::from_le_bytes(bytes).to_f32(),
        DataType::Bf16 => |bytes| half::bf16::from_le_bytes(bytes).to_f32(),
        _ => return tensor.clone(),
    };
    let (chunks, _) = tensor.data().as_chunks::<2>();
    let data = chunks.iter().flat_map(|chunk| value(*chunk).to_le_bytes());
    let data: Bytes = data.collect::<Vec<u8>>().into();
    Tensor::new(DataType::Fp32, tensor.shape().clone(), data).expect("as many elements")
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    let (chunks, _) = tensor.data().as_chunks::<4>();
    chunks
        .iter()
        .map(|chunk| f32::from_le_bytes(*chunk))
        .collect()
}

/// The first elements as text.
fn elements(tensor: TensorView<'_>) -> Vec<String> {
    macro_rules! numbers {
        ($type:ty) => {{
            let (chunks, _) = tensor.data().as_chunks::<{ size_of::<$type>() }>();
            chunks
                .iter()
                .take(SHOWN)
                .map(|chunk| <$type>::from_le_bytes(*chunk).to_string())
                .collect()
        }};
    }
    match tensor.datatype() {
        DataType::Bool => tensor
            .data()
            .iter()
            .take(SHOWN)
            .map(|byte| (*byte != 0).to_string())
            .collect(),
        DataType::Uint8 => numbers!(u8),
        DataType::Uint16 => numbers!(u16),
        DataType::Uint32 => numbers!(u32),
        DataType::Uint64 => numbers!(u64),
        DataType::Int8 => numbers!(i8),
        DataType::Int16 => numbers!(i16),
        DataType::Int32 => numbers!(i32),
        DataType::Int64 => numbers!(i64),
        DataType::Fp32 => numbers!(f32),
        DataType::Fp64 => numbers!(f64),
        DataType::Fp16 => halves(tensor, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
        DataType::Bf16 => halves(tensor, |bytes| half::bf16::from_le_bytes(bytes).to_f32()),
        DataType::Bytes => tensor
            .strings()
            .take(SHOWN)
            .map(|element| format!("{:?}", String::from_utf8_lossy(element)))
            .collect(),
    }
}

fn halves(tensor: TensorView<'_>, value: impl Fn([u8; 2]) -> f32) -> Vec<String> {
    let (chunks, _) = tensor.data().as_chunks::<2>();
    chunks
        .iter()
        .take(SHOWN)
        .map(|chunk| value(*chunk).to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::Shape;

    fn answer(values: &[f32]) -> InferResponse {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = Shape::new(&[1, values.len()]).expect("shape");
        let tensor = Tensor::new(DataType::Fp32, shape, Bytes::from(data)).expect("tensor");
        InferResponse {
            model: "m".to_owned(),
            version: "1".to_owned(),
            id: String::new(),
            outputs: vec![("y".to_owned(), tensor)],
        }
    }

    #[test]
    fn probabilities_are_percent_and_other_scores_are_scores() {
        assert_eq!(best(&answer(&[0.25, 0.75])), "1 (75.0 %)");
        assert_eq!(best(&answer(&[7.0, -1.0])), "0 (score 7)");
        assert_eq!(outputs(&answer(&[0.5])), "y FP32 [1,1]: 0.5\n");
    }

    #[test]
    fn json_has_every_element_and_halves_as_numbers() {
        let mut answer = answer(&[0.5; 9]);
        let halves = [half::f16::from_f32(1.5), half::f16::NAN];
        let data: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
        let shape = Shape::new(&[2]).expect("shape");
        let tensor = Tensor::new(DataType::Fp16, shape, data.into()).expect("tensor");
        answer.outputs.push(("\"".to_owned(), tensor));
        assert_eq!(
            json(&answer, Some(Path::new("p"))).expect("JSON"),
            "{\"picture\":\"p\",\"model_name\":\"m\",\"model_version\":\"1\",\"outputs\":[\
             {\"name\":\"y\",\"datatype\":\"FP32\",\"shape\":[1,9],\"data\":[0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5]},\
             {\"name\":\"\\\"\",\"datatype\":\"FP16\",\"shape\":[2],\"data\":[1.5,NaN]}]}"
        );
    }
}
