//! Usage records for [`skep_planner`] out of ONNX graphs and of what other tools write.
//!
//! ```text
//! bytes -> unpack (gzip) -> Format::of (by content) -> csv::read          MiniMalloc's CSV, usage records
//!                                                   -> xla::read_text     a buffer assignment and its live ranges
//!                                                   -> xla::read_proto    the same run as a message
//! model, its shapes -> onnx::usage                  as it is in the file, or as ONNX Runtime rewrites it
//! ```
//!
//! [`Records`] are a problem whose buffers have names. [`estimate`] adds weights and what a server
//! needs besides. Pure: bytes in, records out, no file is opened here. Whatever the
//! bytes are, reading takes time and memory in proportion to them, and ends with records or with an error that says
//! where and why.
//!
//! ```
//! let table = skep_records::csv::read(b"id,lower,upper,size\na,0,3,4\nb,3,9,4\n")?;
//! assert_eq!(table.records.names(), ["a", "b"]);
//! assert_eq!(table.records.problem().buffers()[1].start, 3);
//! # Ok::<(), skep_records::RecordsError>(())
//! ```

pub mod csv;
mod error;
pub mod estimate;
mod format;
pub mod onnx;
mod records;
mod unpack;
pub mod xla;

pub use error::RecordsError;
pub use format::Format;
pub use records::Records;
pub use unpack::unpack;

/// The most buffers that are read of a file: names, live ranges and what finds duplicates take about 200 bytes each.
pub const MAX_BUFFERS: usize = 1 << 22;
