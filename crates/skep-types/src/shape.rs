//! Shapes of tensors, and dims that may have variable entries.

use std::fmt;

use smallvec::SmallVec;

/// Rank up to which a shape stays off the heap; models beyond rank 6 are rare.
const INLINE_RANK: usize = 6;

/// A concrete shape: every dimension known, zero allowed, the number of elements within `usize`.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(SmallVec<[usize; INLINE_RANK]>);

/// Why a list of numbers is not a shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A dimension below zero.
    #[error("shape {0} has a negative dimension")]
    Negative(String),
    /// More elements than can be addressed.
    #[error("shape {0} has more elements than can be addressed")]
    TooLarge(String),
}

impl Shape {
    /// A shape from dimensions.
    ///
    /// # Errors
    /// [`ShapeError::TooLarge`] if the product of the non-zero dimensions overflows.
    pub fn new(dims: &[usize]) -> Result<Self, ShapeError> {
        // The product leaves out zeros on purpose: a zero must not make [0, 2^63, 2^63] valid.
        let product = dims
            .iter()
            .filter(|&&d| d != 0)
            .try_fold(1usize, |n, &d| n.checked_mul(d));
        // The largest element has 8 bytes, and a byte size must fit `isize`, the limit of any allocation.
        if product.is_none_or(|n| n > usize::MAX >> 4) {
            return Err(ShapeError::TooLarge(list(dims)));
        }
        Ok(Self(SmallVec::from_slice(dims)))
    }

    /// A shape from the wire's signed dimensions.
    ///
    /// # Errors
    /// [`ShapeError::Negative`] for a dimension below zero, [`ShapeError::TooLarge`] as in [`Shape::new`].
    pub fn from_wire(dims: &[i64]) -> Result<Self, ShapeError> {
        let unsigned: Option<SmallVec<[usize; INLINE_RANK]>> =
            dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        Self::new(&unsigned.ok_or_else(|| ShapeError::Negative(list(dims)))?)
    }

    /// The shape of a scalar: rank 0, one element.
    #[must_use]
    pub fn scalar() -> Self {
        Self::default()
    }

    /// The dimensions.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// The number of dimensions.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The number of elements; never overflows (checked at construction).
    #[must_use]
    pub fn element_count(&self) -> usize {
        self.0.iter().product()
    }

    /// This shape with its first dimension replaced: the same tensor at another batch size.
    ///
    /// # Errors
    /// [`ShapeError::TooLarge`] if the result has too many elements.
    pub fn with_batch(&self, batch: usize) -> Result<Self, ShapeError> {
        let mut dims = self.0.clone();
        if let Some(first) = dims.first_mut() {
            *first = batch;
        }
        Self::new(&dims)
    }

    /// The dimensions as signed numbers, as on the wire.
    #[must_use]
    pub fn to_wire(&self) -> Vec<i64> {
        // A shape's element count fits `isize`, so each of its dimensions fits `i64` unless another is zero.
        self.0
            .iter()
            .map(|&d| i64::try_from(d).unwrap_or(i64::MAX))
            .collect()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&list(&self.0))
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&list(&self.0))
    }
}

/// Dimensions as a model or a configuration declares them; some may be variable (-1).
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Dims(SmallVec<[i64; INLINE_RANK]>);

/// Dimensions below -1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("dims {0} contain a number below -1, expected sizes of at least 0, or -1 for variable")]
pub struct InvalidDims(pub String);

impl Dims {
    /// Dims from numbers; -1 means variable.
    ///
    /// # Errors
    /// [`InvalidDims`] for any number below -1.
    pub fn new(dims: &[i64]) -> Result<Self, InvalidDims> {
        if dims.iter().any(|&d| d < -1) {
            return Err(InvalidDims(list(dims)));
        }
        Ok(Self(SmallVec::from_slice(dims)))
    }

    /// The dimensions, -1 for variable.
    #[must_use]
    pub fn as_slice(&self) -> &[i64] {
        &self.0
    }

    /// The number of dimensions.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// A variable batch dimension followed by these dims.
    #[must_use]
    pub fn with_batch(&self) -> Self {
        let mut dims = SmallVec::with_capacity(self.0.len() + 1);
        dims.push(-1);
        dims.extend_from_slice(&self.0);
        Self(dims)
    }

    /// Whether a concrete shape fits: it has the same rank and equals every dimension that is not variable.
    #[must_use]
    pub fn accepts(&self, shape: &[usize]) -> bool {
        self.0.len() == shape.len()
            && self
                .0
                .iter()
                .zip(shape)
                .all(|(&d, &s)| d == -1 || usize::try_from(d).is_ok_and(|d| d == s))
    }

    /// The concrete shape, if no dimension is variable.
    #[must_use]
    pub fn to_shape(&self) -> Option<Shape> {
        Shape::from_wire(&self.0).ok()
    }
}

impl fmt::Display for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&list(&self.0))
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&list(&self.0))
    }
}

/// `[1,2,3]`, as in Triton's messages.
fn list<T: fmt::Display>(numbers: &[T]) -> String {
    let inner: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    format!("[{}]", inner.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflowing_shapes_are_refused_even_beside_a_zero() {
        assert!(Shape::new(&[usize::MAX, 2]).is_err());
        assert!(Shape::new(&[0, usize::MAX, 2]).is_err());
        assert!(Shape::from_wire(&[-1]).is_err());
        assert_eq!(Shape::new(&[0, 3]).map(|s| s.element_count()), Ok(0));
        assert_eq!(Shape::scalar().element_count(), 1);
    }

    #[test]
    fn dims_accept_by_rank_and_fixed_entries() {
        let dims = Dims::new(&[-1, 3]).expect("valid");
        assert!(dims.accepts(&[7, 3]));
        assert!(!dims.accepts(&[7, 4]));
        assert!(!dims.accepts(&[3]));
        assert_eq!(dims.to_shape(), None);
        assert_eq!(dims.to_string(), "[-1,3]");
        assert!(Dims::new(&[-2]).is_err());
    }
}
