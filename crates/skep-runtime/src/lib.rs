//! The models of a node: their repository, loading and unloading, instances, statistics. This crate knows neither HTTP
//! nor gRPC.
//!
//! ```text
//! Runtime::resolve(name, version) -> Arc<LoadedVersion>        a lock-free lookup in the routing table
//! LoadedVersion::infer(request)                                validate -> Responder -> await the answer
//!   Driver: the version's Scheduler behind a mutex             the thread that brings an input carries out the outputs
//!     instance thread: gather -> Instance::execute -> split    takes its next batch itself, without another thread
//! ```
//!
//! A [`LoadedVersion`] lives as long as something holds it. A reload or an unload takes it out of the routing table,
//! the requests that hold it finish, and the last holder to drop it ends its instances. So no accepted request is lost,
//! and a version's memory is freed when its last request is answered.
//!
//! ```text
//! models      -> loading -> serving -> statistics
//! (all of a      |            |
//!  node)         +------------+----> repository, baking
//! ```

mod baking;
mod clock;
mod error;
mod loading;
mod models;
mod repository;
mod serving;
mod size_text;
mod statistics;
mod timer;

pub use error::{ErrorKind, RuntimeError};
pub use loading::{
    BackendEntry, Backends, BakeOutcome, Bakeable, CheckFinding, LoadOptions, ModelCheck,
    ModelProfiles, ProfiledModel, bake, bakeable, check,
};
pub use models::{
    Control, DecisionKind, DecisionReport, IndexEntry, ModelReport, ResidencyReport,
    ResidencySettings, ResidencySums, RunReport, Runtime, RuntimeOptions, StartReport,
    VersionState, residency_slack,
};
pub use repository::{
    DigestedFiles, LayoutFinding, LoadOverrides, Repository, files_digest, is_model,
};
pub use serving::{
    ClassLabels, CpuDevice, CpuDevices, DEFAULT_MAX_WAITING, Device, DeviceReport, DropReason,
    InferRequest, InferResponse, LoadedVersion, NamedTensor, Parameter, RateLimiter, RequestTrace,
    ResponseCache, ResponseCacheReport, Timing, TraceRecord, TracedBatch, TracedTensor,
    VersionCacheReport, WaitingLimit, end_longest_run,
};
pub use skep_backend::RunMemory;
pub use skep_config::LoadPolicy;
pub use skep_placer::keep_alive::KeepAlive;
pub use skep_placer::residency::{EvictionPolicy, ModelFigures, ResidencyFigures, ResidencyState};
pub use skep_scheduler::{PolicySnapshot, ResourceSupply};
pub use skep_weights::Baked;
pub use statistics::{
    BatchEnds, BatchStatistics, DurationStatistic, FailureReason, HistogramStatistics,
    InstanceStatistics, Latencies, MetricsOptions, Phase, SloStatistics, StatisticsSnapshot,
};
