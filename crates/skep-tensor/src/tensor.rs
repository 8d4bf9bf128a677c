//! A tensor: datatype, shape, bytes.

use bytes::Bytes;
use skep_types::{DataType, MemoryKind, Shape};

use crate::{AlignedBuffer, StringElements};

/// An immutable tensor whose bytes match its datatype and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    datatype: DataType,
    shape: Shape,
    data: Bytes,
    memory: MemoryKind,
}

/// Why bytes are not a tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The data does not have the length that datatype and shape require.
    #[error("{datatype} tensor of shape {shape} has {got} bytes of data, expected {expected}")]
    ByteSize {
        /// The tensor's datatype.
        datatype: DataType,
        /// The tensor's shape.
        shape: Shape,
        /// Bytes that datatype and shape require.
        expected: usize,
        /// The actual number of bytes.
        got: usize,
    },
    /// A `BYTES` tensor has another number of elements, or its last one is cut off.
    #[error(
        "BYTES tensor of shape {shape} holds {got} whole elements and {rest} further bytes, expected {expected} elements"
    )]
    Elements {
        /// The tensor's shape.
        shape: Shape,
        /// Elements that the shape requires.
        expected: usize,
        /// Whole elements found.
        got: usize,
        /// Bytes behind them.
        rest: usize,
    },
    /// Parts of a batch do not fit together.
    #[error("tensors of shapes {first} and {other} cannot be joined along the batch axis")]
    Mismatch {
        /// The first part's shape.
        first: Shape,
        /// The part that differs.
        other: Shape,
    },
    /// A batch cannot be split as asked.
    #[error(
        "tensor of shape {shape} cannot be split into parts of batch sizes that add up to {total}"
    )]
    Split {
        /// The batch's shape.
        shape: Shape,
        /// The sum of the parts' batch sizes.
        total: usize,
    },
    /// The system has no memory for a tensor.
    #[error("there is no memory for a tensor of {bytes} bytes")]
    NoMemory {
        /// The size of the tensor.
        bytes: usize,
    },
}

impl Tensor {
    /// Checks `data`, in host memory, against datatype and shape, and takes it without a copy.
    ///
    /// # Errors
    /// [`TensorError::ByteSize`] or, for `BYTES`, [`TensorError::Elements`].
    pub fn new(datatype: DataType, shape: Shape, data: Bytes) -> Result<Self, TensorError> {
        TensorView::check(datatype, &shape, &data)?;
        Ok(Self {
            datatype,
            shape,
            data,
            memory: MemoryKind::Host,
        })
    }

    /// A tensor of zeros, `false` or empty strings.
    #[must_use]
    pub fn zeros(datatype: DataType, shape: Shape) -> Self {
        let count = shape.element_count();
        let data = match datatype.element_size() {
            Some(size) => vec![0; count * size],
            None => crate::encode_strings(std::iter::repeat_n(b"".as_slice(), count)),
        };
        Self {
            datatype,
            shape,
            data: data.into(),
            memory: MemoryKind::Host,
        }
    }

    /// The same tensor, whose bytes lie in `memory`. The host must not read or write those of a device.
    #[must_use]
    pub fn in_memory(self, memory: MemoryKind) -> Self {
        Self { memory, ..self }
    }

    /// The memory that its bytes lie in.
    #[must_use]
    pub const fn memory_kind(&self) -> MemoryKind {
        self.memory
    }

    /// The datatype of the elements.
    #[must_use]
    pub const fn datatype(&self) -> DataType {
        self.datatype
    }

    /// The shape.
    #[must_use]
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The elements: row-major, little-endian; `BYTES` in the protocol's encoding.
    #[must_use]
    pub const fn data(&self) -> &Bytes {
        &self.data
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    /// [`TensorError::ByteSize`] or [`TensorError::Elements`] if the shapes have different element counts.
    pub fn reshape(self, shape: Shape) -> Result<Self, TensorError> {
        if shape.element_count() == self.shape.element_count() {
            return Ok(Self { shape, ..self });
        }
        Self::new(self.datatype, shape, self.data)
    }

    /// The same elements in memory of their own, on the host. The data must be there, too.
    ///
    /// # Errors
    /// [`TensorError::NoMemory`].
    pub fn try_copy(&self) -> Result<Self, TensorError> {
        let mut copy = AlignedBuffer::try_zeroed(self.data.len())?;
        copy.copy_from_slice(&self.data);
        Ok(Self {
            datatype: self.datatype,
            shape: self.shape.clone(),
            data: copy.freeze(),
            memory: MemoryKind::Host,
        })
    }

    /// A borrowed view.
    #[must_use]
    pub fn view(&self) -> TensorView<'_> {
        TensorView {
            datatype: self.datatype,
            shape: &self.shape,
            data: &self.data,
            memory: self.memory,
        }
    }
}

/// A tensor with borrowed bytes.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    datatype: DataType,
    shape: &'a Shape,
    data: &'a [u8],
    memory: MemoryKind,
}

impl<'a> TensorView<'a> {
    /// Checks `data`, in host memory, against datatype and shape, and borrows it.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn new(datatype: DataType, shape: &'a Shape, data: &'a [u8]) -> Result<Self, TensorError> {
        Self::check(datatype, shape, data)?;
        Ok(Self {
            datatype,
            shape,
            data,
            memory: MemoryKind::Host,
        })
    }

    fn check(datatype: DataType, shape: &Shape, data: &[u8]) -> Result<(), TensorError> {
        let count = shape.element_count();
        let Some(size) = datatype.element_size() else {
            let mut elements = StringElements::new(data);
            let got = elements.by_ref().count();
            let rest = elements.rest().len();
            if got == count && rest == 0 {
                return Ok(());
            }
            return Err(TensorError::Elements {
                shape: shape.clone(),
                expected: count,
                got,
                rest,
            });
        };
        // No overflow: a shape's element count leaves room for eight bytes an element.
        let expected = count * size;
        if data.len() == expected {
            return Ok(());
        }
        Err(TensorError::ByteSize {
            datatype,
            shape: shape.clone(),
            expected,
            got: data.len(),
        })
    }

    /// The datatype of the elements.
    #[must_use]
    pub const fn datatype(&self) -> DataType {
        self.datatype
    }

    /// The shape.
    #[must_use]
    pub const fn shape(&self) -> &'a Shape {
        self.shape
    }

    /// The memory that its bytes lie in.
    #[must_use]
    pub const fn memory_kind(&self) -> MemoryKind {
        self.memory
    }

    /// The elements, as in [`Tensor::data`].
    #[must_use]
    pub const fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The elements of a `BYTES` tensor.
    #[must_use]
    pub const fn strings(&self) -> StringElements<'a> {
        StringElements::new(self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_fill_their_shape() {
        for datatype in DataType::ALL {
            let shape = Shape::new(&[2, 3]).expect("valid");
            let zeros = Tensor::zeros(datatype, shape.clone());
            let again = Tensor::new(datatype, shape, zeros.data().clone());
            assert_eq!(again, Ok(zeros), "{datatype}");
        }
    }

    #[test]
    fn data_must_match_datatype_and_shape() {
        let shape = Shape::new(&[2, 3]).expect("valid");
        assert!(Tensor::new(DataType::Fp32, shape.clone(), Bytes::from(vec![0; 24])).is_ok());
        let error = Tensor::new(DataType::Fp32, shape.clone(), Bytes::from(vec![0; 23]))
            .expect_err("short");
        assert_eq!(
            error.to_string(),
            "FP32 tensor of shape [2,3] has 23 bytes of data, expected 24"
        );
        let strings = crate::encode_strings([b"a".as_slice(), b"b"]);
        assert!(Tensor::new(DataType::Bytes, shape, Bytes::from(strings.clone())).is_err());
        assert!(
            Tensor::new(
                DataType::Bytes,
                Shape::new(&[2]).expect("valid"),
                Bytes::from(strings)
            )
            .is_ok()
        );
    }

    #[test]
    fn scalars_and_empty_tensors_are_tensors() {
        assert!(Tensor::new(DataType::Fp64, Shape::scalar(), Bytes::from(vec![0; 8])).is_ok());
        assert!(
            Tensor::new(
                DataType::Fp64,
                Shape::new(&[0, 4]).expect("valid"),
                Bytes::new()
            )
            .is_ok()
        );
        assert!(
            Tensor::new(
                DataType::Bytes,
                Shape::new(&[0]).expect("valid"),
                Bytes::new()
            )
            .is_ok()
        );
    }
}
