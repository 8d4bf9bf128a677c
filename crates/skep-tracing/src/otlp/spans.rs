//! The spans of a trace, with Triton's names.
//!
//! ```text
//! InferRequest                  from the first byte to the last; events HTTP_RECV_START, HTTP_SEND_END, ...
//!   <model>                     events REQUEST_START, QUEUE_START, REQUEST_END; an error is its status
//!     compute                   events COMPUTE_START, COMPUTE_INPUT_END, COMPUTE_OUTPUT_START, COMPUTE_END
//!     <model of a step>         of an ensemble: a further request
//! ```

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use skep_proto::otlp::{
    AnyValue, KeyValue, Span, Status,
    any_value::Value,
    span::{Event, SpanKind},
    status::StatusCode,
};
use skep_runtime::{RequestTrace, TraceRecord};
use skep_types::Time;

use crate::writer::FinishedTrace;

/// W3C's flag of a trace that is recorded.
const SAMPLED: u32 = 1;

/// The events of the span of a model; those of [`COMPUTE`] are its child's, all others the root's.
const MODEL: [&str; 3] = ["REQUEST_START", "QUEUE_START", "REQUEST_END"];

const COMPUTE: [&str; 4] = [
    "COMPUTE_START",
    "COMPUTE_INPUT_END",
    "COMPUTE_OUTPUT_START",
    "COMPUTE_END",
];

/// Makes spans, with ids that no other server makes.
#[derive(Debug)]
pub(super) struct SpanMaker {
    random: u64,
    /// Triton's number of the next trace.
    next_trace: i64,
}

impl Default for SpanMaker {
    fn default() -> Self {
        // The standard library's only source of randomness.
        let random = RandomState::new().build_hasher().finish();
        Self {
            random,
            next_trace: 1,
        }
    }
}

/// What the spans of a trace share.
struct TraceContext {
    trace_id: Bytes,
    state: String,
    /// Nanoseconds from the clock of traces to those since 1970.
    offset: i128,
}

impl TraceContext {
    fn nanos(&self, at: Time) -> u64 {
        u64::try_from(i128::from(at.as_nanos()) + self.offset).unwrap_or(0)
    }

    fn events(&self, points: &[(&'static str, Time)], which: impl Fn(&str) -> bool) -> Vec<Event> {
        let points = points.iter().filter(|(name, _)| which(name));
        let event = |(name, at): &(&str, Time)| Event {
            time_unix_nano: self.nanos(*at),
            name: (*name).to_owned(),
            attributes: Vec::new(),
        };
        points.map(event).collect()
    }

    /// A span over its events, without an id.
    fn span(&self, name: String, parent: Bytes, events: Vec<Event>) -> Span {
        let times = events.iter().map(|event| event.time_unix_nano);
        Span {
            trace_id: self.trace_id.clone(),
            trace_state: self.state.clone(),
            parent_span_id: parent,
            name,
            kind: SpanKind::Internal.into(),
            start_time_unix_nano: times.clone().min().unwrap_or(0),
            end_time_unix_nano: times.max().unwrap_or(0),
            events,
            flags: SAMPLED,
            ..Span::default()
        }
    }
}

impl SpanMaker {
    /// A number that is not 0. (SplitMix64.)
    fn random(&mut self) -> u64 {
        loop {
            self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.random;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^= mixed >> 31;
            if mixed != 0 {
                return mixed;
            }
        }
    }

    fn span_id(&mut self) -> Bytes {
        Bytes::copy_from_slice(&self.random().to_be_bytes())
    }

    /// Adds the spans of a trace.
    pub(super) fn add(&mut self, trace: FinishedTrace, spans: &mut Vec<Span>) {
        let FinishedTrace { record, parent, .. } = trace;
        let (trace_id, parent_span, state) = match parent {
            Some(parent) => (
                parent.trace,
                Bytes::copy_from_slice(&parent.span),
                parent.state,
            ),
            None => {
                let (first, second) = (u128::from(self.random()), u128::from(self.random()));
                let id = (first << 64 | second).to_be_bytes();
                (id, Bytes::new(), String::new())
            }
        };
        let context = TraceContext {
            trace_id: Bytes::copy_from_slice(&trace_id),
            state,
            offset: since_1970() - i128::from(RequestTrace::now().as_nanos()),
        };
        let of_edge = |name: &str| !MODEL.contains(&name) && !COMPUTE.contains(&name);
        let events = context.events(&record.points, of_edge);
        let mut root = context.span("InferRequest".to_owned(), parent_span, events);
        root.span_id = self.span_id();
        root.kind = SpanKind::Server.into();
        if record.model.is_none() {
            root.status = record.error.clone().map(failure);
        }
        let root_at = spans.len();
        let root_id = root.span_id.clone();
        spans.push(root);
        self.add_request(record, &context, root_id, 0, spans);
        // The root covers what it caused, although nothing may be known of its beginning or end.
        let (root, others) = spans[root_at..].split_first_mut().expect("it was pushed");
        for span in others {
            if root.start_time_unix_nano == 0
                || span.start_time_unix_nano < root.start_time_unix_nano
            {
                root.start_time_unix_nano = span.start_time_unix_nano;
            }
            root.end_time_unix_nano = root.end_time_unix_nano.max(span.end_time_unix_nano);
        }
    }

    /// Adds the spans of a request to a model, and of the requests that it made.
    fn add_request(
        &mut self,
        record: TraceRecord,
        context: &TraceContext,
        parent: Bytes,
        parent_trace: i64,
        spans: &mut Vec<Span>,
    ) {
        let Some((model, version)) = &record.model else {
            return;
        };
        let number = self.next_trace;
        self.next_trace += 1;
        let events = context.events(&record.points, |name| MODEL.contains(&name));
        let mut span = context.span(model.to_string(), parent, events);
        span.span_id = self.span_id();
        span.attributes = vec![
            text("triton.model_name", model.as_str()),
            integer(
                "triton.model_version",
                i64::try_from(version.get()).unwrap_or(i64::MAX),
            ),
            integer("triton.trace_id", number),
            integer("triton.trace_parent_id", parent_trace),
        ];
        if !record.request_id.is_empty() {
            let id = text("triton.request_id", &record.request_id);
            span.attributes.push(id);
        }
        span.status = record.error.clone().map(failure);
        let model_span = span.span_id.clone();
        spans.push(span);
        let events = context.events(&record.points, |name| COMPUTE.contains(&name));
        if !events.is_empty() {
            let mut compute = context.span("compute".to_owned(), model_span.clone(), events);
            compute.span_id = self.span_id();
            if let Some(batch) = record.batch {
                let size = i64::try_from(batch.size).unwrap_or(i64::MAX);
                compute.attributes = vec![
                    integer("skep.batch_size", size),
                    text("skep.batch_end", batch.end),
                ];
            }
            spans.push(compute);
        }
        for child in record.children {
            self.add_request(child.take(), context, model_span.clone(), number, spans);
        }
    }
}

fn since_1970() -> i128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i128::try_from(now.as_nanos()).unwrap_or(0))
}

fn failure(message: String) -> Status {
    Status {
        message,
        code: StatusCode::Error.into(),
    }
}

/// An attribute.
pub(super) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn integer(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use skep_runtime::TracedBatch;
    use skep_types::{ModelName, ModelVersion};

    use super::*;
    use crate::{parent::TraceParent, sampler::Sampler, settings::TraceSettings};

    fn record(model: &str, points: &[(&'static str, u64)]) -> TraceRecord {
        let points = points.iter();
        TraceRecord {
            model: Some((
                ModelName::new(model).expect("a name"),
                ModelVersion::new(3).expect("a version"),
            )),
            points: points
                .map(|(name, at)| (*name, Time::from_nanos(*at)))
                .collect(),
            ..TraceRecord::default()
        }
    }

    fn spans(record: TraceRecord, parent: Option<TraceParent>) -> Vec<Span> {
        let mut spans = Vec::new();
        let trace = FinishedTrace {
            record,
            sampler: Arc::new(Sampler::new(&TraceSettings::default(), 0)),
            parent,
        };
        SpanMaker::default().add(trace, &mut spans);
        spans
    }

    fn names(span: &Span) -> Vec<&str> {
        span.events
            .iter()
            .map(|event| event.name.as_str())
            .collect()
    }

    #[test]
    fn a_request_is_three_spans() {
        let points = [
            ("HTTP_RECV_START", 10),
            ("REQUEST_START", 20),
            ("QUEUE_START", 21),
            ("COMPUTE_START", 30),
            ("COMPUTE_INPUT_END", 31),
            ("COMPUTE_OUTPUT_START", 39),
            ("COMPUTE_END", 40),
            ("REQUEST_END", 50),
            ("HTTP_SEND_END", 60),
        ];
        let batch = Some(TracedBatch {
            size: 4,
            end: "max_batch_size",
        });
        let record = TraceRecord {
            batch,
            request_id: "7".to_owned(),
            ..record("m", &points)
        };
        let made = spans(record, None);
        let [root, model, compute] = &made[..] else {
            panic!("{made:?}");
        };
        assert_eq!(
            [&root.name, &model.name, &compute.name],
            ["InferRequest", "m", "compute"]
        );
        assert_eq!(names(root), ["HTTP_RECV_START", "HTTP_SEND_END"]);
        assert_eq!(names(model), MODEL);
        assert_eq!(names(compute), COMPUTE);
        assert!(root.parent_span_id.is_empty());
        assert_eq!(model.parent_span_id, root.span_id);
        assert_eq!(compute.parent_span_id, model.span_id);
        assert_eq!((root.trace_id.len(), root.span_id.len()), (16, 8));
        assert!(made.iter().all(|span| span.trace_id == root.trace_id));
        for (span, took) in [(root, 50), (model, 30), (compute, 10)] {
            assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, took);
        }
        assert_eq!(model.attributes[0], text("triton.model_name", "m"));
        assert_eq!(model.attributes[4], text("triton.request_id", "7"));
        assert_eq!(compute.attributes[0], integer("skep.batch_size", 4));
    }

    #[test]
    fn a_client_is_the_parent() {
        let header = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = TraceParent::read(header, Some(b"a=b")).expect("valid");
        let made = spans(
            record("m", &[("REQUEST_START", 5), ("REQUEST_END", 9)]),
            Some(parent),
        );
        assert_eq!(made.len(), 2);
        assert!(
            made.iter()
                .all(|span| span.trace_id[0] == 0x0a && span.trace_state == "a=b")
        );
        assert_eq!(made[0].parent_span_id[0], 0xb7);
        // Nothing is known of the edge: the root is as long as the request.
        assert_eq!(made[0].end_time_unix_nano - made[0].start_time_unix_nano, 4);
    }

    #[test]
    fn an_error_is_a_status() {
        let failed = TraceRecord {
            error: Some("no room".to_owned()),
            ..record("m", &[("REQUEST_START", 5)])
        };
        let made = spans(failed, None);
        assert_eq!(
            (made[0].status.clone(), made[1].status.clone()),
            (None, Some(failure("no room".to_owned())))
        );
        let lost = TraceRecord {
            model: None,
            error: Some("unknown model".to_owned()),
            points: vec![("HTTP_RECV_START", Time::from_nanos(1))],
            ..TraceRecord::default()
        };
        let made = spans(lost, None);
        assert_eq!(made.len(), 1);
        assert_eq!(made[0].status, Some(failure("unknown model".to_owned())));
    }
}
