//! Converts between the protocol's tensors and the engine's.
//!
//! The engine knows four element types. `INT64` and `BOOL` become its 32-bit integers: each input value must fit, and
//! output values are widened again.

use bytes::Bytes;
use rten::{Value, ValueOrView, ValueView};
use rten_tensor::{Layout, Tensor as EngineTensor, TensorView as EngineView};
use skep_backend::{BackendError, ErrorKind};
use skep_proto::onnx::tensor_proto::DataType as Onnx;
use skep_tensor::{Tensor, TensorView};
use skep_types::{DataType, Shape};

/// The served datatypes.
pub(crate) const DATATYPES: &[DataType] = &[
    DataType::Fp32,
    DataType::Int32,
    DataType::Int8,
    DataType::Uint8,
    DataType::Bool,
    DataType::Int64,
];

/// The alignment of an element type that the engine uses in place; `None` for those that it converts.
pub(crate) fn in_place_size(element_type: i32) -> Option<usize> {
    match Onnx::try_from(element_type).ok()? {
        Onnx::Float | Onnx::Int32 => Some(4),
        Onnx::Int8 | Onnx::Uint8 => Some(1),
        _ => None,
    }
}

/// Memory for inputs that must be converted, kept from run to run.
#[derive(Debug, Default)]
pub(crate) struct InputScratch {
    integers: Vec<i32>,
    floats: Vec<f32>,
}

/// An input as the engine takes it: in the caller's memory if it can be used there.
pub(crate) fn input<'a>(
    name: &str,
    view: TensorView<'a>,
    scratch: &'a mut InputScratch,
) -> Result<ValueOrView<'a>, BackendError> {
    let data = view.data();
    let dims = view.shape().dims();
    Ok(ValueOrView::View(match view.datatype() {
        DataType::Fp32 => ValueView::FloatTensor(elements(dims, data, &mut scratch.floats)),
        DataType::Int32 => ValueView::Int32Tensor(elements(dims, data, &mut scratch.integers)),
        DataType::Int8 => {
            ValueView::Int8Tensor(EngineView::from_data(dims, bytemuck::cast_slice(data)))
        }
        DataType::Uint8 => ValueView::UInt8Tensor(EngineView::from_data(dims, data)),
        DataType::Bool => {
            scratch.integers.clear();
            scratch
                .integers
                .extend(data.iter().map(|&byte| i32::from(byte)));
            ValueView::Int32Tensor(EngineView::from_data(dims, scratch.integers.as_slice()))
        }
        DataType::Int64 => {
            narrow(name, data, &mut scratch.integers)?;
            ValueView::Int32Tensor(EngineView::from_data(dims, scratch.integers.as_slice()))
        }
        other => {
            return Err(BackendError::new(
                ErrorKind::Unsupported,
                format!(
                    "input `{name}` has datatype {other}, which the embedded backend does not serve"
                ),
            ));
        }
    }))
}

/// Elements in place, or copied into `scratch` if they are not aligned.
fn elements<'a, T: bytemuck::Pod>(
    dims: &[usize],
    data: &'a [u8],
    scratch: &'a mut Vec<T>,
) -> EngineView<'a, T> {
    if let Ok(elements) = bytemuck::try_cast_slice(data) {
        return EngineView::from_data(dims, elements);
    }
    scratch.clear();
    scratch.extend(
        data.chunks_exact(size_of::<T>())
            .map(bytemuck::pod_read_unaligned::<T>),
    );
    EngineView::from_data(dims, scratch.as_slice())
}

/// Converts INT64 elements to 32 bits.
fn narrow(name: &str, data: &[u8], integers: &mut Vec<i32>) -> Result<(), BackendError> {
    integers.clear();
    for (index, chunk) in data.as_chunks::<8>().0.iter().enumerate() {
        let value = i64::from_le_bytes(*chunk);
        let Ok(small) = i32::try_from(value) else {
            return Err(BackendError::new(
                ErrorKind::InvalidArgument,
                format!(
                    "input `{name}` holds {value} at index {index}, expected {} to {}: the embedded backend computes \
                     INT64 in 32 bits\n{}",
                    i32::MIN,
                    i32::MAX,
                    crate::audit::HINT
                ),
            ));
        };
        integers.push(small);
    }
    Ok(())
}

/// An output as a tensor of the protocol, with the datatype that the model's file declares.
pub(crate) fn output(name: &str, datatype: DataType, value: Value) -> Result<Tensor, BackendError> {
    let internal =
        |what: String| BackendError::new(ErrorKind::Internal, format!("output `{name}`: {what}"));
    let dims = value.shape().to_vec();
    let shape = Shape::new(&dims).map_err(|e| internal(e.to_string()))?;
    let data = match (datatype, value) {
        (DataType::Fp32, Value::FloatTensor(t)) => share(t),
        (DataType::Int32, Value::Int32Tensor(t)) => share(t),
        (DataType::Int8, Value::Int8Tensor(t)) => share(t),
        (DataType::Uint8, Value::UInt8Tensor(t)) => Bytes::from(t.into_data()),
        (DataType::Int64, Value::Int32Tensor(t)) => {
            let wide: Vec<i64> = t.into_data().into_iter().map(i64::from).collect();
            Bytes::from_owner(ElementBytes(wide))
        }
        (DataType::Bool, Value::Int32Tensor(t)) => {
            Bytes::from_iter(t.into_data().into_iter().map(|i| u8::from(i != 0)))
        }
        (_, value) => {
            return Err(internal(format!(
                "the engine gave {}, expected {datatype}",
                value.dtype()
            )));
        }
    };
    Tensor::new(datatype, shape, data).map_err(|e| internal(e.to_string()))
}

/// A tensor's elements as bytes, without a copy if they are contiguous.
fn share<T: bytemuck::Pod + Send + Sync>(tensor: EngineTensor<T>) -> Bytes {
    Bytes::from_owner(ElementBytes(tensor.into_data()))
}

struct ElementBytes<T>(Vec<T>);

impl<T: bytemuck::Pod> AsRef<[u8]> for ElementBytes<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_backend::conformance::{int64, tensor};

    #[test]
    fn integers_beyond_32_bits_are_refused_by_index_and_value() {
        let mut scratch = InputScratch::default();
        let fits = int64(&[2], &[i64::from(i32::MIN), i64::from(i32::MAX)]);
        assert!(input("x", fits.view(), &mut scratch).is_ok());
        let beyond = int64(&[2], &[0, 1 << 31]);
        let error = input("x", beyond.view(), &mut scratch)
            .map(|_| ())
            .expect_err("beyond");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(
            error
                .to_string()
                .starts_with("input `x` holds 2147483648 at index 1, expected"),
            "{error}"
        );
    }

    #[test]
    fn unaligned_inputs_are_copied_and_right() {
        let bytes: Vec<u8> = [0]
            .into_iter()
            .chain(1.5f32.to_le_bytes())
            .chain(2.5f32.to_le_bytes())
            .collect();
        let shape = Shape::new(&[2]).expect("a shape");
        for skip in [0, 1] {
            let source = tensor(
                DataType::Uint8,
                &[9],
                bytes.iter().copied().cycle().skip(1 - skip).take(9),
            );
            let view = TensorView::new(DataType::Fp32, &shape, &source.data()[skip..skip + 8])
                .expect("a view");
            let mut scratch = InputScratch::default();
            let value = input("x", view, &mut scratch)
                .map(|v| v.to_owned())
                .expect("converts");
            assert_eq!(
                value.into_tensor::<f32>().map(EngineTensor::into_data),
                Some(vec![1.5, 2.5])
            );
        }
    }

    #[test]
    fn booleans_and_wide_integers_come_back_in_their_own_width() {
        let value = || Value::Int32Tensor(EngineTensor::from_data(&[2], vec![-1, 0]));
        assert_eq!(
            output("y", DataType::Int64, value()),
            Ok(int64(&[2], &[-1, 0]))
        );
        assert_eq!(
            output("y", DataType::Bool, value()),
            Ok(tensor(DataType::Bool, &[2], [1, 0]))
        );
        assert!(output("y", DataType::Fp32, value()).is_err());
    }
}
