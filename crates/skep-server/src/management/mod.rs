//! The management calls, that is all but inference, before either protocol encodes their answers.
//!
//! ```text
//! metadata       the server's and a model's
//! statistics     of model versions
//! repository     index, load, unload
//! residency      which models are in memory, and why
//! logging        log settings, shown and changed
//! shared_memory  clients' regions: registered, shown, unregistered
//! traces         trace settings, of the server and of models
//! ```
//!
//! To add a call, write a function here, from plain arguments to a document of [`skep_wire::documents`] or an
//! [`ApiError`](crate::error::ApiError). Call it from a handler in `http/`, with its path in `http/routes.rs`, and from
//! a method in `grpc/service.rs`. Give the path and the method a group in `restrict/group.rs`: a test fails without
//! one.

mod logging;
pub(crate) mod metadata;
pub(crate) mod repository;
pub(crate) mod residency;
pub(crate) mod shared_memory;
pub(crate) mod statistics;
pub(crate) mod traces;

pub(crate) use self::logging::SettingSlot;
pub use self::logging::{LogChange, LogControl, LogSettings, UnknownLogFormat};
