//! Tensor data in typed contents, both ways. Small integers travel in wider fields; FP16 and BF16 have no field.

use bytes::Bytes;
use skep_proto::inference::InferTensorContents;
use skep_tensor::{TensorView, encode_strings};
use skep_types::DataType;

use crate::error::WireError;

/// A tensor's elements in the field of its datatype.
///
/// # Errors
/// [`WireError::NoTypedForm`] for FP16 and BF16.
pub fn write(tensor: TensorView<'_>) -> Result<InferTensorContents, WireError> {
    let data = tensor.data();
    let mut contents = InferTensorContents::default();
    macro_rules! fill {
        ($field:ident, $type:ty) => {
            contents.$field = (data.as_chunks().0.iter())
                .map(|bytes| <$type>::from_le_bytes(*bytes).into())
                .collect()
        };
    }
    match tensor.datatype() {
        DataType::Bool => contents.bool_contents = data.iter().map(|byte| *byte != 0).collect(),
        DataType::Int8 => fill!(int_contents, i8),
        DataType::Int16 => fill!(int_contents, i16),
        DataType::Int32 => fill!(int_contents, i32),
        DataType::Int64 => fill!(int64_contents, i64),
        DataType::Uint8 => fill!(uint_contents, u8),
        DataType::Uint16 => fill!(uint_contents, u16),
        DataType::Uint32 => fill!(uint_contents, u32),
        DataType::Uint64 => fill!(uint64_contents, u64),
        DataType::Fp32 => fill!(fp32_contents, f32),
        DataType::Fp64 => fill!(fp64_contents, f64),
        DataType::Bytes => {
            contents.bytes_contents = tensor.strings().map(Bytes::copy_from_slice).collect();
        }
        datatype @ (DataType::Fp16 | DataType::Bf16) => {
            return Err(WireError::NoTypedForm(datatype));
        }
    }
    Ok(contents)
}

/// The bytes of a tensor, from the field of its datatype; other fields are ignored. [`skep_tensor::Tensor::new`] checks
/// the number of elements.
///
/// # Errors
/// [`WireError::Value`] for a number that its datatype does not hold, [`WireError::NoTypedForm`] for FP16 and BF16.
pub fn read(contents: &InferTensorContents, datatype: DataType) -> Result<Bytes, WireError> {
    macro_rules! collect {
        ($field:ident, $type:ty) => {{
            let mut bytes = Vec::with_capacity(contents.$field.len() * size_of::<$type>());
            for value in &contents.$field {
                let value = <$type>::try_from(*value)
                    .map_err(|_| WireError::value(&value.to_string(), datatype))?;
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            bytes
        }};
    }
    Ok(Bytes::from(match datatype {
        DataType::Bool => contents
            .bool_contents
            .iter()
            .map(|b| u8::from(*b))
            .collect(),
        DataType::Int8 => collect!(int_contents, i8),
        DataType::Int16 => collect!(int_contents, i16),
        DataType::Int32 => collect!(int_contents, i32),
        DataType::Int64 => collect!(int64_contents, i64),
        DataType::Uint8 => collect!(uint_contents, u8),
        DataType::Uint16 => collect!(uint_contents, u16),
        DataType::Uint32 => collect!(uint_contents, u32),
        DataType::Uint64 => collect!(uint64_contents, u64),
        DataType::Fp32 => collect!(fp32_contents, f32),
        DataType::Fp64 => collect!(fp64_contents, f64),
        // Each element was part of a message, whose length is a u32.
        DataType::Bytes => encode_strings(contents.bytes_contents.iter().map(AsRef::as_ref)),
        DataType::Fp16 | DataType::Bf16 => return Err(WireError::NoTypedForm(datatype)),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::Shape;

    #[test]
    fn every_datatype_with_a_form_reads_back() {
        for datatype in DataType::ALL {
            let data = match (datatype, datatype.element_size()) {
                (DataType::Bool, _) => vec![1, 0],
                (_, Some(size)) => (0..2 * size).map(|i| 200 + i as u8).collect(),
                (_, None) => encode_strings([b"a\xff".as_slice(), b""]),
            };
            let shape = Shape::new(&[2]).expect("shape");
            let view = TensorView::new(datatype, &shape, &data).expect("tensor");
            match write(view) {
                Ok(contents) => {
                    assert_eq!(read(&contents, datatype).as_deref(), Ok(&data[..]));
                }
                Err(error) => {
                    assert!(matches!(datatype, DataType::Fp16 | DataType::Bf16));
                    assert_eq!(error, WireError::NoTypedForm(datatype));
                }
            }
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let contents = InferTensorContents {
            int_contents: vec![-1, 128],
            uint_contents: vec![255, 65_536],
            ..Default::default()
        };
        let text = |datatype| read(&contents, datatype).map_err(|error| error.to_string());
        assert_eq!(
            text(DataType::Int8),
            Err("128 is not a valid INT8".to_owned())
        );
        assert_eq!(
            text(DataType::Uint16),
            Err("65536 is not a valid UINT16".to_owned())
        );
        assert_eq!(
            text(DataType::Int16).as_deref(),
            Ok(&[255, 255, 128, 0][..])
        );
        assert!(read(&contents, DataType::Uint32).is_ok());
        assert_eq!(
            text(DataType::Bf16),
            Err("BF16 has no typed contents".to_owned())
        );
    }

    #[test]
    fn contents_in_another_field_are_ignored() {
        let contents = InferTensorContents {
            int_contents: vec![1, 2],
            ..Default::default()
        };
        assert_eq!(read(&contents, DataType::Fp32).as_deref(), Ok(&[][..]));
    }
}
