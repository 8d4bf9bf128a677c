//! What the traces of requests cost a request: while nothing is traced, at 1 %, and if every request is traced.
//!
//! One atomic load is below a nanosecond. A traced request makes an allocation or two, marks a dozen points and hands
//! the trace over: some microseconds, so tens of nanoseconds at 1 %.

use criterion::{Criterion, criterion_group, criterion_main};
use skep_tracing::{TraceLevels, TraceOptions, TraceOutput, TraceSettings, Tracer};

/// The points of a request over HTTP.
const POINTS: [&str; 11] = [
    "HTTP_RECV_START",
    "HTTP_RECV_END",
    "REQUEST_START",
    "QUEUE_START",
    "COMPUTE_START",
    "COMPUTE_INPUT_END",
    "COMPUTE_OUTPUT_START",
    "COMPUTE_END",
    "REQUEST_END",
    "HTTP_SEND_START",
    "HTTP_SEND_END",
];

fn request(tracer: &Tracer) {
    if let Some(traced) = tracer.begin("m", || None) {
        for point in POINTS {
            traced.trace().mark(point);
        }
    }
}

fn sampling(c: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut group = c.benchmark_group("traces");
    for (name, rate) in [("off", None), ("1 %", Some(100)), ("all", Some(1))] {
        let settings = TraceSettings {
            levels: TraceLevels {
                timestamps: rate.is_some(),
                tensors: false,
            },
            rate: rate.unwrap_or(1000),
            ..TraceSettings::default()
        };
        let options = TraceOptions {
            output: TraceOutput::File(Some(directory.path().join("trace.json"))),
            settings,
        };
        let tracer = Tracer::start(options).expect("a thread");
        group.bench_function(name, |b| b.iter(|| request(&tracer)));
    }
    group.finish();
}

criterion_group!(benches, sampling);
criterion_main!(benches);
