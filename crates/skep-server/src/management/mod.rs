//! The management calls, before either protocol encodes their answers: everything but inference.
//!
//! ```text
//! metadata    the server's and a model's
//! statistics  of model versions
//! repository  index, load, unload
//! logging     log settings, shown and changed
//! absent      calls that Skep refuses: shared memory, tracing
//! ```
//!
//! To add a call: its meaning in a file here, as a function from plain arguments to a document of [`skep_wire::documents`] or
//! an [`ApiError`](crate::error::ApiError); a handler in `http/management.rs` with its line in `http/routes.rs`; a method in
//! `grpc/service.rs`. Its group among the restrictions is in `restrict/group.rs`, where a test fails without one.

pub(crate) mod absent;
mod logging;
pub(crate) mod metadata;
pub(crate) mod repository;
pub(crate) mod statistics;

pub(crate) use self::logging::SettingSlot;
pub use self::logging::{LogChange, LogControl, LogSettings, UnknownLogFormat};
