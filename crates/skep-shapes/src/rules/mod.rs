//! Output shapes, a room a family of operators. Each rule reads a [`Call`](super::call::Call) and gives the dimensions
//! of its outputs in order.

pub(super) mod attention;
pub(super) mod create;
pub(super) mod elementwise;
pub(super) mod image;
pub(super) mod index;
pub(super) mod join;
pub(super) mod matmul;
pub(super) mod ml;
pub(super) mod normalise;
pub(super) mod quantised;
pub(super) mod recurrent;
pub(super) mod reduce;
pub(super) mod reshape;
pub(super) mod sequence;
pub(super) mod signal;
pub(super) mod slice;
pub(super) mod window;

use crate::{call::Dims, error::Refusal};

/// What every rule of shapes gives.
pub(super) type Shapes = Result<Vec<Dims>, Refusal>;

/// One output of these dimensions.
fn one(dims: impl Into<Dims>) -> Shapes {
    Ok(vec![dims.into()])
}
