//! The per-node tensor store: every weight once in memory, however many instances, models and processes use it.
//!
//! ```text
//! Store::acquire(tenant, wanted, order, fill)
//!   there already?      lease, at once
//!   nobody fills it?    ticket: fill a memory file, seal it, hand it over; verified, published, leased
//!   somebody fills it?  wait; lease, or the ticket if the filler is gone
//! -> Lease: bytes(i), place(i); ends with its last clone
//! ```
//!
//! A tensor is called by a [`Digest`] of its datatype, dims, layout and bytes. Tensors lie in *segments*: memory files
//! that are sealed before anybody but their maker sees them, so that nobody can write them, whoever has the descriptor and
//! whoever made them. What is handed over is checked (its seals, its size, each tensor's digest) before it is published.
//!
//! The decisions are a pure state machine, `ledger`; around it `tenant_store` holds segments and those who wait, `acquire` is
//! what a user of the store does, be the store in this process or a daemon.
//!
//! Each [`Tenant`] has a ledger, segments and bounds of its own: nothing of one store shows in another, not even as
//! something that is there already.

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
