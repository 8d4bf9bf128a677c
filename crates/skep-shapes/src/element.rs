//! ONNX's element types, and the memory that an element takes.

use std::fmt;

use skep_proto::onnx::tensor_proto::DataType as Onnx;
use skep_types::{DataType, Shape};

/// An element type by its number in ONNX (`TensorProto.DataType`), those included that no protocol can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ElementType(pub i32);

/// Types newer than the committed `onnx.proto`: number, name, bits. Source: onnx.proto of ONNX 1.20.
const NEWER: [(i32, &str, usize); 4] = [
    (23, "FLOAT4E2M1", 4),
    (24, "FLOAT8E8M0", 8),
    (25, "UINT2", 2),
    (26, "INT2", 2),
];

/// What a string's element is in ONNX Runtime on 64-bit machines: a `std::string`; longer texts lie elsewhere.
const STRING_BITS: usize = 32 * 8;

impl ElementType {
    pub(super) const FLOAT: Self = Self(Onnx::Float as i32);
    pub(super) const INT64: Self = Self(Onnx::Int64 as i32);
    pub(super) const BOOL: Self = Self(Onnx::Bool as i32);

    /// The protocol's datatype; `None` for types that it cannot carry.
    #[must_use]
    pub fn datatype(self) -> Option<DataType> {
        skep_onnx::datatype(self.0)
    }

    /// The bits of an element; `None` for a type that ONNX does not have.
    ///
    /// Types below a byte are packed; a string counts as the handle that ONNX Runtime keeps of it.
    #[must_use]
    pub fn bits(self) -> Option<usize> {
        Some(match Onnx::try_from(self.0) {
            Ok(Onnx::Undefined) => return None,
            Ok(Onnx::Uint4 | Onnx::Int4) => 4,
            Ok(
                Onnx::Bool
                | Onnx::Uint8
                | Onnx::Int8
                | Onnx::Float8e4m3fn
                | Onnx::Float8e4m3fnuz
                | Onnx::Float8e5m2
                | Onnx::Float8e5m2fnuz,
            ) => 8,
            Ok(Onnx::Uint16 | Onnx::Int16 | Onnx::Float16 | Onnx::Bfloat16) => 16,
            Ok(Onnx::Uint32 | Onnx::Int32 | Onnx::Float) => 32,
            Ok(Onnx::Uint64 | Onnx::Int64 | Onnx::Double | Onnx::Complex64) => 64,
            Ok(Onnx::Complex128) => 128,
            Ok(Onnx::String) => STRING_BITS,
            Err(_) => NEWER.iter().find(|newer| newer.0 == self.0)?.2,
        })
    }

    /// The bytes of a tensor, packed elements to the next full byte; `None` when they cannot be addressed, or for a
    /// type that ONNX does not have.
    pub(super) fn bytes(self, shape: &Shape) -> Option<usize> {
        let bits = shape.element_count().checked_mul(self.bits()?)?;
        Some(bits.div_ceil(8))
    }

    /// Whether its values are whole numbers or truths.
    pub(super) fn is_integer(self) -> bool {
        matches!(
            Onnx::try_from(self.0),
            Ok(Onnx::Bool
                | Onnx::Uint8
                | Onnx::Int8
                | Onnx::Uint16
                | Onnx::Int16
                | Onnx::Uint32
                | Onnx::Int32
                | Onnx::Uint64
                | Onnx::Int64)
        )
    }

    /// Whether its values are floats that inference computes with.
    pub(super) fn is_float(self) -> bool {
        matches!(Onnx::try_from(self.0), Ok(Onnx::Float | Onnx::Double))
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Onnx::try_from(self.0) {
            Ok(known) => f.write_str(known.as_str_name()),
            Err(_) => match NEWER.iter().find(|newer| newer.0 == self.0) {
                Some((_, name, _)) => f.write_str(name),
                None => write!(f, "element type {}", self.0),
            },
        }
    }
}
