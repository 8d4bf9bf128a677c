//! Metrics: Triton's, with its names, labels, texts and meanings, and Skep's own.
//!
//! They are written from the statistics at each request: a second set of counters could only disagree with them.
//! Figures over an interval (utilization, busy fractions) are sampled in the background.
//!
//! Source: Triton, user guide, "Metrics"; answers of a Triton 2.51; the Prometheus text exposition format 0.0.4.

mod families;
mod host;
mod options;
mod process;
mod sampler;
mod text;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use skep_runtime::Runtime;
use skep_tensor::MemoryBudget;
use skep_tracing::Tracer;

pub use self::options::{DEFAULT_INTERVAL, DEFAULT_QUANTILES, MetricsPortOptions};
use self::sampler::Sampler;
use crate::error::{PLAIN, error_response};

/// Triton's content type, without a version of the format.
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// What the metrics port serves.
#[derive(Debug)]
pub(crate) struct Metrics {
    runtime: Arc<Runtime>,
    options: MetricsPortOptions,
    sampler: Sampler,
    /// The memory of requests.
    memory: Arc<MemoryBudget>,
    tracer: Arc<Tracer>,
}

impl Metrics {
    pub(crate) fn new(
        runtime: Arc<Runtime>,
        options: MetricsPortOptions,
        memory: Arc<MemoryBudget>,
        tracer: Arc<Tracer>,
    ) -> Arc<Self> {
        let sampler = Sampler::new(options.cpu);
        Arc::new(Self {
            runtime,
            options,
            sampler,
            memory,
            tracer,
        })
    }

    /// Samples at every interval, forever.
    pub(crate) async fn keep_sampling(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.options.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let metrics = Arc::clone(&self);
            let sample = move || metrics.sampler.sample(&metrics.runtime);
            // Reads files in /proc: some tens of microseconds, too long for the reactor.
            if tokio::task::spawn_blocking(sample).await.is_err() {
                tracing::error!("sampling for metrics panicked, the server will try again");
            }
        }
    }

    fn text(&self) -> String {
        families::render(
            &self.runtime,
            &self.options,
            &self.sampler.latest(),
            &self.memory,
            &self.tracer,
        )
    }
}

/// The port: `GET` and `HEAD` of `/metrics`. As on Triton, any other path gets an empty text, and any other method is
/// refused.
pub(crate) fn router(metrics: Arc<Metrics>) -> Router {
    Router::new().fallback(answer).with_state(metrics)
}

async fn answer(State(metrics): State<Arc<Metrics>>, request: Request) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let text = "Method Not Allowed";
        let mut refusal = error_response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, text);
        let allowed = HeaderValue::from_static("GET,HEAD");
        refusal.headers_mut().insert(header::ALLOW, allowed);
        return refusal;
    }
    let text = match request.uri().path() {
        "/metrics" | "/metrics/" => {
            // Reads files in /proc, one of which lists every descriptor.
            let process = tokio::task::spawn_blocking(process::render).await;
            metrics.text() + &process.unwrap_or_default()
        }
        _ => String::new(),
    };
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}
