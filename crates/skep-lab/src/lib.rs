//! The laboratory of allocators: a memory trace replayed over an imagined device, and what each allocator makes of it.
//!
//! ```text
//! TraceEvent ---> Bench of one allocator ---> SimulatedSource          a limit, failures, what calls cost
//!            \--> Bench of another ...
//!             \-> Lifetimes ---> the planner: the least that any allocator could have reserved
//! ```
//!
//! All benches get each event in turn, so a trace is read once and never held as a whole. Only the offline optimum needs
//! the live range of every block. Pure: the clock that measures calls is an argument.

mod bench;
mod cost;
mod histogram;
mod lifetimes;
mod simulated;

pub use bench::{Bench, BenchFigures, BlockSpan, CallTimes, Clock, Locality};
pub use cost::{CostModel, InvalidCost};
pub use lifetimes::{Lifetimes, OfflineOptimum};
pub use simulated::{SimulatedSource, SourceCalls, SourceOptions};
