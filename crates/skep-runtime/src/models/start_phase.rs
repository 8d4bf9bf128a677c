//! How far a start is: which names it may still load.

use std::collections::BTreeSet;

use crate::repository::ModelId;

/// How far a start is.
#[derive(Debug, Default)]
pub(super) enum StartPhase {
    /// It comes next, and the models that it loads are not known yet.
    Announced,
    /// These models are still to be loaded.
    Loading(BTreeSet<ModelId>),
    /// It is over, or was never announced.
    #[default]
    Over,
}

impl StartPhase {
    /// Notes that the start is done with a model, loaded or failed.
    pub(super) fn is_done_with(&mut self, id: &ModelId) {
        if let Self::Loading(ids) = self {
            ids.remove(id);
        }
    }

    /// Whether the start may still load a model of this name.
    pub(super) fn may_load(&self, name: &str) -> bool {
        match self {
            Self::Announced => true,
            Self::Loading(ids) => ids.iter().any(|id| id.name.as_str() == name),
            Self::Over => false,
        }
    }
}
