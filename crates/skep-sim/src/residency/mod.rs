//! Many models under a memory budget, over virtual time.
//!
//! ```text
//!   Fleet: models, sizes, requests --->  Residency (policy, budget)  ---> ResidencyOutcome   hits, waits, bytes loaded
//!                                         ^                    |
//!                                         +-- loads, unloads --+      each takes its time
//! ```
//!
//! [`simulate`] drives the server's own state machine with one policy. [`foresee`] is what an eviction policy reaches that
//! knows all future requests, and [`bound`] what none can exceed.

mod bound;
mod fleet;
mod foresight;
mod run;

pub use bound::bound;
pub use fleet::{Fleet, FleetModel, FleetRequest, FleetTerms};
pub use foresight::foresee;
pub use run::{ResidencyOutcome, simulate};
pub use skep_placer::residency::{EvictionPolicy, UnknownEvictionPolicy};
