//! Readiness: whether the node takes requests.

use std::sync::{Arc, atomic::Ordering};

use skep_host::lock;
use skep_types::ModelName;

use crate::{models::runtime::Runtime, repository::ModelId};

impl Runtime {
    /// Whether the node takes requests: started, not stopping, and, if strict, with every requested model ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        if !self.started.load(Ordering::Acquire) || self.is_stopping() {
            return false;
        }
        !self.options.strict_readiness || {
            let records = self.records();
            let mut wanted = records.iter().filter(|(_, record)| record.wanted);
            wanted.all(|(id, _)| self.is_model_healthy(id))
        }
    }

    /// Whether a model takes requests, and all its versions can run.
    fn is_model_healthy(&self, id: &ModelId) -> bool {
        let healthy = self.routes.with_versions_of(id, |versions| {
            versions.values().all(|version| version.is_healthy())
        });
        healthy.unwrap_or(false)
    }

    /// Logs each change of readiness once, after a load or an unload. `failed` is a model whose load failed; one that
    /// is still being loaded is not a reason to log yet.
    pub(super) fn log_readiness(&self, failed: Option<&ModelId>) {
        let mut logged_ready = lock(&self.logged_ready);
        if !self.started.load(Ordering::Acquire) || self.is_stopping() {
            return;
        }
        let is_ready = self.is_ready();
        if is_ready && !*logged_ready {
            *logged_ready = true;
            tracing::info!("ready for requests: every requested model is loaded");
        } else if !is_ready
            && *logged_ready
            && let Some(id) = failed.filter(|id| self.serving(id).is_empty())
        {
            *logged_ready = false;
            tracing::warn!(
                "not ready any more: model `{id}` failed to load; the others are served, and `/v2/health/ready` answers 400 until \
                 every model is loaded; with `--strict-readiness=false` the server is ready without it"
            );
        }
    }

    /// How many loads failed of each model that should be loaded, reloads included: namespace, name, count.
    #[must_use]
    pub fn load_failures(&self) -> Vec<(Option<Arc<str>>, ModelName, u64)> {
        let records = self.records();
        let wanted = records.iter().filter(|(_, record)| record.wanted);
        wanted
            .map(|(id, record)| (id.namespace.clone(), id.name.clone(), record.failed_loads))
            .collect()
    }
}
