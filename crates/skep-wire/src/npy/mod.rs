//! Tensors in NumPy's `.npy` files.
//!
//! | NumPy | datatype |
//! |---|---|
//! | `bool`, `uint8` to `uint64`, `int8` to `int64`, `float16` to `float64` | the one of the same size |
//! | `V2`: two bytes, as `ml_dtypes.bfloat16` is kept | BF16 |
//! | `S5`: bytes | BYTES, without the zeros that fill an element up |
//! | `U5`: text | BYTES, as UTF-8 |
//!
//! Versions 1 to 3 of the format are read, both byte orders and both orders of axes; version 1 is written. NumPy itself
//! has no BF16, so that is written as `float32`, which holds every BF16 value.

mod error;
mod header;

pub use self::error::NpyError;

use bytes::Bytes;
use skep_tensor::{Tensor, TensorView, encode_strings};
use skep_types::{DataType, Shape, ShapeError};

use self::{
    error::MAX_RANK,
    header::{ElementKind, Header},
};

/// Reads a file's content. Data that is already in order is not copied.
///
/// # Errors
/// Every kind but [`NpyError::Zero`] and [`NpyError::Rank`].
pub fn read(file: &Bytes) -> Result<Tensor, NpyError> {
    let (header, start) = Header::read(file)?;
    let shape = Shape::new(&header.shape)?;
    let width = header.kind.width();
    let expected = shape.element_count().checked_mul(width);
    let expected = expected.ok_or_else(|| ShapeError::TooLarge(shape.to_string()))?;
    let data = file.slice(start..);
    if data.len() != expected {
        let got = data.len();
        return Err(NpyError::Size { expected, got });
    }
    let data = if header.is_column_major && shape.rank() > 1 {
        Bytes::from(row_major(&data, shape.dims(), width))
    } else {
        data
    };
    let (datatype, data) = match header.kind {
        ElementKind::Number(datatype) if header.is_big_endian && width > 1 => {
            let swapped = data.chunks_exact(width).flat_map(|one| one.iter().rev());
            (datatype, swapped.copied().collect::<Vec<u8>>().into())
        }
        ElementKind::Number(datatype) => (datatype, data),
        ElementKind::Bytes(width) => {
            let elements = data.chunks_exact(width).map(without_zeros);
            (DataType::Bytes, encode_strings(elements).into())
        }
        ElementKind::Text(characters) => {
            let elements = data.chunks_exact(characters.saturating_mul(4));
            let elements = elements.map(|element| text(element, header.is_big_endian));
            let elements = elements.collect::<Result<Vec<String>, _>>()?;
            let encoded = encode_strings(elements.iter().map(String::as_bytes));
            (DataType::Bytes, encoded.into())
        }
    };
    Ok(Tensor::new(datatype, shape, data).expect("as many elements as the shape says"))
}

/// Writes a file's content.
///
/// # Errors
/// [`NpyError::Zero`], [`NpyError::Rank`].
pub fn write(tensor: TensorView<'_>) -> Result<Vec<u8>, NpyError> {
    let rank = tensor.shape().rank();
    if rank > MAX_RANK {
        return Err(NpyError::Rank(rank));
    }
    let (descr, data) = match tensor.datatype() {
        DataType::Bytes => {
            let elements = || tensor.strings();
            if elements().any(|element| element.last() == Some(&0)) {
                return Err(NpyError::Zero);
            }
            // NumPy has no elements of zero bytes.
            let width = elements().map(<[u8]>::len).max().unwrap_or(0).max(1);
            let mut data = Vec::with_capacity(width * tensor.shape().element_count());
            for element in elements() {
                data.extend_from_slice(element);
                data.resize(data.len() + width - element.len(), 0);
            }
            (format!("|S{width}"), data.into())
        }
        DataType::Bf16 => {
            // The upper half of an FP32's bits.
            let (halves, _) = tensor.data().as_chunks::<2>();
            let words = halves.iter().flat_map(|[low, high]| [0, 0, *low, *high]);
            ("<f4".to_owned(), words.collect::<Vec<u8>>().into())
        }
        datatype => (
            header::descr(datatype).to_owned(),
            std::borrow::Cow::Borrowed(tensor.data()),
        ),
    };
    let mut file = header::write(&descr, tensor.shape().dims());
    file.extend_from_slice(&data);
    Ok(file)
}

/// An element without its padding of zeros.
fn without_zeros(element: &[u8]) -> &[u8] {
    let end = element.iter().rposition(|byte| *byte != 0);
    &element[..end.map_or(0, |last| last + 1)]
}

/// An element of text: code points of four bytes.
fn text(element: &[u8], is_big_endian: bool) -> Result<String, NpyError> {
    let (points, _) = element.as_chunks::<4>();
    let points = points.iter().map(|bytes| {
        if is_big_endian {
            u32::from_be_bytes(*bytes)
        } else {
            u32::from_le_bytes(*bytes)
        }
    });
    let points: Vec<u32> = points.collect();
    let end = points.iter().rposition(|point| *point != 0);
    let points = &points[..end.map_or(0, |last| last + 1)];
    let characters = points
        .iter()
        .map(|point| char::from_u32(*point).ok_or(NpyError::Text(*point)));
    characters.collect()
}

/// Reorders elements from column-major to row-major.
fn row_major(data: &[u8], dims: &[usize], width: usize) -> Vec<u8> {
    let mut strides = Vec::with_capacity(dims.len());
    let mut stride = width;
    for dim in dims {
        strides.push(stride);
        stride = stride.saturating_mul(*dim);
    }
    let mut ordered = Vec::with_capacity(data.len());
    let mut index = vec![0usize; dims.len()];
    let mut at = 0;
    while ordered.len() < data.len() {
        ordered.extend_from_slice(&data[at..at + width]);
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < dims[axis] {
                break;
            }
            at -= index[axis] * strides[axis];
            index[axis] = 0;
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file as NumPy writes it, with its padding left out.
    fn file(header: &str, data: &[u8]) -> Bytes {
        let length = u16::try_from(header.len()).expect("short");
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend_from_slice(&length.to_le_bytes());
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(data);
        file.into()
    }

    fn array(descr: &str, order: &str, shape: &str, data: &[u8]) -> Result<Tensor, NpyError> {
        read(&file(
            &format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n"),
            data,
        ))
    }

    #[test]
    fn both_orders_of_bytes_and_axes_are_read() {
        let big = array(">i2", "False", "(2,)", &[1, 2, 3, 4]).expect("reads");
        assert_eq!(big.datatype(), DataType::Int16);
        assert_eq!(big.data()[..], [2, 1, 4, 3]);
        // [[1, 2, 3], [4, 5, 6]], column by column.
        let columns = array("|u1", "True", "(2, 3)", &[1, 4, 2, 5, 3, 6]).expect("reads");
        assert_eq!(columns.shape().dims(), [2, 3]);
        assert_eq!(columns.data()[..], [1, 2, 3, 4, 5, 6]);
        let cube: Vec<u8> = (0..24).collect();
        let turned = array("|u1", "True", "(2, 3, 4)", &cube).expect("reads");
        assert_eq!(turned.data()[..8], [0, 6, 12, 18, 2, 8, 14, 20]);
    }

    #[test]
    fn scalars_empty_arrays_and_texts_are_read() {
        let scalar = array("<f4", "False", "()", &1.5f32.to_le_bytes()).expect("reads");
        assert_eq!(scalar.shape().rank(), 0);
        let empty = array("<f4", "True", "(0, 3)", &[]).expect("reads");
        assert_eq!(empty.shape().dims(), [0, 3]);
        let bytes = array("|S3", "False", "(2,)", b"a\0\0b\0c").expect("reads");
        let elements: Vec<&[u8]> = bytes.view().strings().collect();
        assert_eq!(elements, [b"a".as_slice(), b"b\0c"]);
        let text: Vec<u8> = ['é', '\0']
            .iter()
            .flat_map(|c| u32::from(*c).to_le_bytes())
            .collect();
        let text = array("<U2", "False", "(1,)", &text).expect("reads");
        assert_eq!(text.view().strings().next(), Some("é".as_bytes()));
    }

    #[test]
    fn files_that_hold_no_tensor_are_named() {
        for (descr, shape, data, why) in [
            ("<c8", "(1,)", &[0; 8][..], "dtype `<c8`"),
            ("|O", "(1,)", &[0; 8], "dtype `|O`"),
            ("|S0", "(99999999999,)", &[], "dtype `|S0`"),
            ("<f4", "(2,)", &[0; 7], "holds 7 bytes of data, expected 8"),
            ("<f4", "(9223372036854775807, 2)", &[], "more elements"),
            ("<f8", "(0, 9223372036854775807, 9)", &[], "more elements"),
            ("<U1", "(1,)", &[0, 0, 0x11, 0], "not a character"),
            ("<f4", "(-1,)", &[], "broken header"),
            ("<f4", "3", &[], "broken header"),
        ] {
            let error = array(descr, "False", shape, data)
                .expect_err(descr)
                .to_string();
            assert!(error.contains(why), "{descr} {shape}: {error}");
        }
        assert_eq!(
            read(&Bytes::from_static(b"PK\x03\x04")),
            Err(NpyError::Magic)
        );
        let later = Bytes::from_static(b"\x93NUMPY\x04\x00\0\0");
        assert_eq!(read(&later), Err(NpyError::Version(4)));
    }

    #[test]
    fn a_bf16_is_written_as_the_float_of_the_same_value() {
        let one = half_bits(0x3f80);
        let file = write(one.view()).expect("writes");
        let back = read(&file.into()).expect("reads");
        assert_eq!(
            (back.datatype(), &back.data()[..]),
            (DataType::Fp32, &1f32.to_le_bytes()[..])
        );
    }

    fn half_bits(bits: u16) -> Tensor {
        let data = Bytes::from(bits.to_le_bytes().to_vec());
        Tensor::new(DataType::Bf16, Shape::new(&[1]).expect("shape"), data).expect("tensor")
    }

    #[test]
    fn more_dimensions_than_numpy_has_are_refused() {
        let tensor = |rank| {
            Tensor::new(
                DataType::Uint8,
                Shape::new(&vec![1; rank]).expect("shape"),
                Bytes::from_static(b"a"),
            )
        };
        assert_eq!(
            write(tensor(65).expect("tensor").view()),
            Err(NpyError::Rank(65))
        );
        assert!(write(tensor(64).expect("tensor").view()).is_ok());
    }

    #[test]
    fn an_element_that_ends_with_zeros_is_refused() {
        let data = Bytes::from(encode_strings([b"a\0".as_slice()]));
        let shape = Shape::new(&[1]).expect("shape");
        let tensor = Tensor::new(DataType::Bytes, shape, data).expect("tensor");
        assert_eq!(write(tensor.view()), Err(NpyError::Zero));
    }

    proptest! {
        #[test]
        fn written_data_reads_back(words: Vec<u64>, index in 0usize..14, rows in 1usize..4) {
            let datatype = DataType::ALL[index];
            prop_assume!(datatype != DataType::Bf16);
            let data: Vec<u8> = match datatype.element_size() {
                Some(_) => words.iter().flat_map(|word| word.to_le_bytes()).collect(),
                None => {
                    let texts: Vec<String> = words.iter().map(u64::to_string).collect();
                    encode_strings(texts.iter().map(String::as_bytes))
                }
            };
            let count = datatype.element_size().map_or(words.len(), |size| data.len() / size);
            prop_assume!(count.is_multiple_of(rows));
            let shape = Shape::new(&[rows, count / rows]).expect("shape");
            let tensor = Tensor::new(datatype, shape, data.into()).expect("tensor");
            let file = Bytes::from(write(tensor.view()).expect("writes"));
            prop_assert_eq!(read(&file), Ok(tensor));
        }

        #[test]
        fn no_file_panics(header in r"[{}()':, a-zA-Z0-9<>|_]{0,60}", data: Vec<u8>) {
            let _ = read(&file(&header, &data));
            let _ = read(&file(&format!("{{'descr': '<f4', 'fortran_order': True, 'shape': {header}}}"), &data));
            let _ = read(&data.into());
        }
    }
}
