//! Planners of other systems, by their published rules, to compare with.
//!
//! ONNX Runtime's memory pattern is [`crate::offsets::in_time`]; XLA's heap simulator is [`crate::offsets::best_fit`]
//! in its orders.

mod coloring;
mod executorch;
mod somas;
pub mod tvm;

pub use coloring::coloring;
pub use executorch::executorch_greedy;
pub use somas::somas_best_fit;
