//! Model configurations: out of `config.pbtxt`, completed from the model file, validated, typed.
//!
//! Layer 0: no I/O and no clock. The caller reads files and model signatures; this crate says what they mean, and each
//! rejection names the file or model, the field, what was expected and what was got. A configuration passes three doors:
//!
//! 1. [`parse_pbtxt`] reads protobuf text format into the wire's `inference::ModelConfig`, with file, line and column in
//!    every error; [`parse_json`] reads what a client hands over.
//! 2. [`complete`] fills in what the model's file tells: name, backend, tensors, batching.
//! 3. [`ModelConfig::from_proto`] refuses what is invalid or not supported yet, collects [`Notice`]s about what has no
//!    effect, fills in defaults, and keeps both the normalised message (what a client is shown) and a typed view (what
//!    the server reads). [`ModelConfig::with_signature`] then holds it against the model itself.
//!
//! [`PARAMETERS`] is the one table of the keys of the `parameters` map; `docs/model-parameters.md` is written from it.
//! `docs/model-configuration.md` says of every field whether it is honoured.

mod backend_flag;
mod batching;
mod complete;
mod error;
mod foreign;
mod instances;
mod json;
mod metrics;
mod model;
mod near_miss;
mod normalize;
mod objective;
mod options;
mod parameters;
mod pbtxt;
mod ragged;
mod review;
mod signature;
mod suggest;
mod tensors;
mod version_policy;
mod warmup;

pub use backend_flag::{BackendSetting, parse_backend_config};
pub use batching::{DynamicBatching, QueuePolicy, Scheduler, TimeoutAction};
pub use complete::{Completion, complete, configured_backend, configured_isolation, looks_batched};
pub use error::{ConfigError, ErrorKind, Position};
pub use foreign::{check_backend_name, foreign_file_hint};
pub use instances::{InstanceGroup, InstanceKind};
pub use json::parse_json;
pub use metrics::HistogramFamily;
pub use model::{BACKENDS, Context, ModelConfig, Notice};
pub use normalize::{check_name, model_filename};
pub use objective::{Objective, ObjectivePolicy};
pub use options::{
    ExecutionMode, ExecutionOptions, GraphOptimization, Isolation, MemoryPlanner, MockOptions,
    MockOutput, RunLimits,
};
pub use parameters::{Effect, PARAMETERS, ParameterSpec, ValueType, parameters_markdown};
pub use pbtxt::{FieldPlaces, parse_pbtxt};
pub use ragged::{BatchInput, BatchInputKind, BatchOutput};
pub use signature::check_signature;
pub use suggest::nearest;
pub use tensors::{InputConfig, OutputConfig, TensorConfig};
pub use version_policy::{VersionPolicy, version_policy};
pub use warmup::{Warmup, WarmupData, WarmupInput};
