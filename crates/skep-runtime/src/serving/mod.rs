//! A loaded version at work: from a request to its response.
//!
//! ```text
//! LoadedVersion::infer -> validate against the Interface -> Responder::submit -> await the answer
//!   Responder, one for each version:
//!     response_cache/   CachedResponder: before another responder, if the node and the model have a response cache
//!     instances/        InstancePool: a scheduler's driver (driver/), and the instances that it feeds
//!     ensemble/         EnsembleResponder: steps, which are requests to other versions
//! ```

mod batch;
pub(crate) mod cpu_devices;
pub(crate) mod device;
pub(crate) mod driver;
pub(crate) mod ensemble;
pub(crate) mod instances;
pub(crate) mod interface;
mod job;
pub(crate) mod labels;
pub(crate) mod origin;
mod ragged;
mod request;
pub(crate) mod resources;
pub(crate) mod responder;
pub(crate) mod response_cache;
pub(crate) mod sequences;
mod trace;
mod validate;
mod version;
mod waiting_limit;

pub use cpu_devices::{CpuDevice, CpuDevices, DeviceReport};
pub use device::Device;
pub use instances::watch::end_longest_run;
pub use labels::ClassLabels;
pub use request::{InferRequest, InferResponse, NamedTensor, Parameter, Timing};
pub use resources::RateLimiter;
pub use response_cache::{DropReason, ResponseCache, ResponseCacheReport, VersionCacheReport};
pub use trace::{RequestTrace, TraceRecord, TracedBatch, TracedTensor};
pub use version::LoadedVersion;
pub use waiting_limit::{DEFAULT_MAX_WAITING, WaitingLimit};
