//! A node's models at work: the repository they come from, their loading and unloading, their instances, their
//! statistics. Knows neither HTTP nor gRPC.
//!
//! ```text
//! Runtime::resolve(name, version) -> Arc<LoadedVersion>        a lock-free look at the routing table
//! LoadedVersion::infer(request)                                validate -> Driver -> await the answer
//!   Driver: the version's Scheduler behind a mutex             whoever brings an input carries out the outputs
//!     instance thread: gather -> Instance::execute -> split    takes its next batch itself, no thread in between
//! ```
//!
//! A [`LoadedVersion`] lives as long as anyone holds it: a reload or an unload takes it out of the routing table, the
//! requests that already hold it finish, and the last one to let go ends its instances. So nothing that was accepted
//! is lost, and a version's memory is given back when its last request is answered.

mod back_off;
mod backends;
mod bake;
mod bakery;
mod check;
mod clock;
mod device;
mod driver;
mod error;
mod instance;
mod interface_of_file;
mod job;
mod labels;
mod latency;
mod layout;
mod loader;
mod loading;
mod management;
mod model_file;
mod parallelism;
mod places;
mod poll;
mod profile;
mod ragged;
mod recorder;
mod recording;
mod records;
mod registry;
mod repository;
mod request;
mod running;
mod scheduling;
mod snapshot;
mod source;
mod statistics;
mod timer;
mod validate;
mod version;
mod waiting_limit;
mod warmup;
mod watch;

pub use backends::{BackendEntry, Backends};
pub use bake::{BakeOutcome, Bakeable, bake, bakeable};
pub use check::{Finding, ModelCheck, check};
pub use device::Device;
pub use error::{ErrorKind, RuntimeError};
pub use labels::Labels;
pub use latency::{Latencies, Phase};
pub use layout::LayoutFinding;
pub use loader::LoadOptions;
pub use recording::MetricsOptions;
pub use records::{IndexEntry, VersionState};
pub use registry::{Control, Runtime, RuntimeOptions, StartReport};
pub use repository::{Repository, is_model};
pub use request::{InferRequest, InferResponse, NamedTensor, Parameter, Timing};
pub use skep_backend::{Baked, RunMemory};
pub use skep_scheduler::PolicySnapshot;
pub use source::LoadOverrides;
pub use statistics::{
    BatchEnds, BatchStatistics, DurationStatistic, FailureReason, HistogramStatistics,
    InstanceStatistics, SloStatistics, StatisticsSnapshot,
};
pub use version::LoadedVersion;
pub use waiting_limit::{DEFAULT_MAX_WAITING, WaitingLimit};
pub use watch::end_longest_run;
