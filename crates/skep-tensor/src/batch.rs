//! Gathers requests into a batch and splits it again, along the first axis.

use bytes::Bytes;
use skep_types::{DataType, Shape};

use crate::{AlignedBuffer, StringElements, Tensor, TensorError, TensorView};

/// Joins `parts` along the first axis, with one copy, into one tensor.
///
/// Shapes: parts `[n_i, d...]` with equal `d...` and datatype; result `[sum n_i, d...]`. A single part is returned
/// without a copy.
///
/// # Errors
/// [`TensorError::Mismatch`] if the parts differ in more than their first dimension, or in datatype;
/// [`TensorError::NoMemory`].
///
/// # Panics
/// If `parts` is empty: a batch has at least one request.
pub fn gather(parts: &[Tensor]) -> Result<Tensor, TensorError> {
    let first = parts.first().expect("a batch has at least one request");
    if parts.len() == 1 {
        return Ok(first.clone());
    }
    let mut batch = 0usize;
    let mut length = 0usize;
    for part in parts {
        let mismatch = || TensorError::Mismatch {
            first: first.shape().clone(),
            other: part.shape().clone(),
        };
        let same = part.datatype() == first.datatype()
            && part.shape().rank() > 0
            && part.shape().dims().get(1..) == first.shape().dims().get(1..);
        if !same {
            return Err(mismatch());
        }
        batch = batch
            .checked_add(part.shape().dims()[0])
            .ok_or_else(mismatch)?;
        length = length.checked_add(part.data().len()).ok_or_else(mismatch)?;
    }
    let shape = first
        .shape()
        .with_batch(batch)
        .map_err(|_| TensorError::Mismatch {
            first: first.shape().clone(),
            other: first.shape().clone(),
        })?;
    let mut buffer = AlignedBuffer::try_zeroed(length)?;
    let mut rest: &mut [u8] = &mut buffer;
    for part in parts {
        let (here, tail) = rest.split_at_mut(part.data().len());
        here.copy_from_slice(part.data());
        rest = tail;
    }
    Tensor::new(first.datatype(), shape, buffer.freeze())
}

/// Splits a batch along the first axis into parts of the given batch sizes, without a copy.
///
/// Shapes: batch `[sum sizes, d...]`; parts `[size, d...]`.
///
/// # Errors
/// [`TensorError::Split`] if the sizes do not add up to the batch's first dimension.
pub fn split(batch: &Tensor, sizes: &[usize]) -> Result<Vec<Tensor>, TensorError> {
    let total: usize = sizes.iter().sum();
    let error = || TensorError::Split {
        shape: batch.shape().clone(),
        total,
    };
    if batch.shape().dims().first() != Some(&total) {
        return Err(error());
    }
    if sizes.len() == 1 {
        return Ok(vec![batch.clone()]);
    }
    let per_item: usize = batch.shape().dims()[1..].iter().product();
    let mut rest: Bytes = batch.data().clone();
    let mut parts = Vec::with_capacity(sizes.len());
    for &size in sizes {
        let shape: Shape = batch.shape().with_batch(size).map_err(|_| error())?;
        let length = byte_length(batch.datatype(), size * per_item, &rest);
        if length > rest.len() {
            return Err(error());
        }
        parts.push(Tensor::new(batch.datatype(), shape, rest.split_to(length))?);
    }
    Ok(parts)
}

/// Bytes of the next `elements` elements in `data`.
fn byte_length(datatype: DataType, elements: usize, data: &[u8]) -> usize {
    if let Some(size) = datatype.element_size() {
        return elements * size;
    }
    let mut strings = StringElements::new(data);
    for _ in 0..elements {
        if strings.next().is_none() {
            break;
        }
    }
    data.len() - strings.rest().len()
}

/// A batch of one request can run on the request's own bytes.
impl<'a> From<&'a Tensor> for TensorView<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        tensor.view()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(datatype: DataType, dims: &[usize], data: Vec<u8>) -> Tensor {
        Tensor::new(
            datatype,
            Shape::new(dims).expect("shape"),
            Bytes::from(data),
        )
        .expect("tensor")
    }

    #[test]
    fn a_gathered_batch_splits_into_its_parts() {
        let parts = [
            tensor(DataType::Int16, &[1, 2], vec![1, 0, 2, 0]),
            tensor(DataType::Int16, &[0, 2], vec![]),
            tensor(DataType::Int16, &[2, 2], vec![3, 0, 4, 0, 5, 0, 6, 0]),
        ];
        let batch = gather(&parts).expect("gather");
        assert_eq!(batch.shape().dims(), [3, 2]);
        assert_eq!(split(&batch, &[1, 0, 2]).expect("split"), parts);
        assert!(split(&batch, &[1, 1]).is_err());
    }

    #[test]
    fn strings_of_different_length_split_at_elements() {
        let one = tensor(
            DataType::Bytes,
            &[1, 2],
            crate::encode_strings([b"a".as_slice(), b"long one"]),
        );
        let two = tensor(
            DataType::Bytes,
            &[1, 2],
            crate::encode_strings([b"".as_slice(), b"x"]),
        );
        let batch = gather(&[one.clone(), two.clone()]).expect("gather");
        assert_eq!(split(&batch, &[1, 1]).expect("split"), [one, two]);
    }

    #[test]
    fn a_single_part_is_not_copied() {
        let part = tensor(DataType::Uint8, &[1, 3], vec![1, 2, 3]);
        let batch = gather(std::slice::from_ref(&part)).expect("gather");
        assert_eq!(batch.data().as_ptr(), part.data().as_ptr());
    }

    #[test]
    fn parts_of_different_inner_shape_or_datatype_are_refused() {
        let a = tensor(DataType::Uint8, &[1, 3], vec![1, 2, 3]);
        let b = tensor(DataType::Uint8, &[1, 2], vec![1, 2]);
        let c = tensor(DataType::Int8, &[1, 3], vec![1, 2, 3]);
        assert!(gather(&[a.clone(), b]).is_err());
        assert!(gather(&[a, c]).is_err());
    }
}
