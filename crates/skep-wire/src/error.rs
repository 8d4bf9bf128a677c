//! Why tensor data cannot be read or written in a form.

use skep_types::DataType;

/// How deep arrays may nest, as on Triton.
pub const MAX_DEPTH: usize = 100;

/// Why tensor data cannot be read or written in a form.
///
/// The texts say what is wrong. The caller adds what to do about it, since that depends on its role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A datatype that JSON does not carry.
    #[error("{0} has no JSON form")]
    NoJsonForm(DataType),
    /// A datatype that typed contents do not carry.
    #[error("{0} has no typed contents")]
    NoTypedForm(DataType),
    /// A value that does not belong to the datatype, or is out of its range.
    #[error("{value} is not a valid {datatype}")]
    Value {
        /// The value as it was sent, truncated if it is long.
        value: String,
        /// The datatype it should have.
        datatype: DataType,
    },
    /// More or fewer values than the shape says; the text is Triton's.
    #[error(
        "Shape does not match true shape of 'data' field: expected {expected} elements, got {got}"
    )]
    Count {
        /// Elements that the shape needs.
        expected: usize,
        /// Values that were sent.
        got: usize,
    },
    /// Arrays within arrays beyond [`MAX_DEPTH`].
    #[error("arrays nest deeper than {MAX_DEPTH}")]
    Depth,
    /// An object among the values.
    #[error("expected arrays and values, got an object")]
    Object,
    /// A `BYTES` element that a JSON string cannot hold.
    #[error("holds bytes that are not UTF-8")]
    NotUtf8,
    /// There is not enough memory for more text.
    #[error("there is not enough memory for its text")]
    NoRoom,
}

/// Values longer than this, in bytes, are truncated in errors, which would otherwise repeat a whole request.
const MAX_SHOWN_BYTES: usize = 64;

impl WireError {
    pub(crate) fn value(value: &str, datatype: DataType) -> Self {
        let shown = value.floor_char_boundary(MAX_SHOWN_BYTES);
        let mut shown = value[..shown].to_owned();
        if shown.len() < value.len() {
            shown.push_str("...");
        }
        Self::Value {
            value: shown,
            datatype,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut_between_characters() {
        let text = |value: &str| WireError::value(value, DataType::Fp32).to_string();
        assert_eq!(text("null"), "null is not a valid FP32");
        let long = "x".repeat(63) + "éé";
        assert_eq!(
            text(&long),
            format!("{}... is not a valid FP32", "x".repeat(63))
        );
        assert_eq!(
            text(&long[..63]),
            format!("{} is not a valid FP32", &long[..63])
        );
    }
}
