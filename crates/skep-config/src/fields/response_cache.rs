//! `response_cache`: answers kept for equal requests. Not supported yet.

use skep_proto::inference;

use super::review::Review;
use crate::error::ConfigError;

pub(super) fn review(
    review: &Review<'_>,
    cache: Option<&inference::ModelResponseCache>,
) -> Result<(), ConfigError> {
    let Some(inference::ModelResponseCache { enable }) = cache else {
        return Ok(());
    };
    review.unsupported(
        *enable,
        "response_cache.enable",
        "remove it: Skep then computes every request, with the same answers",
    )
}
