//! Model configurations: read from `config.pbtxt`, completed from the model's file, validated, typed.
//!
//! Layer 0: no I/O and no clock. The caller reads files and model signatures, and this crate interprets them. Each
//! rejection names the file or model, the field, what was expected and what was found. A configuration passes three
//! steps:
//!
//! 1. [`parse_pbtxt`] reads protobuf text format into the wire's `inference::ModelConfig`, with file, line and column
//!    in every error; [`parse_json`] reads what a client sends.
//! 2. [`complete`] fills in what the model's file declares: name, backend, tensors, batching.
//! 3. [`ModelConfig::from_proto`] refuses what is invalid or not supported yet, collects [`Notice`]s about settings
//!    without effect, and fills in defaults. It keeps the normalised message, which clients are shown, and a typed
//!    view, which the server reads. [`ModelConfig::with_signature`] then compares the view with the model itself.
//!
//! ```text
//!     model           the typed view, and how it is made and compared with the model's file
//!     fields          one file per message: tensors, instances, scheduling, warm-up, ...
//!     complete        what the model's file adds
//!     pbtxt, json, backend_flag      texts into messages
//!     hints           what the user probably meant
//!     parameters      the one table of the keys of the `parameters` map
//!     vocabulary      names of backends, notices, paths, datatypes
//!     error           why a configuration is refused
//! ```
//!
//! Each module uses only modules below it. A further kind of scheduler goes to `fields/scheduling`, beside the dynamic
//! batcher and the ensemble: `sequence_batching.rs` holds today's refusal.
//!
//! `docs/model-parameters.md` is written from [`PARAMETERS`]. `docs/model-configuration.md` says of every field whether
//! it is honoured.

mod backend_flag;
mod complete;
mod error;
mod fields;
mod hints;
mod json;
mod model;
mod parameters;
mod pbtxt;
mod vocabulary;

pub use backend_flag::{BackendSetting, parse_backend_config};
pub use complete::{Completion, complete, looks_batched};
pub use error::{ConfigError, ConfigErrorKind, Position};
pub use fields::{
    identity::{check_backend_name, check_name, model_filename},
    instances::{InstanceGroup, InstanceKind, ResourceNeed},
    metrics::HistogramFamily,
    options::{
        ExecutionMode, ExecutionOptions, GraphOptimization, Isolation, MemoryPlanner, MockOptions,
        MockOutput, RunLimits, configured_isolation,
    },
    ragged::{BatchInput, BatchInputKind, BatchOutput},
    residency::{LoadPolicy, ModelResidency},
    response_cache::ResponseCaching,
    scheduling::{
        SchedulerConfig,
        dynamic_batching::DynamicBatching,
        ensemble::{Ensemble, EnsembleStep, StepCondition, ensemble_parts, is_ensemble},
        objective::LatencyObjective,
        sequence_batching::{
            SequenceBatching, SlotStrategy,
            controls::{ControlKind, FlagValues, SequenceControl},
            states::{InitialData, SequenceState},
        },
    },
    tensors::{InputConfig, OutputConfig, TensorConfig},
    version_policy::{VersionPolicy, version_policy},
    warmup::{Warmup, WarmupData, WarmupInput},
};
pub use hints::{foreign::foreign_file_hint, suggest::nearest};
pub use json::parse_json;
pub use model::ModelConfig;
pub use parameters::{
    PARAMETERS, ParameterEffect, ParameterSpec, ParameterType, parameters_markdown,
};
pub use pbtxt::{FieldPositions, parse_pbtxt};
pub use vocabulary::{
    backends::{BACKENDS, configured_backend},
    context::ConfigContext,
    notice::Notice,
};
