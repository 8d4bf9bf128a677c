//! All models of a node: start, lookups, loads and unloads, stop.
//!
//! ```text
//! start, poll, management (clients) --> management/queue --> changes: load, reload, unload
//!                                                              |--> records   the state of each version, and why
//! requests --> lookup --> routes  <----------------------------+--> routes    the versions that take requests
//! ```
//!
//! [`runtime`] holds the state; the other files act on it. Whatever else decides which models are loaded (residency: on
//! the first request, until they are idle) is one more source of the queue's calls, beside [`poll`].

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
