//! The access log: one record for each request, written when the last of its answer has left.
//!
//! ```text
//! exchange   makes an AccessVisit for each request, and puts its AccessNote among the request's extensions
//! handlers   write into the note which model a request went to and how its execution went
//! outflow    drops the visit with the answer's body, which writes the record
//! ```
//!
//! Each request of a gRPC stream has its own record, and so has the stream. Without an access log there are no visits,
//! and every note is empty. Implementations of [`AccessLog`] decide how records are written.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Extensions, HeaderMap, Method, Response, Uri};
use skep_runtime::{InferResponse, LoadedVersion, Timing};
use skep_types::{ModelName, ModelVersion};
use tonic::{Code, Status};

/// A writer of the access log.
pub trait AccessLog: fmt::Debug + Send + Sync {
    /// Records a request that is over. Called on the reactor's threads: it must not block.
    fn record(&self, record: &AccessRecord<'_>);
}

/// The protocol that reports the end of a call in headers of its own.
const GRPC: &str = "gRPC";

/// A request that is over.
#[derive(Debug)]
pub struct AccessRecord<'a> {
    /// The client's address.
    pub client: SocketAddr,
    /// `HTTP/1.1`, `HTTP/2` or `gRPC`.
    pub protocol: &'static str,
    /// The HTTP method.
    pub method: &'a str,
    /// The path, without a query.
    pub path: &'a str,
    /// The status of the answer.
    pub status: AccessStatus,
    /// From the end of the request's head to the end of its answer. For a request on a stream, until its answer is
    /// ready.
    pub total: Duration,
    /// Bytes of the request's body, as they came: compressed, and with gRPC's prefixes. For a request on a stream, of its
    /// message.
    pub bytes_in: u64,
    /// Bytes of the response's body, as they were handed to the connection. For a request on a stream, of its message.
    pub bytes_out: u64,
    /// The inference; `None` for other requests, and if no model was found.
    pub inference: Option<&'a InferenceRecord>,
    /// Why the request was refused or failed, in the words of its answer.
    pub error: Option<&'a str>,
}

/// What was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessStatus {
    /// Over HTTP.
    Http(u16),
    /// Over gRPC: the name of the code, such as `OK` or `UNAVAILABLE`.
    Grpc(&'static str),
    /// Nothing: the client left, or its connection was closed.
    Left,
}

/// An inference.
#[derive(Debug, Clone)]
pub struct InferenceRecord {
    /// The model that the request went to.
    pub model: ModelName,
    /// Its version.
    pub version: ModelVersion,
    /// The client's id of the request; may be empty.
    pub id: String,
    /// The timing of its execution; `None` if it was not executed, or failed.
    pub timing: Option<Timing>,
}

/// Where a handler notes what the access log says about an inference.
#[derive(Debug, Clone, Default)]
pub(crate) struct AccessNote(Option<Arc<Noted>>);

#[derive(Debug)]
struct Noted {
    call: CallDetails,
    bytes_in: AtomicU64,
    inference: Mutex<Option<InferenceRecord>>,
}

/// The facts of a request that are known when it begins.
#[derive(Debug, Clone)]
struct CallDetails {
    log: Arc<dyn AccessLog>,
    client: SocketAddr,
    protocol: &'static str,
    method: Method,
    path: Uri,
}

impl AccessNote {
    /// The note of a request; empty without an access log.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }

    /// Bytes of its body have come.
    pub(crate) fn received(&self, bytes: usize) {
        if let Some(noted) = &self.0 {
            noted.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// The request goes to this model.
    pub(crate) fn sent_to(&self, loaded: &LoadedVersion, id: &str) {
        if let Some(noted) = &self.0 {
            *noted.inference() = Some(InferenceRecord {
                model: loaded.name().clone(),
                version: loaded.version(),
                id: id.to_owned(),
                timing: None,
            });
        }
    }

    /// It was answered.
    pub(crate) fn answered(&self, answer: &InferResponse) {
        if let Some(noted) = &self.0
            && let Some(inference) = &mut *noted.inference()
        {
            inference.timing = answer.timing;
        }
    }

    /// A note and a visit for one request of a stream, which has its own record.
    pub(crate) fn message(&self) -> (Self, Option<AccessVisit>) {
        let Some(noted) = &self.0 else {
            return (Self(None), None);
        };
        let visit = AccessVisit::new(noted.call.clone());
        (visit.note(), Some(visit))
    }
}

impl Noted {
    fn inference(&self) -> std::sync::MutexGuard<'_, Option<InferenceRecord>> {
        // Each change is an assignment of a whole value.
        skep_host::lock(&self.inference)
    }
}

/// A request under way. Dropping it writes the record.
#[derive(Debug)]
pub(crate) struct AccessVisit {
    began: Instant,
    noted: Arc<Noted>,
    status: AccessStatus,
    bytes_out: u64,
    error: Option<String>,
}

impl AccessVisit {
    fn new(call: CallDetails) -> Self {
        Self {
            began: Instant::now(),
            noted: Arc::new(Noted {
                call,
                bytes_in: AtomicU64::new(0),
                inference: Mutex::default(),
            }),
            status: AccessStatus::Left,
            bytes_out: 0,
            error: None,
        }
    }

    /// Begins a request, and puts its note among the request's extensions.
    pub(crate) fn begin<B>(
        log: &Arc<dyn AccessLog>,
        client: SocketAddr,
        is_grpc: bool,
        request: &mut http::Request<B>,
    ) -> Self {
        let protocol = match request.version() {
            _ if is_grpc => GRPC,
            http::Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        };
        let visit = Self::new(CallDetails {
            log: Arc::clone(log),
            client,
            protocol,
            method: request.method().clone(),
            path: request.uri().clone(),
        });
        request.extensions_mut().insert(visit.note());
        visit
    }

    /// The request's note.
    pub(crate) fn note(&self) -> AccessNote {
        AccessNote(Some(Arc::clone(&self.noted)))
    }

    /// The head of the answer is ready.
    pub(crate) fn answered<B>(&mut self, response: &Response<B>) {
        if self.noted.call.protocol == GRPC {
            // An answer with messages reports the end of the call in its trailers; the client may leave earlier.
            self.ended(response.headers());
            return;
        }
        self.status = AccessStatus::Http(response.status().as_u16());
        let refusal = response.extensions().get::<RefusalText>();
        self.error = refusal.map(|RefusalText(text)| text.clone());
    }

    /// Reads how a gRPC call ended from the head or trailers of its answer, if they say so.
    pub(crate) fn ended(&mut self, headers: &HeaderMap) {
        if self.noted.call.protocol == GRPC
            && let Some(status) = Status::from_header_map(headers)
        {
            self.refused(&status);
        }
    }

    /// Bytes of the answer's body have left.
    pub(crate) const fn sent(&mut self, bytes: usize) {
        self.bytes_out += bytes as u64;
    }

    /// A request of a stream was answered.
    pub(crate) fn succeeded(&mut self) {
        self.status = AccessStatus::Grpc(code_name(Code::Ok));
    }

    /// A gRPC call, or a request of a stream, ended with this status.
    pub(crate) fn refused(&mut self, status: &Status) {
        self.status = AccessStatus::Grpc(code_name(status.code()));
        self.error = Some(status.message().to_owned()).filter(|text| !text.is_empty());
    }
}

impl Drop for AccessVisit {
    fn drop(&mut self) {
        let call = &self.noted.call;
        let inference = self.noted.inference().take();
        call.log.record(&AccessRecord {
            client: call.client,
            protocol: call.protocol,
            method: call.method.as_str(),
            path: call.path.path(),
            status: self.status,
            total: self.began.elapsed(),
            bytes_in: self.noted.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out,
            inference: inference.as_ref(),
            error: self.error.as_deref(),
        });
    }
}

/// The text of an HTTP error, among the answer's extensions.
#[derive(Debug, Clone)]
pub(crate) struct RefusalText(pub(crate) String);

/// The name of a status code in gRPC's specification.
const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
