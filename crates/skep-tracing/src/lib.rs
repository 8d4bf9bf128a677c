//! Traces of requests, as Triton takes them: which requests are traced, and where their traces go.
//!
//! ```text
//! settings   levels, rate, count, log frequency; a change of them
//! ledger     the settings of the server and of single models, and the samplers that they make
//! sampler    which requests are traced: one in `rate`, `count` in all
//! parent     the W3C header `traceparent`
//! tracer     begins a trace at the edge, counts, changes settings
//! writer     the thread that writes traces, behind a bounded queue
//! file       Triton's trace file
//! otlp       spans, sent to a collector of OpenTelemetry
//! ```
//!
//! A trace itself is [`skep_runtime::RequestTrace`], which travels with the request. A request is never delayed by where
//! its trace goes: a trace that finds the queue full is dropped and counted. This crate has nothing to do with the crate
//! `tracing`, which writes the log.

mod file;
mod ledger;
mod otlp;
mod parent;
mod sampler;
mod settings;
mod tracer;
mod writer;

pub use file::probe;
pub use otlp::{CollectorUrl, OtlpOptions, UrlError};
pub use parent::TraceParent;
pub use settings::{SettingChange, TraceChange, TraceLevels, TraceMode, TraceSettings};
pub use tracer::{TraceOptions, TraceOutput, TracedRequest, Tracer};
pub use writer::TraceCounts;
