//! Values of protobuf's scalar kinds: numbers, booleans, strings, enum names.

use prost_reflect::{EnumDescriptor, Kind, Value};

use super::lexer::Token;
use crate::hints::suggest;

/// A value that its field cannot hold.
#[derive(Debug)]
pub(super) struct ScalarError {
    pub(super) expected: String,
    /// What to show instead of the token; `None` shows the token.
    pub(super) got: Option<String>,
    pub(super) nearest: Option<String>,
}

impl ScalarError {
    /// The value is of another kind.
    pub(super) fn wrong_kind(kind: &Kind) -> Self {
        Self {
            expected: expected(kind),
            got: None,
            nearest: None,
        }
    }
}

/// What a field of this kind accepts.
fn expected(kind: &Kind) -> String {
    match kind {
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            format!("an integer from {} to {}", i32::MIN, i32::MAX)
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            format!("an integer from {} to {}", i64::MIN, i64::MAX)
        }
        Kind::Uint32 | Kind::Fixed32 => format!("an integer from 0 to {}", u32::MAX),
        Kind::Uint64 | Kind::Fixed64 => format!("an integer from 0 to {}", u64::MAX),
        Kind::Float | Kind::Double => "a number".to_owned(),
        Kind::Bool => "`true` or `false`".to_owned(),
        Kind::String => "a string in quotes".to_owned(),
        Kind::Bytes => "bytes in quotes".to_owned(),
        Kind::Enum(values) => expected_enum(values),
        Kind::Message(message) => format!("a `{}` in braces", message.name()),
    }
}

fn expected_enum(values: &EnumDescriptor) -> String {
    let names: Vec<String> = values.values().map(|v| v.name().to_owned()).collect();
    match names.as_slice() {
        [only] => format!("`{only}`"),
        names => format!("one of {}", names.join(", ")),
    }
}

/// The value of a string, or of several in a row.
pub(super) fn text(kind: &Kind, bytes: Vec<u8>) -> Result<Value, ScalarError> {
    match kind {
        Kind::String => String::from_utf8(bytes)
            .map(Value::String)
            .map_err(|_| ScalarError {
                expected: "a string in UTF-8".to_owned(),
                got: Some("bytes that are not UTF-8".to_owned()),
                nearest: None,
            }),
        Kind::Bytes => Ok(Value::Bytes(bytes.into())),
        other => Err(ScalarError::wrong_kind(other)),
    }
}

/// The value of a number or a bare word, `negative` if a `-` precedes it.
pub(super) fn word(kind: &Kind, token: &Token<'_>, negative: bool) -> Result<Value, ScalarError> {
    let number = match token {
        Token::Number(digits) => integer(digits, negative),
        _ => None,
    };
    let value = match kind {
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            number.and_then(|n| i32::try_from(n).ok()).map(Value::I32)
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            number.and_then(|n| i64::try_from(n).ok()).map(Value::I64)
        }
        Kind::Uint32 | Kind::Fixed32 => number.and_then(|n| u32::try_from(n).ok()).map(Value::U32),
        Kind::Uint64 | Kind::Fixed64 => number.and_then(|n| u64::try_from(n).ok()).map(Value::U64),
        Kind::Double => float(token, negative).map(Value::F64),
        Kind::Float => float(token, negative).map(|f| {
            #[allow(
                clippy::cast_possible_truncation,
                reason = "the field has 32 bits and takes the nearest value"
            )]
            Value::F32(f as f32)
        }),
        Kind::Bool => boolean(token, number)
            .filter(|_| !negative)
            .map(Value::Bool),
        Kind::Enum(values) => return enumerated(values, token, number, negative),
        Kind::String | Kind::Bytes | Kind::Message(_) => None,
    };
    value.ok_or_else(|| ScalarError::wrong_kind(kind))
}

/// Decimal, `0x` hexadecimal or `0` octal.
fn integer(digits: &str, negative: bool) -> Option<i128> {
    let (digits, radix) = if let Some(hex) = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
    {
        (hex, 16)
    } else if digits.len() > 1 && digits.starts_with('0') {
        (&digits[1..], 8)
    } else {
        (digits, 10)
    };
    // `from_str_radix` alone would take a sign.
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    Some(if negative { -magnitude } else { magnitude })
}

/// Decimal with optional fraction, exponent and `f`; `inf`, `infinity`, `nan`.
fn float(token: &Token<'_>, negative: bool) -> Option<f64> {
    let magnitude = match token {
        Token::Ident(word) => match word.to_ascii_lowercase().as_str() {
            "inf" | "infinity" | "inff" => f64::INFINITY,
            "nan" | "nanf" => f64::NAN,
            _ => return None,
        },
        Token::Number(digits) => {
            let digits = digits.strip_suffix(['f', 'F']).unwrap_or(digits);
            // Rust accepts the same numbers as text format, and words besides; no number token starts with a word.
            let plain = digits
                .bytes()
                .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
            digits.parse().ok().filter(|_| plain)?
        }
        _ => return None,
    };
    Some(if negative { -magnitude } else { magnitude })
}

fn boolean(token: &Token<'_>, number: Option<i128>) -> Option<bool> {
    match (token, number) {
        (_, Some(0)) => Some(false),
        (_, Some(1)) => Some(true),
        (Token::Ident(word), _) => match word.to_ascii_lowercase().as_str() {
            "true" | "t" => Some(true),
            "false" | "f" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn enumerated(
    values: &EnumDescriptor,
    token: &Token<'_>,
    number: Option<i128>,
    negative: bool,
) -> Result<Value, ScalarError> {
    let value = match (token, number.and_then(|n| i32::try_from(n).ok())) {
        (Token::Ident(name), _) if !negative => values.get_value_by_name(name),
        (_, Some(number)) => values.get_value(number),
        _ => None,
    };
    if let Some(value) = value {
        return Ok(Value::EnumNumber(value.number()));
    }
    let names: Vec<String> = values.values().map(|v| v.name().to_owned()).collect();
    let nearest = match token {
        // In upper case: `type_fp32` means TYPE_FP32.
        Token::Ident(name) => {
            suggest::nearest(&name.to_ascii_uppercase(), names.iter().map(String::as_str))
        }
        _ => None,
    };
    Err(ScalarError {
        expected: expected_enum(values),
        got: None,
        nearest,
    })
}
