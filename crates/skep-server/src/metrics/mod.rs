//! Metrics: Triton's names, labels, texts and meanings, and Skep's own beside them.
//!
//! Written out of the statistics themselves when somebody asks: a second set of counters beside them could only
//! disagree. What is a difference of two moments (utilization, busy fractions) is sampled in between.
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
}

impl Metrics {
    pub(crate) fn new(
        runtime: Arc<Runtime>,
        options: MetricsPortOptions,
        memory: Arc<MemoryBudget>,
    ) -> Arc<Self> {
        let sampler = Sampler::new(options.cpu);
        Arc::new(Self {
            runtime,
            options,
            sampler,
            memory,
        })
    }

    /// Samples at every interval, for ever.
    pub(crate) async fn keep_sampling(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.options.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let metrics = Arc::clone(&self);
            let sample = move || metrics.sampler.sample(&metrics.runtime);
            // Reads files of the kernel's: some tens of microseconds, but not on the reactor.
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
        )
    }
}

/// The port: `GET` and `HEAD` of `/metrics`. As on Triton, any other path is an empty text and any other method is refused.
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
            // Reads files of the kernel's, of which one names every descriptor.
            let process = tokio::task::spawn_blocking(process::render).await;
            metrics.text() + &process.unwrap_or_default()
        }
        _ => String::new(),
    };
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}
