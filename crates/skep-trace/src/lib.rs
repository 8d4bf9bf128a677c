//! Reads the memory traces that other tools write, as a stream of allocations and frees.
//!
//! ```text
//! input -> gzip or plain -> TraceFormat (by content) -> table        the event table, which Skep also writes
//!                                                    -> tensorflow   logs of `__LOG_MEMORY__`
//!                                                    -> pytorch      profiles (JSON), CUDA snapshots (pickle)
//!                                                    -> xla          the heap simulator's traces in `*.hlo.pb`
//!       -> blocks: a free finds its block -> TraceEvent
//! ```
//!
//! Pure: the caller opens the input. Memory grows with the blocks that are live, except for snapshots and XLA's dumps,
//! which are kept whole; time and memory are at most in proportion to the (decompressed) length. A trace in which
//! frees and allocations do not match is read all the same, and what did not match is counted
//! ([`TraceReader::unmatched`]). Damage ends the stream with an error that says where it is.
//!
//! ```
//! use skep_trace::{BlockId, TraceEvent, TraceReader};
//!
//! let table = "op,id,bytes\na,x,64\na,y,32\nf,x,\nf,z,\n";
//! let mut reader = TraceReader::open(table.as_bytes())?;
//! let events = reader.by_ref().collect::<Result<Vec<_>, _>>()?;
//! assert_eq!(events[2], TraceEvent::Free { block: BlockId(0) });
//! let unmatched: Vec<_> = reader.unmatched().iter().collect();
//! assert_eq!(unmatched, [("free of an id never allocated", 1)]);
//! # Ok::<(), skep_trace::TraceError>(())
//! ```

mod blocks;
mod error;
mod event;
mod format;
mod input;
mod lines;
mod pytorch;
mod reader;
mod table;
mod tensorflow;
mod unmatched;
mod xla;

pub use error::TraceError;
pub use event::{BlockId, TraceEvent};
pub use format::TraceFormat;
pub use reader::TraceReader;
pub use table::write_events;
pub use unmatched::Unmatched;

/// The largest size of a block, in bytes: no address space holds a larger one.
pub const MAX_BLOCK_BYTES: u64 = 1 << 63;
