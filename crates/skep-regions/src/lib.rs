//! Shared-memory regions of clients.
//!
//! A client creates an object in `/dev/shm`, registers a range of it as a *region*, and then names spans of the region
//! as the places of inputs and outputs. [`ClientRegions`] is the table of regions, a [`RegionSpan`] is a place of a
//! tensor.
//!
//! ```text
//! object   |---------------------------------------------|   the client's, of any length at any time
//! region             |<- offset   byte_size   ->|            checked at registration
//! span                    |<- data ->|                       checked against the region, and at each use against
//!                                                            the object
//! ```
//!
//! **The client is not trusted.** It can write to its object and shorten it whenever it likes, also while a request
//! runs. So nothing here maps an object:
//!
//! - An access to a mapping beyond the end of a shortened object is SIGBUS, which ends the server. `pread` and `pwrite`
//!   return short or with an error. They also do so if the file system of `/dev/shm` is full.
//! - A handler of SIGBUS would save the server, but not make it safe to run on the client's bytes. Kernels of operators
//!   read inputs more than once. ONNX Runtime's `Gather` checks all indices and then reads them again to copy by them;
//!   `NonZero` and `Compress` count first and then write; `TopK` sorts. Values that change between the two reads make
//!   them read or write outside of their buffers. The same holds for outputs, which later operators of the graph read.
//!
//! So an input is copied into private memory before anything looks at it, and an output is copied into the region once
//! the model has finished. That is one copy of a tensor each, where a request over a connection takes two (from the
//! socket, and into one piece).
//!
//! **What can be named.** A key is the name of a regular file directly in `/dev/shm`. The server and its workers keep
//! their memory in anonymous files without a name there. The server opens objects with its own rights, so a client
//! that may register regions can read and write every object that the server's user can: registration is off unless
//! the operator allows it.
//!
//! The server never creates, removes or lengthens an object, with one exception: an object that is shortened while an
//! output is written to it may be extended again, at most to the end of its region.
//!
//! Texts of errors are Triton's where its clients search for them.

mod error;
mod key;
mod region;
mod table;

pub use error::{RegionError, RegionErrorKind};
pub use region::RegionSpan;
pub use table::{ClientRegions, MAX_NAME_BYTES, MAX_REGIONS, RegionStatus};
