//! The instances of a loaded version: started, fed by the driver, removed.
//!
//! ```text
//! pool      the responder: adds and removes instances as the configuration asks
//!   members   which there are, and which are wanted
//!   copies    the loaded copies of the model that they run on
//!   start     an instance's thread from its beginning: executable copy, warm-up, profile, then
//!   thread    batch -> answer, again and again; recreates a copy that panicked or was lost
//!     runner    the executable copy: inputs gathered, model run, outputs split
//!     watch     the deadline of each execution
//! ```
//!
//! Instances come and go while requests run. New ones are ready before old ones leave, and an instance that leaves
//! finishes its batch.

mod back_off;
mod copies;
mod inputs;
mod members;
mod outputs;
mod pool;
mod profile;
mod runner;
mod start;
mod thread;
pub(crate) mod warmup;
pub(crate) mod watch;

pub(crate) use copies::{CopyTerms, LoadCopy, LoadedCopy, ModelCopies};
pub(crate) use pool::{ExecutionLimits, InstanceHome, InstancePool};
