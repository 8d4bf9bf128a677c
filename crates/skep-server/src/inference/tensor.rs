//! Makes an input's tensor from its data, and explains data that does not fill it.

use bytes::Bytes;
use skep_tensor::{Tensor, TensorError};
use skep_types::{DataType, Shape};

use super::request::invalid_request;
use crate::error::ApiError;

/// Describes the last `rest` bytes of a `BYTES` tensor, which are not a whole element; empty if none are left.
fn cut_element(encoded: &[u8], rest: usize) -> String {
    let at = encoded.len().saturating_sub(rest);
    let found = match encoded[at..].split_first_chunk::<4>() {
        _ if rest == 0 => return String::new(),
        None => format!("{rest} bytes at byte {at} are too few for a length"),
        Some((prefix, tail)) => {
            let length = u32::from_le_bytes(*prefix);
            let is_text = prefix.iter().all(|byte| matches!(byte, b' '..=b'~'));
            let shown = match str::from_utf8(prefix) {
                Ok(text) if is_text => format!(" (`{text}`: was the length left out?)"),
                _ => String::new(),
            };
            format!(
                "at byte {at} the length is {length}{shown}, and {} bytes follow",
                tail.len()
            )
        }
    };
    format!(": each element begins with its length as 4 bytes, little-endian; {found}")
}

/// An error about data of another size than the tensor has.
pub(super) fn size_mismatch(
    id: &str,
    name: &str,
    model: &str,
    expected: usize,
    got: usize,
) -> ApiError {
    let text = format!(
        "input byte size mismatch for input '{name}' for model '{model}'. Expected {expected}, got {got}"
    );
    invalid_request(id, &text)
}

/// An input's tensor; data that does not fill it is refused in Triton's words.
pub(crate) fn input_tensor(
    id: &str,
    name: &str,
    model: &str,
    datatype: DataType,
    shape: Shape,
    data: Bytes,
) -> Result<Tensor, ApiError> {
    let encoded = match datatype.element_size() {
        None => data.clone(),
        Some(_) => Bytes::new(),
    };
    Tensor::new(datatype, shape, data).map_err(|error| {
        let text = match error {
            TensorError::ByteSize { expected, got, .. } => {
                return size_mismatch(id, name, model, expected, got);
            }
            TensorError::Elements { expected, got, rest, .. } if got < expected || rest > 0 => format!(
                "expected {expected} string elements for inference input '{name}' for model '{model}', got {got}{}",
                cut_element(&encoded, rest)
            ),
            TensorError::Elements { expected, got, .. } => format!(
                "unexpected number of string elements {got} for inference input '{name}' for model '{model}', expecting {expected}"
            ),
            other => format!("input '{name}': {other}"),
        };
        invalid_request(id, &text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_element_is_described() {
        for (encoded, rest, expected) in [
            (&b""[..], 0, ""),
            (b"\x01\0\0\0a", 0, ""),
            (
                b"hello",
                5,
                ": each element begins with its length as 4 bytes, little-endian; at byte 0 the length is 1819043176 (`hell`: was the length left out?), and 1 bytes follow",
            ),
            (
                b"\x01\0\0\0a\x09\0\0\0bc",
                6,
                ": each element begins with its length as 4 bytes, little-endian; at byte 5 the length is 9, and 2 bytes follow",
            ),
            (
                b"\x01\0\0\0abc",
                2,
                ": each element begins with its length as 4 bytes, little-endian; 2 bytes at byte 5 are too few for a length",
            ),
        ] {
            assert_eq!(cut_element(encoded, rest), expected, "{encoded:?}");
        }
    }
}
