//! The per-node tensor store: each weight is in memory once, however many instances, models and processes use it.
//!
//! ```text
//! Store::acquire(tenant, wanted, order, fill)
//!   there already?      lease, at once
//!   not being filled?   ticket: fill a memory file, seal it, hand it over; verified, published, leased
//!   being filled?       wait; lease, or the ticket if the filler is gone
//! -> Lease: bytes(i), file_range(i); ends with its last clone
//! ```
//!
//! A tensor is identified by a [`Digest`] of its datatype, dims, layout and bytes. Tensors lie in *segments*: memory
//! files that their maker seals before it shares them, so that no process can write them any more. The store checks a
//! segment (its seals, its size, each tensor's digest) before it publishes it.
//!
//! The decisions are a pure state machine, `ledger`. Around it, `tenant_store` holds the segments and the waiting
//! holders. `acquire` is the user's side, the same for a store in this process and for a daemon.
//!
//! Each [`Tenant`] has its own ledger, segments and bounds. A tenant cannot even learn whether another one has a
//! tensor.

mod acquire;
mod availability;
mod client;
mod daemon;
mod digest;
mod error;
mod figures;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod layout;
mod lease;
mod ledger;
mod local;
mod options;
mod order;
mod rights;
mod segment;
mod server;
mod store;
mod tenant;
mod tenant_store;
mod wire;

#[cfg(test)]
mod fault_tests;

pub use acquire::Fill;
pub use daemon::{Daemon, Reliever, Stopper};
pub use digest::{Description, Digest, MAX_DIMS, MAX_LAYOUT_BYTES, Wanted};
pub use error::{ErrorKind, FillError, StoreError};
pub use figures::{Acquired, Stat, StoredTensor};
pub use lease::{FileRange, Lease, Present};
pub use options::StoreOptions;
pub use order::LoadOrder;
pub use store::Store;
pub use tenant::{InvalidTenant, Tenant, default_directory};
