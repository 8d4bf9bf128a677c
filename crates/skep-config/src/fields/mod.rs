//! The messages of a configuration, one file each: what is honoured, what has no effect, what is refused.
//!
//! A file has up to two functions. `review` sees the message as the user wrote it: it refuses what is not supported yet
//! and notes what has no effect. `read` runs later: it checks the message, fills in defaults and types it.
//!
//! Each message is destructured without `..`, so a field added to the `.proto` does not compile until its file decides
//! about it. `docs/model-configuration.md` documents the decisions, and a test checks that it has every field.

pub(crate) mod identity;
pub(crate) mod instances;
pub(crate) mod live;
pub(crate) mod metrics;
pub(crate) mod optimization;
pub(crate) mod options;
pub(crate) mod parameters;
mod plugins;
pub(crate) mod ragged;
pub(crate) mod residency;
pub(crate) mod response_cache;
mod review;
pub(crate) mod scheduling;
pub(crate) mod tensors;
pub(crate) mod version_policy;
pub(crate) mod warmup;

use skep_proto::inference;

use self::review::Review;
use crate::{
    error::ConfigError,
    vocabulary::{context::ConfigContext, notice::Notice},
};

/// Reviews a whole configuration, before any default is written: only what the user set is worth a line.
pub(crate) fn review(
    proto: &inference::ModelConfig,
    context: &ConfigContext<'_>,
    notices: &mut Vec<Notice>,
) -> Result<(), ConfigError> {
    let inference::ModelConfig {
        // identity.rs
        name: _,
        platform: _,
        backend: _,
        max_batch_size: _,
        default_model_filename: _,
        // version_policy.rs
        version_policy: _,
        runtime,
        input,
        output,
        // ragged.rs
        batch_input: _,
        batch_output: _,
        optimization,
        scheduling_choice,
        instance_group,
        cc_model_filenames,
        // metrics.rs
        metric_tags: _,
        model_metrics: _,
        // parameters.rs
        parameters: _,
        // warmup.rs
        model_warmup: _,
        model_operations,
        // read by `ModelConfig::is_decoupled`
        model_transaction_policy: _,
        model_repository_agents,
        // response_cache.rs
        response_cache: _,
    } = proto;
    let mut review = Review::new(proto, context, notices);
    response_cache::review(&review, proto)?;
    scheduling::ensemble::review(proto)?;
    review.no_effect(
        !runtime.is_empty(),
        "runtime",
        "no effect: backends are built in, and Skep loads no library by name",
    );
    tensors::review_inputs(&mut review, input)?;
    tensors::review_outputs(&review, output)?;
    optimization::review(&mut review, optimization.as_ref())?;
    scheduling::review(&review, scheduling_choice.as_ref())?;
    instances::review(&mut review, instance_group)?;
    review.no_gpu(!cc_model_filenames.is_empty(), "cc_model_filenames");
    plugins::review_operations(&review, model_operations.as_ref())?;
    plugins::review_agents(&review, model_repository_agents.as_ref())
}
