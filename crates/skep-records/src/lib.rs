//! Reads and writes the files in which other tools keep usage records: MiniMalloc's tables and XLA's dumps.
//!
//! ```text
//! bytes -> unpack (gzip) -> Format::of (by content) -> csv::read          MiniMalloc's CSV, usage records
//!                                                   -> xla::read_text     a buffer assignment and its live ranges
//!                                                   -> xla::read_proto    the same run as a message
//! ```
//!
//! Pure: bytes in, [`UsageRecords`](skep_planner::UsageRecords) out; the caller opens the files. Reading any bytes
//! takes time and memory in proportion to their length, and ends with records or with an error that says where and why.
//!
//! ```
//! let table = skep_records::csv::read(b"id,lower,upper,size\na,0,3,4\nb,3,9,4\n")?;
//! assert_eq!(table.records.names(), ["a", "b"]);
//! assert_eq!(table.records.problem().buffers()[1].start, 3);
//! # Ok::<(), skep_records::RecordsError>(())
//! ```

pub mod csv;
mod error;
mod format;
mod unpack;
pub mod xla;

pub use error::RecordsError;
pub use format::Format;
pub use unpack::unpack;

/// The most buffers that a file may hold: names, live ranges and the search for duplicates take about 200 bytes each.
pub const MAX_BUFFERS: usize = 1 << 22;
