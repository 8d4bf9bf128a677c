//! How large a tensor may be.

use skep_types::Shape;

use crate::{
    element::ElementType,
    error::{InferError, list},
};

/// The most dimensions; NumPy's own limit, and far above what any operator gives sense to.
pub(super) const MAX_RANK: usize = 64;

/// A shape whose bytes can be addressed, of a rank that something can be done with.
pub(super) fn checked(
    tensor: &str,
    element: ElementType,
    dims: &[usize],
) -> Result<Shape, InferError> {
    let too_large = |limit: &str| InferError::TooLarge {
        tensor: tensor.to_owned(),
        shape: list(&dims[..dims.len().min(MAX_RANK)]),
        limit: limit.to_owned(),
    };
    if dims.len() > MAX_RANK {
        return Err(too_large(&format!(
            "it has {} dimensions, expected at most {MAX_RANK}",
            dims.len()
        )));
    }
    let shape = Shape::new(dims).map_err(|_| too_large(NO_MEMORY))?;
    addressable(tensor, element, &shape)?;
    Ok(shape)
}

/// What a tensor exceeds whose bytes cannot be addressed.
const NO_MEMORY: &str = "no memory holds it";

/// Whether the bytes of a tensor can be told, and addressed.
pub(super) fn addressable(
    tensor: &str,
    element: ElementType,
    shape: &Shape,
) -> Result<(), InferError> {
    if element.bits().is_none() {
        return Err(InferError::ElementType {
            tensor: tensor.to_owned(),
            element,
        });
    }
    let bytes = element.bytes(shape).ok_or_else(|| InferError::TooLarge {
        tensor: tensor.to_owned(),
        shape: shape.to_string(),
        limit: NO_MEMORY.to_owned(),
    });
    bytes.map(drop)
}
