//! Reads tensor data from JSON, straight into its datatype without intermediate values.

use bytes::Bytes;
use skep_types::DataType;

use super::{special::special, tokens::Tokens};
use crate::error::{MAX_DEPTH, WireError};

/// Reads `count` elements from arrays, flat or nested in row-major order, or from one bare value.
///
/// The text must have passed [`Document::parse`](super::Document::parse): only nesting and the types of values are
/// checked here. Numbers must fit into their datatype: FP32 and FP64 accept bare `NaN` and `Infinity`, but no number
/// that would become infinite.
///
/// # Errors
/// Every kind but [`WireError::NoTypedForm`] and [`WireError::NotUtf8`].
pub fn read(text: &str, datatype: DataType, count: usize) -> Result<Bytes, WireError> {
    if matches!(datatype, DataType::Fp16 | DataType::Bf16) {
        return Err(WireError::NoJsonForm(datatype));
    }
    let mut bytes = Vec::with_capacity(needs(text, datatype, count).kept_bytes);
    let (mut depth, mut found) = (0usize, 0usize);
    for token in Tokens::new(text.as_bytes()) {
        let value = &text[token];
        match value.as_bytes()[0] {
            b',' | b' ' | b'\n' | b'\r' | b'\t' => {}
            b'[' if depth == MAX_DEPTH => return Err(WireError::Depth),
            b'[' => depth += 1,
            b']' => depth = depth.saturating_sub(1),
            b'{' | b'}' | b':' => return Err(WireError::Object),
            _ => {
                push(value, datatype, &mut bytes)
                    .ok_or_else(|| WireError::value(value, datatype))?;
                found += 1;
            }
        }
    }
    if found != count {
        return Err(WireError::Count {
            expected: count,
            got: found,
        });
    }
    Ok(Bytes::from(bytes))
}

/// The memory that reading takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadingNeeds {
    /// Bytes of the result, at most.
    pub kept_bytes: usize,
    /// Further bytes while reading.
    pub passing_bytes: usize,
}

/// The most memory that [`read()`] takes for the same text.
#[must_use]
pub fn needs(text: &str, datatype: DataType, count: usize) -> ReadingNeeds {
    // An element takes at least two bytes of text, which bounds their number whatever the shape says.
    let expected = count.min(text.len() / 2 + 1);
    match datatype.element_size() {
        Some(size) => ReadingNeeds {
            kept_bytes: expected.saturating_mul(size),
            passing_bytes: 0,
        },
        None => ReadingNeeds {
            // A string is no longer than its text with quotes, apart from the length in front of it.
            kept_bytes: text
                .len()
                .saturating_add(expected.saturating_mul(size_of::<u32>())),
            // A string with escapes is decoded into a growing buffer first.
            passing_bytes: if text.contains('\\') {
                text.len().saturating_mul(3)
            } else {
                0
            },
        },
    }
}

/// Appends one element; `None` if it does not belong to the datatype.
fn push(value: &str, datatype: DataType, bytes: &mut Vec<u8>) -> Option<()> {
    macro_rules! whole {
        ($type:ty) => {
            bytes.extend_from_slice(&value.parse::<$type>().ok()?.to_le_bytes())
        };
    }
    macro_rules! float {
        ($type:ty) => {{
            // Rust would also parse `inf` and `nan` in any case, and round large numbers to infinity.
            let finite = value.parse::<$type>().ok().filter(|v| v.is_finite());
            let number = finite.or_else(|| special(value).map(<$type>::from))?;
            bytes.extend_from_slice(&number.to_le_bytes());
        }};
    }
    match datatype {
        DataType::Bool => bytes.push(match value {
            "true" | "1" => 1,
            "false" | "0" => 0,
            _ => return None,
        }),
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
        DataType::Bytes => push_string(value, bytes)?,
        DataType::Fp16 | DataType::Bf16 => return None,
    }
    Some(())
}

/// Appends a string as an element of a `BYTES` tensor.
fn push_string(literal: &str, bytes: &mut Vec<u8>) -> Option<()> {
    let inner = literal.strip_prefix('"')?.strip_suffix('"')?;
    let unescaped: String;
    let text = if inner.contains('\\') {
        unescaped = serde_json::from_str(literal).ok()?;
        &unescaped
    } else {
        inner
    };
    bytes.extend_from_slice(&u32::try_from(text.len()).ok()?.to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use DataType as D;

    #[test]
    fn nested_data_is_flattened_in_order() {
        for (text, datatype, expected) in [
            ("[[1, 2],\n[3,4]]", D::Uint8, &[1, 2, 3, 4][..]),
            ("\t[ true,[false,\r1 ], 0]", D::Bool, &[1, 0, 1, 0]),
            ("5", D::Uint8, &[5]),
            ("[]", D::Uint8, &[]),
        ] {
            let count = expected.len();
            assert_eq!(read(text, datatype, count).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn limits_are_exact() {
        for (datatype, least, most, below, above) in [
            (D::Uint8, "0", "255", "-1", "256"),
            (D::Uint16, "0", "65535", "-1", "65536"),
            (D::Uint32, "0", "4294967295", "-1", "4294967296"),
            (
                D::Uint64,
                "0",
                "18446744073709551615",
                "-1",
                "18446744073709551616",
            ),
            (D::Int8, "-128", "127", "-129", "128"),
            (D::Int16, "-32768", "32767", "-32769", "32768"),
            (
                D::Int32,
                "-2147483648",
                "2147483647",
                "-2147483649",
                "2147483648",
            ),
            (
                D::Int64,
                "-9223372036854775808",
                "9223372036854775807",
                "-9223372036854775809",
                "9223372036854775808",
            ),
            (D::Fp32, "-3.4028235e38", "3.4028235e38", "-3.5e38", "1e39"),
            (
                D::Fp64,
                "-1.7976931348623157e308",
                "1.7976931348623157e308",
                "-1e309",
                "1e999",
            ),
        ] {
            for inside in [least, most] {
                let read = read(inside, datatype, 1).expect("inside");
                assert_eq!(Some(read.len()), datatype.element_size());
            }
            for outside in [below, above] {
                let error = WireError::value(outside, datatype);
                assert_eq!(read(outside, datatype, 1), Err(error));
            }
        }
        let most = read("[18446744073709551615]", D::Uint64, 1).expect("fits");
        assert_eq!(most.as_ref(), u64::MAX.to_le_bytes());
    }

    #[test]
    fn strings_with_brackets_quotes_and_commas_stay_whole() {
        let bytes = read(
            r#"["a,]b\"\\", "é", "", "{NaN\u0000\ud83d\ude00"]"#,
            D::Bytes,
            4,
        );
        let expected = [r#"a,]b"\"#, "é", "", "{NaN\0😀"];
        assert_eq!(
            bytes,
            Ok(Bytes::from(skep_tensor::encode_strings(
                expected.map(str::as_bytes)
            )))
        );
    }

    #[test]
    fn specials_are_for_floats_and_bare() {
        let names = "[NaN,-NaN,Infinity,Inf,-Infinity,-Inf]";
        let values = [
            f32::NAN,
            f32::NAN,
            f32::INFINITY,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NEG_INFINITY,
        ];
        let single: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let double: Vec<u8> = values
            .iter()
            .flat_map(|v| f64::from(*v).to_le_bytes())
            .collect();
        assert_eq!(read(names, D::Fp32, 6).as_deref(), Ok(&single[..]));
        assert_eq!(read(names, D::Fp64, 6).as_deref(), Ok(&double[..]));
        for datatype in [D::Fp32, D::Fp64] {
            for text in [
                "\"NaN\"",
                "\"Infinity\"",
                "nan",
                "inf",
                "infinity",
                "NAN",
                "+Inf",
            ] {
                assert!(read(text, datatype, 1).is_err(), "{text}");
            }
        }
        for datatype in [D::Bool, D::Int8, D::Uint64, D::Bytes] {
            assert!(read("NaN", datatype, 1).is_err(), "{datatype}");
        }
    }

    #[test]
    fn each_fault_of_the_data_is_named() {
        for (text, datatype, count, expected) in [
            ("[1.5]", D::Int32, 1, "1.5 is not a valid INT32"),
            ("[1e2]", D::Int32, 1, "1e2 is not a valid INT32"),
            ("[\"1\"]", D::Fp32, 1, "\"1\" is not a valid FP32"),
            ("[null]", D::Fp32, 1, "null is not a valid FP32"),
            ("[true]", D::Fp64, 1, "true is not a valid FP64"),
            ("[1]", D::Bytes, 1, "1 is not a valid BYTES"),
            (
                r#"["\ud800"]"#,
                D::Bytes,
                1,
                r#""\ud800" is not a valid BYTES"#,
            ),
            ("[2]", D::Bool, 1, "2 is not a valid BOOL"),
            ("[1]", D::Fp16, 1, "FP16 has no JSON form"),
            ("[]", D::Bf16, 0, "BF16 has no JSON form"),
            (
                "[[1],{\"a\":1}]",
                D::Fp32,
                2,
                "expected arrays and values, got an object",
            ),
            (
                "[1,2]",
                D::Fp32,
                3,
                "Shape does not match true shape of 'data' field: expected 3 elements, got 2",
            ),
            (
                "[1,2,3,4]",
                D::Fp32,
                3,
                "Shape does not match true shape of 'data' field: expected 3 elements, got 4",
            ),
            (
                "[]",
                D::Bytes,
                usize::MAX,
                &format!(
                    "Shape does not match true shape of 'data' field: expected {} elements, got 0",
                    usize::MAX
                ),
            ),
        ] {
            let error = read(text, datatype, count).map_err(|error| error.to_string());
            assert_eq!(error, Err(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth| "[".repeat(depth) + "1" + &"]".repeat(depth);
        assert!(read(&nested(MAX_DEPTH), D::Uint8, 1).is_ok());
        let error = read(&nested(MAX_DEPTH + 1), D::Uint8, 1).expect_err("too deep");
        assert_eq!(error.to_string(), "arrays nest deeper than 100");
        let wide = format!("[{}1]", "[],".repeat(MAX_DEPTH + 1));
        assert!(read(&wide, D::Uint8, 1).is_ok());
    }
}
