//! Instances in worker processes.
//!
//! For a model with `isolation` `process`, the server calls [`load()`] instead of its backend. Each instance is then a
//! *worker process*: the server's own executable with the command [`COMMAND`]. It loads the model, gives up every right
//! that a running model does not need, and runs one batch at a time.
//!
//! ```text
//! server process                                        worker process, one per instance
//!   SandboxedModel  signature, how to start workers       Backend -> Model -> Instance
//!   SandboxedInstance --- messages over a socket ----->   worker::run
//!                     --- inputs: memory file ------->    mapped for reading
//!                     <-- outputs: memory file -------    mapped for writing
//! ```
//!
//! The server trusts nothing that a worker says. It bounds and checks every message, copies tensors out of the shared
//! memory before it looks at them, and never maps that memory. A worker that ends loses the batch that it runs; the
//! instance then reports itself lost ([`Instance::is_lost`](skep_backend::Instance::is_lost)), and its owner makes
//! another one.

mod bake;
mod cancel;
mod channel;
mod conversation;
mod load;
mod log;
mod memory;
mod message;
mod model;
mod process;
mod signature;
mod starter;
pub mod worker;
mod workers;

pub use bake::{BakeEnd, BakeLimits, bake};
pub use cancel::Cancel;
pub use load::{ask, load};
pub use process::COMMAND;
pub use workers::{worker_bytes, worker_cpu_time};
