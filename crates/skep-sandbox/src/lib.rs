//! Instances in processes of their own.
//!
//! A model whose configuration says `isolation` `process` is loaded by [`load`] instead of its backend. Each of
//! its instances then is a *worker process*: the server's own executable with the command [`COMMAND`], which loads the
//! model by itself, gives up the rights that a running model has no use for, and runs one batch at a time.
//!
//! ```text
//! server process                                        worker process, one an instance
//!   SandboxedModel  signature, how to start workers       Backend -> Model -> Instance
//!   SandboxedInstance --- messages over a socket ----->   worker::run
//!                     --- inputs: memory file ------->    mapped for reading
//!                     <-- outputs: memory file -------    mapped for writing
//! ```
//!
//! The server trusts nothing that a worker says: every message is bounded and checked, tensors are copied out of the
//! shared memory before they are looked at, and the server never maps that memory. What ends a worker costs the batch
//! that it runs; the instance then says that it is lost ([`Instance::is_lost`](skep_backend::Instance::is_lost)), and
//! its owner makes another one.

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

pub use bake::{BakeEnd, BakeLimits, bake};
pub use cancel::Cancel;
pub use load::{ask, load};
pub use process::COMMAND;
