//! `ensemble_scheduling`: a model that is a graph of other models. Not supported yet.

use crate::{error::ConfigError, fields::review::Review};

const INSTEAD: &str = "serve each step as its own model and let the client call them in turn, or merge the steps into one ONNX \
                       graph (`onnx.compose.merge_models`)";

pub(super) fn review(review: &Review<'_>) -> Result<(), ConfigError> {
    Err(unsupported(review.model, "ensemble_scheduling"))
}

/// The refusal of an ensemble that `field` asks for; a platform and a backend can ask for one as well.
pub(crate) fn unsupported(model: &str, field: &str) -> ConfigError {
    ConfigError::Unsupported {
        model: model.to_owned(),
        field: field.to_owned(),
        hint: Some(INSTEAD.to_owned()),
    }
}
