//! The server's scheduler over virtual time.
//!
//! A discrete-event simulator that drives [`skep_scheduler::Scheduler`] itself, so that its findings about a
//! policy hold for the code that serves. There is no clock, no thread and no I/O here, and randomness is a seed:
//! the same arguments give the same outcome.
//!
//! ```text
//!   Arrivals ----+                                 +---> TraceOutcome   what became of the requests
//!   or clients   |     Scheduler (policy)          |
//!                +--->   ^            |            |
//!                        |            v            |
//!                     finished    Dispatch --------+
//!                        |            |
//!            SimulatedModel: LatencyTable x instances, jitter, stretch
//! ```
//!
//! [`simulate`] runs one policy on one trace of arrivals. [`bound`] says what no policy can exceed on that trace.
//! [`OperatingPoint::compare`] does both for several [`Contender`]s and seeds, and finds the best static setting of
//! Triton's batcher on the way.
//!
//! [`residency`] drives [`skep_placer::residency::Residency`] in the same way: many models, requests for them, and a
//! memory budget.
//!
//! [`cluster`] drives the placer and a scheduler for each instance: applications on many nodes, under the rules of several
//! platforms.
//!
//! A policy of one's own is a [`BatchPolicy`]: [`simulate_own`] runs it, [`Contender::Own`] compares it with the
//! others. A crate with such a policy depends on this one alone: what it needs of the scheduler's types is here too.

mod arrivals;
mod bound;
pub mod cluster;
mod contender;
mod model;
mod outcome;
mod own;
mod point;
mod random;
mod recorded;
pub mod residency;
mod setting;
mod simulation;

pub use arrivals::Arrivals;
pub use bound::bound;
pub use contender::{Contender, UnknownContender};
pub use model::{Capacity, InvalidTable, Jitter, LatencyTable, SimulatedModel};
pub use outcome::TraceOutcome;
pub use own::{BatchPolicy, Decision, OwnPolicy, WaitingRequests};
pub use point::{OperatingPoint, PolicyFigures, Spread};
pub use random::{RandomPurpose, RandomStream};
pub use recorded::{InvalidArrivals, RecordedArrivals};
pub use setting::{InvalidSetting, StaticSetting};
pub use simulation::{Clients, Setup, Workload, simulate, simulate_own};
pub use skep_scheduler::ObjectivePolicy;
pub use skep_types::Time;
