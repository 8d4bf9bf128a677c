//! How an ensemble finds the models of its steps. The look-up is handed down from `models/`, whose table it reads.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use skep_config::{EnsembleStep, ModelConfig};
use skep_types::ModelVersion;

use crate::{error::RuntimeError, repository::ModelId, serving::LoadedVersion};

/// The version that a step's requests go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepTarget {
    /// The model. If names need not be unique, in the repository that the step names, or in the ensemble's own.
    pub(crate) id: ModelId,
    /// `None` for the latest one.
    pub(crate) version: Option<ModelVersion>,
}

impl StepTarget {
    /// The target of a step of an ensemble in this namespace.
    pub(crate) fn new(step: &EnsembleStep, namespace: Option<&Arc<str>>) -> Self {
        let named = step.namespace.as_deref().map(Arc::from);
        Self {
            id: ModelId {
                namespace: named.or_else(|| namespace.cloned()),
                name: step.model.clone(),
            },
            version: step.version,
        }
    }
}

impl fmt::Display for StepTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.name.fmt(f)?;
        match self.version {
            Some(version) => write!(f, " version {version}"),
            None => Ok(()),
        }
    }
}

/// A version that is being looked for.
pub(crate) type AcquiredVersion<'a> =
    Pin<Box<dyn Future<Output = Result<Arc<LoadedVersion>, RuntimeError>> + Send + 'a>>;

/// Finds the configurations of parts.
pub(crate) trait PartConfigs {
    /// The configuration of a part, checked against its file: of the version that serves, or of the one that a request
    /// would load.
    ///
    /// # Errors
    /// Why the part is not available.
    fn config(&self, target: &StepTarget) -> Result<Arc<ModelConfig>, RuntimeError>;
}

/// Finds the parts themselves.
pub(crate) trait StepModels: PartConfigs + fmt::Debug + Send + Sync {
    /// The version, if it takes requests now.
    fn resident(&self, target: &StepTarget) -> Option<Arc<LoadedVersion>>;

    /// Whether a request loads it.
    fn loads_on_request(&self, target: &StepTarget) -> bool;

    /// The version, which is loaded if it can be, within `timeout`.
    fn acquire(&self, target: StepTarget, timeout: Option<Duration>) -> AcquiredVersion<'_>;
}
