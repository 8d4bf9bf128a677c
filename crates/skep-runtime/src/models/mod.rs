//! All models of a node: start, lookups, loads and unloads, stop.
//!
//! ```text
//! start, poll, management (clients) --> management/queue --> changes: load, reload, unload
//!                                                              |--> records   the state of each version, and why
//! requests --> lookup --> routes  <----------------------------+--> routes    the versions that take requests
//! ```
//!
//! [`runtime`] holds the state; the other files act on it. Residency (loading a model on its first request, unloading
//! idle ones) belongs here too: as another source of the queue's calls, asked by [`lookup`] when a request finds no
//! route.

mod changes;
mod lookup;
mod management;
mod poll;
mod poll_failures;
mod readiness;
mod records;
mod routes;
mod runtime;
mod start;
mod start_phase;
mod stop;
mod stop_signal;

pub use records::{IndexEntry, VersionState};
pub use runtime::{Control, Runtime, RuntimeOptions};
pub use start::StartReport;
