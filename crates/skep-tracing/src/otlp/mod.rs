//! Traces as spans of OpenTelemetry, sent to a collector over HTTP (OTLP, protobuf).
//!
//! ```text
//! spans      a trace's spans and their events, as Triton names them
//! transport  one request to the collector
//! ```
//!
//! Spans wait here until there are enough for a request, or until the first one has waited long enough. A request that
//! fails is not repeated: its spans are dropped and counted. While one is under way, traces wait in the writer's queue.
//!
//! Source: OpenTelemetry, "OTLP Specification" 1.x, "OTLP/HTTP"; its batch span processor.

mod spans;
mod transport;

use std::{
    io, mem,
    time::{Duration, Instant},
};

use prost::Message;
use skep_proto::otlp::{
    ExportTraceServiceRequest, InstrumentationScope, Resource, ResourceSpans, ScopeSpans, Span,
};

pub use self::transport::{CollectorUrl, UrlError};
use self::{
    spans::{SpanMaker, text},
    transport::Collector,
};
use crate::writer::{FinishedTrace, SinkOutcome, TraceSink, WAITING_TRACES};

/// The attribute that names the server; Triton sends its own name.
const SERVICE_NAME: &str = "service.name";

/// How spans are sent to a collector.
#[derive(Debug, Clone)]
pub struct OtlpOptions {
    /// Where the collector is.
    pub url: CollectorUrl,
    /// Attributes of the resource, in order.
    pub resource: Vec<(String, String)>,
    /// Traces that wait for the thread at most.
    pub queue_size: usize,
    /// How long the first span of a request waits for others.
    pub schedule_delay: Duration,
    /// Spans that are sent without waiting for others.
    pub batch_size: usize,
}

impl OtlpOptions {
    /// The defaults of OpenTelemetry's batch span processor.
    #[must_use]
    pub fn new(url: CollectorUrl) -> Self {
        Self {
            url,
            resource: Vec::new(),
            queue_size: WAITING_TRACES,
            schedule_delay: Duration::from_secs(5),
            batch_size: 512,
        }
    }
}

/// Sends traces to a collector.
pub(crate) struct OtlpSink {
    collector: Collector,
    resource: Resource,
    schedule_delay: Duration,
    batch_size: usize,
    maker: SpanMaker,
    waiting: Vec<Span>,
    /// How many traces these are of.
    waiting_traces: usize,
    /// When the first of them came.
    since: Option<Instant>,
}

impl OtlpSink {
    pub(crate) fn new(options: &OtlpOptions) -> io::Result<Self> {
        let mut resource = Resource::default();
        let is_named = options.resource.iter().any(|(key, _)| key == SERVICE_NAME);
        if !is_named {
            resource.attributes.push(text(SERVICE_NAME, "skep"));
        }
        let given = options.resource.iter();
        let given = given.map(|(key, value)| text(key, value));
        resource.attributes.extend(given);
        Ok(Self {
            collector: Collector::new(options.url.clone())?,
            resource,
            schedule_delay: options.schedule_delay,
            batch_size: options.batch_size,
            maker: SpanMaker::default(),
            waiting: Vec::new(),
            waiting_traces: 0,
            since: None,
        })
    }

    /// Sends all spans that wait.
    fn send(&mut self) -> SinkOutcome {
        self.since = None;
        let traces = mem::take(&mut self.waiting_traces);
        let spans = mem::take(&mut self.waiting);
        if spans.is_empty() {
            return SinkOutcome::default();
        }
        let scope = InstrumentationScope {
            name: "skep".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans,
                }],
            }],
        };
        match self.collector.send(request.encode_to_vec().into()) {
            Ok(()) => SinkOutcome {
                written: traces,
                ..SinkOutcome::default()
            },
            Err(error) => SinkOutcome {
                lost: traces,
                error: Some(error),
                ..SinkOutcome::default()
            },
        }
    }
}

impl TraceSink for OtlpSink {
    fn name(&self) -> String {
        format!("the collector at {}", self.collector.url())
    }

    fn write(&mut self, traces: Vec<FinishedTrace>) -> SinkOutcome {
        let mut outcome = SinkOutcome::default();
        for trace in traces {
            self.since.get_or_insert_with(Instant::now);
            self.maker.add(trace, &mut self.waiting);
            self.waiting_traces += 1;
            if self.waiting.len() >= self.batch_size {
                let SinkOutcome {
                    written,
                    lost,
                    error,
                } = self.send();
                outcome.written += written;
                outcome.lost += lost;
                outcome.error = error.or(outcome.error);
            }
        }
        outcome
    }

    fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + self.schedule_delay)
    }

    fn tick(&mut self) -> SinkOutcome {
        self.send()
    }

    fn finish(&mut self) -> SinkOutcome {
        self.send()
    }
}
