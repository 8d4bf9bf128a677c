//! Static shape inference: the element type and shape of each tensor of a graph, before anything runs.
//!
//! [`infer_shapes`] walks the main graph in an order in which each node follows what it reads. Each operator has a rule
//! in [`table`]: what types its outputs have, what shapes, and for operators of shape arithmetic what values, since
//! exporters compute the shapes that they hand to `Reshape`, `Expand` and others from `Shape`. Model-local functions
//! and the graphs of `If`, `Loop` and `Scan` are walked as well.
//!
//! Where a shape depends on values known only in a run, the caller may state it ([`GivenShapes`]) or the file may
//! declare it; otherwise inference ends with an error that says what to state. Time and memory are bounded whatever the
//! file holds.
//!
//! Source of the rules: the operators' specifications of ONNX (operator sets 7 to 24), and for the domain
//! `com.microsoft` those of ONNX Runtime.

mod batching;
mod call;
mod declaration;
mod element;
mod error;
mod fact;
mod given;
mod infer;
mod limits;
mod order;
mod rules;
mod scope;
mod table;
#[cfg(test)]
#[path = "../../skep-onnx/src/test_values.rs"]
mod test_values;
#[cfg(test)]
mod tests;
mod trial;
mod values;
mod walk;

pub use batching::{why_names_do_not_batch, why_not_batched};
pub use element::ElementType;
pub use error::{InferError, NodeName};
pub use fact::KnownFrom;
pub use given::GivenShapes;
pub use infer::{InferredShapes, InferredTensor, infer_shapes};
pub use trial::computed_outputs;
