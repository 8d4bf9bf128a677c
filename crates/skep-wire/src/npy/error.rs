//! Why a NumPy file cannot become a tensor, or a tensor a NumPy file.

use skep_types::ShapeError;

/// NumPy's own limit.
pub(super) const MAX_RANK: usize = 64;

/// Why a file cannot become a tensor, or a tensor a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NpyError {
    /// It does not begin like a `.npy` file.
    #[error("is not a .npy file")]
    Magic,
    /// A later version of the format.
    #[error("is of version {0} of the .npy format, expected 1 to 3")]
    Version(u8),
    /// The header is truncated or malformed.
    #[error("has a broken header: {0}")]
    Header(&'static str),
    /// Elements of a type that tensors do not have.
    #[error("holds elements of dtype `{0}`, which no tensor has")]
    Elements(String),
    /// More elements than can be addressed.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Less or more data than the header declares.
    #[error("holds {got} bytes of data, expected {expected}")]
    Size {
        /// Bytes that the header declares.
        expected: usize,
        /// Bytes in the file.
        got: usize,
    },
    /// A text element holds an invalid code point.
    #[error("holds text with {0:#x}, which is not a character")]
    Text(u32),
    /// More dimensions than NumPy supports.
    #[error("has {0} dimensions, NumPy takes at most {MAX_RANK}")]
    Rank(usize),
    /// An element ends with a zero byte, which the file would lose.
    #[error("has an element that ends with a zero byte, which a .npy file does not keep")]
    Zero,
}
