//! Why a NumPy file and a tensor do not become each other.

use skep_types::ShapeError;

/// NumPy's own limit.
pub(super) const MAX_RANK: usize = 64;

/// Why a file is no tensor, or a tensor no file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NpyError {
    /// It begins otherwise than a `.npy` file.
    #[error("is not a .npy file")]
    Magic,
    /// A version of the format that came later.
    #[error("is of version {0} of the .npy format, expected 1 to 3")]
    Version(u8),
    /// The header is cut off or cannot be read.
    #[error("has a broken header: {0}")]
    Header(&'static str),
    /// Elements that no tensor has.
    #[error("holds elements of dtype `{0}`, which no tensor has")]
    Elements(String),
    /// More elements than can be addressed.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Less or more data than the header says.
    #[error("holds {got} bytes of data, expected {expected}")]
    Size {
        /// Bytes that the header demands.
        expected: usize,
        /// Bytes there are.
        got: usize,
    },
    /// A text element holds an invalid code point.
    #[error("holds text with {0:#x}, which is not a character")]
    Text(u32),
    /// More dimensions than NumPy takes.
    #[error("has {0} dimensions, NumPy takes at most {MAX_RANK}")]
    Rank(usize),
    /// An element ends with a zero byte, which the file would not keep.
    #[error("has an element that ends with a zero byte, which a .npy file does not keep")]
    Zero,
}
