//! The classification extension: replaces an output by its best classes, `value:index[:label]`, as `BYTES`.
//!
//! Source: Triton, "Classification Extension"; answers of Triton 2.51. Classes are numbered through all dimensions
//! after the batch dimension.

use std::cmp::Ordering;

use skep_runtime::{ClassLabels, InferResponse, LoadedVersion};
use skep_tensor::Tensor;
use skep_types::{DataType, Shape};

use crate::error::ApiError;

/// Replaces each output that `wanted` names by its best classes, as many as `wanted` says.
pub(crate) fn classify(
    answer: &mut InferResponse,
    wanted: &[(String, u64)],
    loaded: &LoadedVersion,
) -> Result<(), ApiError> {
    if wanted.is_empty() {
        return Ok(());
    }
    for output in &mut answer.outputs {
        let Some((name, count)) = wanted.iter().find(|(name, _)| **name == *output.name) else {
            continue;
        };
        let request = ClassRequest {
            count: usize::try_from(*count).unwrap_or(usize::MAX),
            batched: loaded.config().max_batch_size() > 0,
            labels: loaded.labels(name),
        };
        output.tensor = request.best_classes(&output.tensor)?;
    }
    Ok(())
}

/// The classes that are wanted of one output.
struct ClassRequest<'a> {
    count: usize,
    /// Whether the first dimension is the batch, with classes for each item.
    batched: bool,
    labels: Option<&'a ClassLabels>,
}

/// How the values of a datatype are read, compared and written.
struct ClassValues<T, const SIZE: usize> {
    read: fn([u8; SIZE]) -> T,
    /// The better value compares as less.
    order: fn(&T, &T) -> Ordering,
    text: fn(T) -> String,
}

impl ClassRequest<'_> {
    /// The best classes: shape `[batch, k]`, or `[k]` without a batch dimension, with `k` at most the number of classes.
    fn best_classes(&self, tensor: &Tensor) -> Result<Tensor, ApiError> {
        macro_rules! whole {
            ($type:ty) => {
                self.best(
                    tensor,
                    &ClassValues {
                        read: <$type>::from_le_bytes,
                        order: |a, b| b.cmp(a),
                        text: |value| value.to_string(),
                    },
                )
            };
        }
        macro_rules! float {
            ($type:ty) => {
                self.best(
                    tensor,
                    &ClassValues {
                        read: <$type>::from_le_bytes,
                        // NaN is never the best class.
                        order: |a, b| {
                            let nan = a.is_nan().cmp(&b.is_nan());
                            nan.then(b.partial_cmp(a).unwrap_or(Ordering::Equal))
                        },
                        text: |value| {
                            if value.is_nan() {
                                "nan".to_owned()
                            } else {
                                format!("{value:.6}")
                            }
                        },
                    },
                )
            };
        }
        match tensor.datatype() {
            DataType::Uint8 => whole!(u8),
            DataType::Uint16 => whole!(u16),
            DataType::Uint32 => whole!(u32),
            DataType::Uint64 => whole!(u64),
            DataType::Int8 => whole!(i8),
            DataType::Int16 => whole!(i16),
            DataType::Int32 => whole!(i32),
            DataType::Int64 => whole!(i64),
            DataType::Fp32 => float!(f32),
            DataType::Fp64 => float!(f64),
            datatype @ (DataType::Bool | DataType::Fp16 | DataType::Bf16 | DataType::Bytes) => {
                Err(ApiError::invalid(format!(
                    "class result not available for output due to unsupported type '{datatype}'"
                )))
            }
        }
    }

    fn best<T: Copy, const SIZE: usize>(
        &self,
        tensor: &Tensor,
        values: &ClassValues<T, SIZE>,
    ) -> Result<Tensor, ApiError> {
        let all: Vec<T> = tensor
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|bytes| (values.read)(*bytes))
            .collect();
        let batch = tensor
            .shape()
            .dims()
            .first()
            .copied()
            .filter(|_| self.batched);
        let classes = all.len() / batch.unwrap_or(1).max(1);
        let count = self.count.min(classes);
        let mut data = Vec::new();
        if count > 0 {
            for item in all.chunks_exact(classes) {
                for class in best(item, count, values.order) {
                    self.write(class, &(values.text)(item[class]), &mut data);
                }
            }
        }
        let shape: &[usize] = match batch {
            Some(batch) => &[batch, count],
            None => &[count],
        };
        let shape = Shape::new(shape).map_err(|error| ApiError::internal(error.to_string()))?;
        Tensor::new(DataType::Bytes, shape, data.into())
            .map_err(|error| ApiError::internal(error.to_string()))
    }

    /// Appends an element of a `BYTES` tensor.
    fn write(&self, class: usize, value: &str, data: &mut Vec<u8>) {
        let start = data.len();
        data.extend_from_slice(&[0; 4]);
        data.extend_from_slice(format!("{value}:{class}").as_bytes());
        if let Some(label) = self.labels.and_then(|labels| labels.get(class)) {
            data.push(b':');
            data.extend_from_slice(label);
        }
        let length = data.len() - start - 4;
        // Labels are far shorter than 4 GiB.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        data[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }
}

/// The indices of the `count` best values, best first; equal values keep their order.
fn best<T>(values: &[T], count: usize, order: fn(&T, &T) -> Ordering) -> Vec<usize> {
    let order = |a: &usize, b: &usize| order(&values[*a], &values[*b]).then(a.cmp(b));
    let mut indices: Vec<usize> = (0..values.len()).collect();
    if count < indices.len() {
        indices.select_nth_unstable_by(count, order);
        indices.truncate(count);
    }
    indices.sort_unstable_by(order);
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(
        datatype: DataType,
        shape: &[usize],
        data: Vec<u8>,
        count: usize,
        batched: bool,
    ) -> (Vec<usize>, Vec<String>) {
        let shape = Shape::new(shape).expect("shape");
        let tensor = Tensor::new(datatype, shape, data.into()).expect("tensor");
        let request = ClassRequest {
            count,
            batched,
            labels: None,
        };
        let best = request
            .best_classes(&tensor)
            .unwrap_or_else(|e| panic!("{e:?}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let texts = best.view().strings().map(text).collect();
        (best.shape().dims().to_vec(), texts)
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn values_are_written_as_triton_does() {
        let values = [0.5, 3.25, -1.0, 7.0, 7.0, -0.0, 1e10, 1e-7, 0.1, 123_456.79];
        let expected = [
            "10000000000.000000:6",
            "123456.789062:9",
            "7.000000:3",
            "7.000000:4",
            "3.250000:1",
            "0.500000:0",
            "0.100000:8",
            "0.000000:7",
            "-0.000000:5",
            "-1.000000:2",
        ];
        for count in [1, 3, 9, 10, 11, usize::MAX] {
            let (shape, texts) = classes(DataType::Fp32, &[10], floats(&values), count, false);
            assert_eq!(shape, [count.min(10)]);
            assert_eq!(texts, expected[..count.min(10)]);
        }
        let (_, texts) = classes(DataType::Int8, &[3], vec![1, 128, 127], 3, false);
        assert_eq!(texts, ["127:2", "1:0", "-128:1"]);
        let specials = floats(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0]);
        let (_, texts) = classes(DataType::Fp32, &[4], specials, 4, false);
        assert_eq!(texts, ["inf:1", "1.000000:3", "-inf:2", "nan:0"]);
    }

    #[test]
    fn each_item_of_a_batch_has_its_own_classes() {
        let data = vec![1, 2, 3, 4, 5, 6, 6, 5, 4, 3, 2, 1];
        let (shape, texts) = classes(DataType::Uint8, &[2, 2, 3], data, 2, true);
        assert_eq!(shape, [2, 2]);
        assert_eq!(texts, ["6:5", "5:4", "6:0", "5:1"]);
    }

    #[test]
    fn an_empty_tensor_has_no_classes() {
        for (shape, batched, expected) in [
            (&[0][..], false, &[0][..]),
            (&[0, 3], true, &[0, 0]),
            (&[2, 0], true, &[2, 0]),
        ] {
            let (shape, texts) = classes(DataType::Fp32, shape, vec![], 5, batched);
            assert_eq!((&*shape, texts.len()), (expected, 0));
        }
    }
}
