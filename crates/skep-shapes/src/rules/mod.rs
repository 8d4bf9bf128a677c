//! Output shapes, a room a family of operators. Each rule reads an [`OperatorCall`](crate::call::OperatorCall) and
//! gives the dimensions of its outputs in order.

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

use crate::{call::OutputDims, error::RuleRefusal};

/// The result of every rule of shapes.
pub(super) type OutputShapes = Result<Vec<OutputDims>, RuleRefusal>;

/// One output of these dimensions.
fn one(dims: impl Into<OutputDims>) -> OutputShapes {
    Ok(vec![dims.into()])
}
