//! Applications on a cluster, over virtual time, under the rules of several platforms.
//!
//! ```text
//!   ClusterScenario                                      Platform: what configurations, shared or not, how batches form
//!     applications: requests, stages  ---> run.rs          |
//!     models: configurations, tensors        |             v
//!     nodes: cores, memory                   +--> control.rs: how many instances, of which kind  (skep_placer::selection)
//!                                            +--> nodes.rs:   where, and what they hold there    (skep_placer::placement)
//!                                            +--> instance.rs: batches                           (skep_scheduler)
//!                                            |
//!                                            +--> ClusterOutcome: memory, cores, late requests, cold starts, cost
//! ```
//!
//! The decisions are the production code's: each instance has a [`skep_scheduler::Scheduler`], configurations are chosen
//! by [`skep_placer::selection`], nodes by [`skep_placer::placement`]. What the platforms differ in is data, in
//! `platform.rs`: all of them get the same requests, the same profiles and the same costs.
//!
//! # What is simulated
//!
//! A request of an application passes through its stages, each a model with an objective of its own; it is in time if it
//! is answered within their sum. An instance is a configuration: it owns its CPUs and its private memory from the moment
//! at which it starts, and answers once its process runs and its tensors are there. A run takes what the profile says for
//! so many runs at once, times a random factor. There is no network.

mod control;
mod demand;
mod instance;
mod nodes;
mod outcome;
mod pattern;
mod platform;
mod run;
mod scenario;
#[cfg(test)]
mod tests;
mod times;

pub use outcome::{ClusterOutcome, memory_dollars};
pub use pattern::RatePattern;
pub use platform::{Placement, Platform, UnknownPlacement, UnknownPlatform};
pub use run::simulate;
pub use scenario::{
    Application, ClusterModel, ClusterScenario, InvalidScenario, LatencyFormula, StartCosts,
};
pub use skep_placer::{packing::Resources, residency::TensorKey, selection::Configuration};
