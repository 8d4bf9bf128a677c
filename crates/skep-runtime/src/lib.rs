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

mod baking;
mod clock;
mod error;
mod loading;
mod models;
mod repository;
mod serving;
mod statistics;
mod timer;

pub use error::{ErrorKind, RuntimeError};
pub use loading::{
    BackendEntry, Backends, BakeOutcome, Bakeable, Finding, LoadOptions, ModelCheck, bake,
    bakeable, check,
};
pub use models::{Control, IndexEntry, Runtime, RuntimeOptions, StartReport, VersionState};
pub use repository::{LayoutFinding, LoadOverrides, Repository, is_model};
pub use serving::{
    DEFAULT_MAX_WAITING, Device, InferRequest, InferResponse, Labels, LoadedVersion, NamedTensor,
    Parameter, Timing, WaitingLimit, end_longest_run,
};
pub use skep_backend::RunMemory;
pub use skep_scheduler::PolicySnapshot;
pub use skep_weights::Baked;
pub use statistics::{
    BatchEnds, BatchStatistics, DurationStatistic, FailureReason, HistogramStatistics,
    InstanceStatistics, Latencies, MetricsOptions, Phase, SloStatistics, StatisticsSnapshot,
};
