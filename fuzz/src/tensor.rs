//! Tensors: their bytes, and their elements as text.

use bytes::Bytes;
use serde_json::value::RawValue;
use skep_tensor::{StringElements, Tensor, encode_strings, gather, split};
use skep_types::{DataType, Shape};
use skep_wire::{
    json::{Document, read, write},
    npy, typed,
};

/// What follows a byte that says which datatype is meant.
fn of_datatype(data: &[u8]) -> Option<(DataType, &[u8])> {
    let (index, rest) = data.split_first()?;
    let all = DataType::ALL;
    Some((all[usize::from(*index) % all.len()], rest))
}

/// A datatype, elements a row, rows a request (a list that ends with 0), and a tensor's bytes.
///
/// The bytes are as many elements as they hold, or no tensor. Requests that are split off a batch are gathered into that
/// batch; elements that are written in a wire form are read as they were.
pub fn tensor(data: &[u8]) {
    let Some((datatype, rest)) = of_datatype(data) else {
        return;
    };
    let Some((width, rest)) = rest.split_first() else {
        return;
    };
    let width = usize::from(*width % 8);
    let end = rest.iter().position(|rows| *rows == 0);
    let (sizes, data) = rest.split_at(end.unwrap_or(rest.len()));
    let data = data.get(1..).unwrap_or_default();

    let elements = match datatype.element_size() {
        Some(size) => data.len() / size,
        None => assert_strings(data),
    };
    let rows = elements.checked_div(width).unwrap_or(sizes.len());
    let shape = Shape::new(&[rows, width]).expect("as many as there are bytes");
    let more = Shape::new(&[elements + 1]).expect("one more");
    let data = Bytes::copy_from_slice(data);
    assert!(Tensor::new(datatype, more, data.clone()).is_err());
    let Ok(batch) = Tensor::new(datatype, shape, data) else {
        return;
    };
    assert_parts(&batch, sizes, rows);
    assert_wire_forms(&batch);
}

/// The number of whole elements; with what is behind them they are all there is.
fn assert_strings(data: &[u8]) -> usize {
    let mut strings = StringElements::new(data);
    let mut encoded = Vec::new();
    let mut count = 0;
    for text in strings.by_ref() {
        encoded.extend_from_slice(&encode_strings([text]));
        count += 1;
    }
    encoded.extend_from_slice(strings.rest());
    assert_eq!(encoded, data);
    count
}

fn assert_parts(batch: &Tensor, sizes: &[u8], rows: usize) {
    let mut left = rows;
    let mut parts: Vec<usize> = Vec::new();
    for size in sizes.iter().map(|size| usize::from(*size)) {
        let part = size.min(left);
        parts.push(part);
        left -= part;
    }
    parts.push(left);
    let requests = split(batch, &parts).expect("all rows, no more");
    assert_eq!(requests.len(), parts.len());
    for (request, rows) in requests.iter().zip(&parts) {
        assert_eq!(request.shape().dims()[0], *rows);
    }
    assert_eq!(&gather(&requests).expect("of one batch"), batch);
    parts.push(1);
    assert!(split(batch, &parts).is_err());
}

fn assert_wire_forms(tensor: &Tensor) {
    let (datatype, count) = (tensor.datatype(), tensor.shape().element_count());
    if let Ok(contents) = typed::write(tensor.view()) {
        let data = typed::read(&contents, datatype).expect("what was just written");
        assert_same(datatype, &data, tensor.data());
    }
    let mut json = Vec::new();
    if write(tensor.view(), &mut json).is_ok() {
        let document = Document::new(&json);
        let parsed: &RawValue = document.parse(serde_json::from_slice).expect("JSON");
        let data = read(document.text(parsed), datatype, count).expect("what was just written");
        assert_same(datatype, &data, tensor.data());
    }
}

/// The same elements; text has one not-a-number and one truth, where bytes have many.
fn assert_same(datatype: DataType, left: &[u8], right: &[u8]) {
    assert_eq!(left.len(), right.len());
    let size = match datatype {
        DataType::Bool => {
            let truths = |data: &[u8]| data.iter().map(|byte| *byte != 0).collect::<Vec<_>>();
            return assert_eq!(truths(left), truths(right));
        }
        DataType::Fp32 | DataType::Fp64 => datatype.element_size().expect("of a size"),
        _ => return assert_eq!(left, right),
    };
    let is_nan = |bytes: &[u8]| match (bytes.as_array::<4>(), bytes.as_array::<8>()) {
        (Some(bytes), _) => f32::from_le_bytes(*bytes).is_nan(),
        (_, Some(bytes)) => f64::from_le_bytes(*bytes).is_nan(),
        _ => false,
    };
    for (left, right) in left.chunks_exact(size).zip(right.chunks_exact(size)) {
        assert!(left == right || is_nan(left) && is_nan(right));
    }
}

/// A datatype, and tensor data in JSON that may hold bare `NaN` and `Infinity`.
///
/// What the parser takes is a part of the text, all JSON is taken, and elements that are read make a tensor.
pub fn json(data: &[u8]) {
    let Some((datatype, text)) = of_datatype(data) else {
        return;
    };
    let document = Document::new(text);
    let Ok(parsed) = document.parse::<&RawValue>(serde_json::from_slice) else {
        assert!(serde_json::from_slice::<&RawValue>(text).is_err());
        return;
    };
    let value = document.text(parsed);
    assert_eq!(value.as_bytes(), text.trim_ascii());
    // Nothing is reserved for elements that the text cannot hold.
    assert!(read(value, datatype, usize::MAX >> 4).is_err());
    let count = match read(value, datatype, 0) {
        Ok(data) => {
            assert!(data.is_empty());
            0
        }
        Err(skep_wire::WireError::Count { got, .. }) => got,
        Err(_) => return,
    };
    let data = read(value, datatype, count).expect("as many as there are");
    let shape = Shape::new(&[count]).expect("no more than bytes of text");
    let tensor = Tensor::new(datatype, shape, data).expect("as many as there are");
    assert_wire_forms(&tensor);
}

/// A file of NumPy's: what is read of it is written and read again unchanged.
pub fn npy(data: &[u8]) {
    let Ok(tensor) = npy::read(&Bytes::copy_from_slice(data)) else {
        return;
    };
    // It is written as FP32.
    if tensor.datatype() == DataType::Bf16 {
        return;
    }
    match npy::write(tensor.view()) {
        Ok(file) => assert_eq!(npy::read(&file.into()), Ok(tensor)),
        Err(error) => assert!(matches!(error, npy::NpyError::Rank(_)), "{error}"),
    }
}
