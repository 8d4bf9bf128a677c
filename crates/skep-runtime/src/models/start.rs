//! The start of a node: the models that it loads first.

use std::sync::{Arc, atomic::Ordering};

use skep_host::lock;
use skep_types::ModelName;

use crate::{
    error::RuntimeError,
    models::{
        LoadPolicy,
        management::{CallTarget, ManagementCall},
        poll, residency,
        runtime::{Control, Runtime},
        start_phase::StartPhase,
    },
    repository::{LoadOverrides, ModelId, scan::RepositoryScan},
};

/// The outcome of the start for each requested model.
pub type StartReport = Vec<(ModelName, Result<(), RuntimeError>)>;

impl Runtime {
    /// Announces that [`start`](Self::start) comes next: until the start knows its models, every name may be one of
    /// them.
    pub fn announce_start(&self) {
        *lock(&self.start_phase) = StartPhase::Announced;
    }

    /// Loads the models of the start, several at once: the named ones, or all of the repository. Blocks.
    pub fn start(self: &Arc<Self>, names: Option<&[ModelName]>) -> StartReport {
        let ids: Vec<ModelId> = match (names, self.loads_lazily()) {
            (Some(names), _) => names.iter().flat_map(|name| self.ids(name)).collect(),
            (None, true) => Vec::new(),
            (None, false) => self.options.repository.models().into_keys().collect(),
        };
        self.know_repository();
        // Before the loads, so that the first poll sees later changes.
        let polling = match self.options.control {
            Control::Poll(interval) => Some((
                interval,
                RepositoryScan::default().rescan(&self.options.repository),
            )),
            _ => None,
        };
        *lock(&self.start_phase) = StartPhase::Loading(ids.iter().cloned().collect());
        let mut report = self.load_all(ids, &LoadOverrides::default());
        {
            // Locked over both, so that a load that ends in between compares with the start's readiness.
            let mut logged_ready = lock(&self.logged_ready);
            self.started.store(true, Ordering::Release);
            *logged_ready = self.is_ready();
        }
        *lock(&self.start_phase) = StartPhase::Over;
        if let Some((interval, files)) = polling
            && let Err(error) = poll::start(self, interval, files)
        {
            tracing::error!("{error}");
        }
        if self.residency.is_some()
            && let Err(error) = residency::watch(self)
        {
            tracing::error!("{error}");
        }
        report.sort_by(|a, b| a.0.cmp(&b.0));
        report
    }

    /// Whether the start leaves models to their first requests.
    pub(super) fn loads_lazily(&self) -> bool {
        let control = self.residency.as_ref();
        control.is_some_and(|control| control.settings.load_policy == LoadPolicy::Lazy)
    }

    /// Makes the models of the repository known to residency.
    fn know_repository(&self) {
        if let Some(control) = self.residency.as_ref().filter(|_| self.loads_lazily()) {
            for (id, directories) in self.options.repository.models() {
                // A name that is not unique cannot be loaded.
                if let [directory] = &directories[..] {
                    control.know_directory(&id, directory);
                }
            }
        }
    }

    /// Loads models, several at once. Blocks until all are loaded or have failed.
    pub(super) fn load_all(
        self: &Arc<Self>,
        ids: Vec<ModelId>,
        overrides: &LoadOverrides,
    ) -> StartReport {
        let calls = ids.iter().map(|id| ManagementCall::Load {
            target: CallTarget::One(id.clone()),
            overrides: overrides.clone(),
        });
        let outcomes = self.manage_now(calls, false);
        let names = ids.into_iter().map(|id| id.name);
        let outcomes = outcomes.into_iter().map(|outcome| outcome.map(drop));
        names.zip(outcomes).collect()
    }

    /// Unloads models. Blocks until they take no more requests.
    pub(super) fn unload_all(self: &Arc<Self>, ids: Vec<ModelId>) {
        let targets = ids.into_iter().map(CallTarget::One);
        drop(self.manage_now(targets.map(ManagementCall::Unload), false));
    }

    /// Whether the start may still load a model of this name.
    pub(super) fn start_may_load(&self, name: &str) -> bool {
        !self.is_stopping() && lock(&self.start_phase).may_load(name)
    }
}
