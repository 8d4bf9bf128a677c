//! How large a tensor may be.

use skep_types::Shape;

use crate::{
    element::ElementType,
    error::{InferError, list},
};

/// The most dimensions; NumPy's own limit, and far above what any operator gives sense to.
pub(super) const MAX_RANK: usize = 64;

/// The shape, if its rank is within [`MAX_RANK`] and its bytes can be addressed.
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

/// The limit in errors about tensors whose bytes cannot be addressed.
const NO_MEMORY: &str = "no memory can hold it";

/// Checks that a tensor's size in bytes is known and can be addressed.
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
