//! The laboratory of allocators: a memory trace replayed over an imagined device, and what each allocator makes of it.
//!
//! ```text
//! TraceEvent ---> Bench of one allocator ---> SimulatedSource          a limit, failures, what calls cost
//!            |                           or MeasuredSource           real memory, what calls took
//!            \--> Bench of another ...
//!             \-> Lifetimes ---> the planner: the least that any allocator could have reserved
//! ```
//!
//! All benches get each event in turn, so a trace is read once and never held as a whole. Only the offline optimum needs
//! the live range of every block. Pure: the clock that measures calls is an argument.

mod bench;
mod bench_source;
mod cost;
mod histogram;
mod lifetimes;
mod measured;
mod simulated;
mod summary;

pub use bench::{Bench, BenchFigures, BlockSpan, CallTimes, Clock, Locality};
pub use bench_source::BenchSource;
pub use cost::{CostModel, InvalidCost};
pub use lifetimes::{Lifetimes, OfflineOptimum};
pub use measured::{BlockUse, EventCounter, MeasuredSource, UsableSource, UseEvents};
pub use simulated::{SimulatedSource, SourceCalls, SourceOptions};
pub use summary::{Spread, TraceFigures, TraceSummary};
