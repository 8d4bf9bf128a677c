//! The start of a node: the models that it loads first.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use skep_config::LoadPolicy;
use skep_host::lock;
use skep_types::ModelName;

use crate::{
    error::RuntimeError,
    models::{
        ensembles::LoadCall,
        management::{CallTarget, ManagementCall},
        poll,
        residency::{self, KnownTerms},
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
        let ids = self.start_models(names);
        // Before the loads, so that the first poll sees later changes.
        let polling = match self.options.control {
            Control::Poll(interval) => Some((
                interval,
                RepositoryScan::default().rescan(&self.options.repository),
            )),
            _ => None,
        };
        *lock(&self.start_phase) = StartPhase::Loading(ids.iter().cloned().collect());
        let (pinned, others) = ids.into_iter().partition(|id| self.residency.is_pinned(id));
        let mut report = Vec::new();
        // What never leaves gets its room first.
        for ids in [pinned, others] {
            report.extend(self.load_all(ids, &LoadOverrides::default()));
        }
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
        if let Err(error) = residency::watch(self) {
            tracing::error!("{error}");
        }
        report.sort_by(|a, b| a.0.cmp(&b.0));
        report
    }

    /// The models that the start loads: the named ones, or all of the repository but those that are left to their first
    /// request. Those become known here.
    fn start_models(&self, names: Option<&[ModelName]>) -> Vec<ModelId> {
        let lazy = self.options.residency.load_policy == LoadPolicy::Lazy;
        let mut ids = Vec::new();
        // In mode explicit a model that is neither named nor lazy is not there before its load.
        if names.is_none() || lazy {
            for (id, directories) in self.options.repository.models() {
                let waits = match &directories[..] {
                    [directory] => self.know_again(&id, directory),
                    // A name that is not unique cannot be loaded.
                    _ => lazy,
                };
                if !waits && (names.is_none() || self.residency.is_pinned(&id)) {
                    ids.push(id);
                }
            }
        }
        let named = names.unwrap_or_default().iter();
        ids.extend(named.flat_map(|name| self.ids(name)));
        let mut seen = BTreeSet::new();
        ids.retain(|id| seen.insert(id.clone()));
        ids
    }

    /// Makes a model known with what its directory says now. Returns whether it is left to its first request.
    pub(super) fn know_again(&self, id: &ModelId, directory: &Path) -> bool {
        let terms = self.terms_of(id, directory);
        let waits = self.options.residency.leaves_to_requests(&terms.settings);
        self.residency.know(id, terms);
        waits
    }

    /// What a model's directory says of it.
    pub(super) fn terms_of(&self, id: &ModelId, directory: &Path) -> KnownTerms {
        let choice = self.options.load.config_choice();
        KnownTerms::of_model(&id.name, directory, choice)
    }

    /// Loads models, several at once. Blocks until all are loaded or have failed.
    pub(super) fn load_all(
        self: &Arc<Self>,
        ids: Vec<ModelId>,
        overrides: &LoadOverrides,
    ) -> StartReport {
        let calls = ids.iter().map(|id| LoadCall {
            target: CallTarget::One(id.clone()),
            overrides: overrides.clone(),
        });
        let mut seen = ids.iter().cloned().collect();
        let outcomes = self.load_with_parts(calls.collect(), &mut seen, false);
        ids.iter().for_each(|id| self.asked_for(id));
        let names = ids.into_iter().map(|id| id.name);
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
