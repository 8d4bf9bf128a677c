//! Every metric: its name, its help, and the source of its figure; a file for each subject.
//!
//! To add a metric, write its family in the file of its subject. Call a new function from [`render`], which sets the
//! order of the text. Figures of a version are read once, in `version`, so that all metrics of one answer agree.

mod batching;
mod inference;
mod instances;
mod machine;
mod memory;
mod objectives;
mod repository;
mod residency;
mod response_cache;
mod store;
mod traces;
mod version;

use std::sync::Arc;

use skep_runtime::{LoadedVersion, Runtime};
use skep_tensor::MemoryBudget;
use skep_tracing::Tracer;

use self::version::VersionFigures;
use super::{options::MetricsPortOptions, sampler::MetricsSample, text::MetricsText};

/// All metrics of a node, Triton's in Triton's order.
pub(super) fn render(
    runtime: &Runtime,
    options: &MetricsPortOptions,
    sample: &MetricsSample,
    request_memory: &MemoryBudget,
    tracer: &Tracer,
) -> String {
    let loaded = runtime.loaded();
    let shown = |loaded: &Arc<LoadedVersion>| options.shows(loaded.name().as_str());
    let rows: Vec<VersionFigures> = loaded
        .iter()
        .filter(|loaded| shown(loaded))
        .map(|loaded| VersionFigures::new(Arc::clone(loaded)))
        .collect();
    let left_out = loaded.len() - rows.len();
    let mut text = MetricsText::default();
    inference::requests(&mut text, &rows);
    if options.counters {
        inference::durations(&mut text, &rows);
    }
    response_cache::lookups(&mut text, &rows, options.counters);
    inference::state(&mut text, &rows);
    machine::machine(&mut text, sample);
    inference::summaries(&mut text, &rows, &options.quantiles);
    inference::histograms(&mut text, &rows);
    batching::batch_ends(&mut text, &rows);
    batching::policies(&mut text, &rows);
    batching::sequences(&mut text, &rows);
    objectives::render(&mut text, &rows);
    instances::busy(&mut text, &rows, sample);
    memory::of_requests(&mut text, request_memory);
    memory::of_runs(&mut text, &rows);
    response_cache::contents(&mut text, &rows, runtime);
    store::render(&mut text, runtime);
    repository::polls(&mut text, runtime);
    repository::loads(&mut text, runtime, options);
    residency::render(&mut text, runtime, left_out);
    traces::render(&mut text, tracer);
    text.finish()
}
