//! What serving an ONNX model will take, before anything runs.
//!
//! ```text
//! model + shapes -> graph_usage       what a run allocates: records for the planner, of the graph as written
//!                                     or as ONNX Runtime rewrites it
//!                -> MemoryEstimate    bytes by class (weights, intermediates, workspace, runtime), for any number
//!                                     of instances
//! ```
//!
//! Pure: the same model, shapes and [`CpuTraits`] give the same figures on any machine.

mod estimate;
mod usage;

pub use estimate::{MemoryClasses, MemoryEstimate};
pub use usage::{CpuTraits, GraphUsage, RewriteLevel, graph_usage};
