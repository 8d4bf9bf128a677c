//! Tensor data in JSON: parsed straight into its datatype, written straight out of it.
//!
//! The text given to [`parse`] has been checked by the JSON parser; only the nesting and the values' types are open.

use bytes::Bytes;
use skep_tensor::TensorView;
use skep_types::DataType;

use crate::error::ApiError;

/// How deep arrays may nest, as on Triton.
const MAX_DEPTH: usize = 100;

/// Parses `data`, flat or nested in row-major order, into `count` elements of a datatype.
pub(super) fn parse(
    text: &str,
    datatype: DataType,
    count: usize,
    name: &str,
) -> Result<Bytes, ApiError> {
    let error = |what: String| {
        ApiError::invalid(format!("Unable to parse 'data' of input '{name}': {what}"))
    };
    if matches!(datatype, DataType::Fp16 | DataType::Bf16) {
        return Err(error(format!(
            "{datatype} has no JSON form, send it as binary data"
        )));
    }
    // A number takes two bytes of text at least: more elements than that are not there.
    let mut bytes =
        Vec::with_capacity(count.min(text.len()) * datatype.element_size().unwrap_or(8));
    let mut found = 0usize;
    let values = Values {
        rest: text,
        depth: 0,
    };
    for value in values {
        let value = value.map_err(&error)?;
        push(value, datatype, &mut bytes)
            .ok_or_else(|| error(format!("{value} is no {datatype}")))?;
        found += 1;
    }
    if found != count {
        return Err(error(format!(
            "Shape does not match true shape of 'data' field: expected {count} elements, got {found}"
        )));
    }
    Ok(Bytes::from(bytes))
}

/// Iterates over the leaves of nested arrays.
struct Values<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Iterator for Values<'a> {
    type Item = Result<&'a str, String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.rest = self.rest.trim_start_matches([' ', '\n', '\r', '\t', ',']);
            match self.rest.as_bytes().first()? {
                b'[' => {
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        self.rest = "";
                        return Some(Err(format!("arrays nest deeper than {MAX_DEPTH}")));
                    }
                    self.rest = &self.rest[1..];
                }
                b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.rest = &self.rest[1..];
                }
                b'{' => {
                    self.rest = "";
                    return Some(Err("expected arrays and values, got an object".to_owned()));
                }
                b'"' => return Some(Ok(self.split(string_end(self.rest)))),
                _ => {
                    let end = self
                        .rest
                        .find([',', ']', ' ', '\n', '\r', '\t'])
                        .unwrap_or(self.rest.len());
                    return Some(Ok(self.split(end)));
                }
            }
        }
    }
}

impl<'a> Values<'a> {
    fn split(&mut self, end: usize) -> &'a str {
        let (value, rest) = self.rest.split_at(end);
        self.rest = rest;
        value
    }
}

/// The length of the string literal that `text` begins with, quotes included.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

/// Appends one value; `None` if it is none of the datatype.
fn push(value: &str, datatype: DataType, bytes: &mut Vec<u8>) -> Option<()> {
    macro_rules! number {
        ($type:ty) => {
            bytes.extend_from_slice(&value.parse::<$type>().ok()?.to_le_bytes())
        };
    }
    match datatype {
        DataType::Bool => bytes.push(match value {
            "true" | "1" => 1,
            "false" | "0" => 0,
            _ => return None,
        }),
        DataType::Uint8 => number!(u8),
        DataType::Uint16 => number!(u16),
        DataType::Uint32 => number!(u32),
        DataType::Uint64 => number!(u64),
        DataType::Int8 => number!(i8),
        DataType::Int16 => number!(i16),
        DataType::Int32 => number!(i32),
        DataType::Int64 => number!(i64),
        DataType::Fp32 if is_number(value) => number!(f32),
        DataType::Fp64 if is_number(value) => number!(f64),
        DataType::Bytes => {
            let text: String = serde_json::from_str(value).ok()?;
            let length = u32::try_from(text.len()).ok()?;
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        _ => return None,
    }
    Some(())
}

/// Rust would also parse `inf` and `nan` in quotes' absence; JSON has numbers only.
fn is_number(value: &str) -> bool {
    value
        .bytes()
        .next()
        .is_some_and(|b| b == b'-' || b.is_ascii_digit())
}

/// Appends a tensor's elements as a flat JSON array; `None` for datatypes without a JSON form.
pub(super) fn write(tensor: TensorView<'_>, json: &mut Vec<u8>) -> Option<()> {
    macro_rules! numbers {
        ($type:ty) => {
            list(
                json,
                tensor.data().chunks_exact(size_of::<$type>()),
                |json, chunk| {
                    let value = <$type>::from_le_bytes(chunk.try_into().unwrap_or_default());
                    serde_json::to_writer(json, &value)
                },
            )
        };
    }
    macro_rules! floats {
        ($type:ty) => {
            list(
                json,
                tensor.data().chunks_exact(size_of::<$type>()),
                |json, chunk| {
                    let value = <$type>::from_le_bytes(chunk.try_into().unwrap_or_default());
                    if value.is_finite() {
                        return serde_json::to_writer(json, &value);
                    }
                    // No JSON, but what Triton writes and its clients read.
                    json.extend_from_slice(match value {
                        v if v.is_nan() => b"NaN",
                        v if v > 0.0 => b"Infinity",
                        _ => b"-Infinity",
                    });
                    Ok(())
                },
            )
        };
    }
    match tensor.datatype() {
        DataType::Bool => list(json, tensor.data().chunks_exact(1), |json, chunk| {
            serde_json::to_writer(json, &(chunk[0] != 0))
        }),
        DataType::Uint8 => numbers!(u8),
        DataType::Uint16 => numbers!(u16),
        DataType::Uint32 => numbers!(u32),
        DataType::Uint64 => numbers!(u64),
        DataType::Int8 => numbers!(i8),
        DataType::Int16 => numbers!(i16),
        DataType::Int32 => numbers!(i32),
        DataType::Int64 => numbers!(i64),
        DataType::Fp32 => floats!(f32),
        DataType::Fp64 => floats!(f64),
        DataType::Bytes => list(json, tensor.strings(), |json, element| {
            serde_json::to_writer(json, &String::from_utf8_lossy(element))
        }),
        DataType::Fp16 | DataType::Bf16 => return None,
    }
    Some(())
}

fn list<'a>(
    json: &mut Vec<u8>,
    elements: impl Iterator<Item = &'a [u8]>,
    write: impl Fn(&mut Vec<u8>, &'a [u8]) -> serde_json::Result<()>,
) {
    json.push(b'[');
    for (index, element) in elements.enumerate() {
        if index > 0 {
            json.push(b',');
        }
        write(json, element).expect("numbers and strings have a JSON form, and a vector takes all");
    }
    json.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::Shape;

    fn parsed(text: &str, datatype: DataType, count: usize) -> Result<Bytes, String> {
        parse(text, datatype, count, "x").map_err(|e| tonic::Status::from(e).message().to_owned())
    }

    #[test]
    fn nested_data_is_flattened_in_order() {
        assert_eq!(
            parsed("[[1, 2],\n [3,4]]", DataType::Uint8, 4).as_deref(),
            Ok(&[1u8, 2, 3, 4][..])
        );
        assert_eq!(
            parsed("[true,[false]]", DataType::Bool, 2).as_deref(),
            Ok(&[1u8, 0][..])
        );
        assert_eq!(parsed("5", DataType::Uint8, 1).as_deref(), Ok(&[5u8][..]));
        assert_eq!(parsed("[]", DataType::Uint8, 0).as_deref(), Ok(&[][..]));
    }

    #[test]
    fn sixty_four_bits_are_exact() {
        let max = parsed("[18446744073709551615]", DataType::Uint64, 1).expect("fits");
        assert_eq!(max.as_ref(), u64::MAX.to_le_bytes());
        assert!(parsed("[18446744073709551616]", DataType::Uint64, 1).is_err());
        assert!(parsed("[-9223372036854775808]", DataType::Int64, 1).is_ok());
    }

    #[test]
    fn strings_with_brackets_quotes_and_commas_stay_whole() {
        let bytes = parsed(r#"["a,]b\"\\", "é"]"#, DataType::Bytes, 2).expect("strings");
        assert_eq!(
            bytes,
            skep_tensor::encode_strings([br#"a,]b"\"#.as_slice(), "é".as_bytes()])
        );
    }

    #[test]
    fn wrong_values_counts_and_depths_are_refused() {
        for (text, datatype, count) in [
            ("[1.5]", DataType::Int32, 1),
            ("[256]", DataType::Uint8, 1),
            ("[-1]", DataType::Uint32, 1),
            ("[\"1\"]", DataType::Fp32, 1),
            ("[null]", DataType::Fp32, 1),
            ("[1,2]", DataType::Fp32, 3),
            ("[1,2,3,4]", DataType::Fp32, 3),
            ("{\"a\":1}", DataType::Fp32, 1),
            ("[1]", DataType::Fp16, 1),
            ("[1]", DataType::Bytes, 1),
            ("[2]", DataType::Bool, 1),
        ] {
            assert!(
                parsed(text, datatype, count).is_err(),
                "{text} as {datatype}"
            );
        }
        let deep = "[".repeat(101) + "1" + &"]".repeat(101);
        assert!(parsed(&deep, DataType::Fp32, 1).is_err());
    }

    #[test]
    fn what_is_written_reads_back() {
        let values = [0.1f32, -1e30, 16_777_216.0, f32::MIN_POSITIVE];
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = Shape::new(&[4]).expect("shape");
        let mut json = Vec::new();
        write(
            TensorView::new(DataType::Fp32, &shape, &data).expect("tensor"),
            &mut json,
        )
        .expect("has a form");
        let text = String::from_utf8(json).expect("text");
        assert_eq!(parsed(&text, DataType::Fp32, 4).as_deref(), Ok(&data[..]));
    }

    #[test]
    fn nan_and_infinity_are_written_as_triton_does() {
        let data: Vec<u8> = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let shape = Shape::new(&[3]).expect("shape");
        let mut json = Vec::new();
        write(
            TensorView::new(DataType::Fp64, &shape, &data).expect("tensor"),
            &mut json,
        )
        .expect("has a form");
        assert_eq!(json, b"[NaN,Infinity,-Infinity]");
    }
}
