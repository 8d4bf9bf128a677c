//! The edges of a node: the only crate that knows HTTP and gRPC servers, requests and answers in JSON, status codes,
//! the metrics text and the web page. Tensor data in JSON and in typed contents is `skep_wire`'s.
//!
//! [`Server::bind`] opens the ports, so that addresses are known and liveness answers before any model is loaded;
//! [`Server::run`] serves until it is told to stop and then lets what is in flight finish. `edge` holds connections,
//! the same for all ports; `http` and `grpc` decode requests and encode answers; `inference` and `management` do what
//! both protocols share; `metrics` writes the runtime's figures as text; `error` is the only table from kinds of
//! failure to statuses.

mod access;
mod bounds;
mod edge;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod growth;
mod grpc;
mod http;
mod inference;
mod inflate;
mod management;
mod metrics;
mod off_reactor;
mod restrict;
mod server;
mod state;
mod traced;
mod verbose;

pub use access::{AccessLog, AccessRecord, AccessStatus, InferenceRecord};
pub use edge::{BindError, Endpoint, GrpcConnections, Limits, ServerTls, TlsFiles};
pub use inference::{HeaderPattern, InferenceOptions};
pub use management::{LogChange, LogControl, LogSettings, UnknownLogFormat};
pub use metrics::{DEFAULT_INTERVAL, DEFAULT_QUANTILES, MetricsPortOptions};
pub use restrict::{RestrictionError, Restrictions};
pub use server::{Addresses, Server, ServerOptions, StopOutcome};
pub use skep_tls::{TlsError, TlsFile};
