//! All models of a node: start, lookups, loads and unloads, stop.
//!
//! ```text
//! start, poll, management (clients) --> management/queue --> changes: load, reload, unload
//!                                                              |--> records   the state of each version, and why
//! requests --> lookup --> routes  <----------------------------+--> routes    the versions that take requests
//! ```
//!
//! [`runtime`] holds the state; the other files act on it. [`residency`] decides which models are in memory: it is one
//! more source of the queue's calls, beside [`poll`], and it admits loads. [`ensembles`] finds the parts of ensembles and
//! has them loaded first.

mod changes;
mod ensembles;
mod lookup;
mod management;
mod poll;
mod poll_failures;
mod readiness;
mod records;
mod residency;
mod routes;
mod runtime;
mod start;
mod start_phase;
mod stop;
mod stop_signal;

pub use records::{IndexEntry, VersionState};
pub use residency::{
    DecisionKind, DecisionReport, ModelReport, ResidencyReport, ResidencySettings, ResidencySums,
    RunReport, slack as residency_slack,
};
pub use runtime::{Control, Runtime, RuntimeOptions};
pub use start::StartReport;
