//! `sequence_batching`: requests of one sequence go to one instance, which keeps state between them. Not supported yet.

use crate::{error::ConfigError, fields::review::Review};

const INSTEAD: &str = "a model that keeps no state between requests works without it; one that does can take its state as \
                       an input and return the next state as an output";

pub(super) fn review(review: &Review<'_>) -> Result<(), ConfigError> {
    review.unsupported(true, "sequence_batching", INSTEAD)
}
