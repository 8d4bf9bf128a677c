//! Load, reload, unload: what requests, the start and a poll do to the models of a runtime.
//!
//! A reload replaces only what changed. A version keeps its weights and its statistics if its files are the same and
//! its configuration differs only in instances and version policy; instances are then added and removed. If a reload
//! fails, the version that serves stays.
//!
//! Source of the texts: Triton, model repository extension and `ModelRepositoryManager`.

use std::{
    path::PathBuf,
    sync::{Arc, Weak, atomic::Ordering},
    time::Instant,
};

use skep_config::ModelConfig;
use skep_host::lock;
use skep_types::ModelVersion;

use crate::{
    error::{ErrorKind, RuntimeError},
    loading::{Draft, ModelPlan},
    models::{
        ensembles::RuntimeParts,
        records::{ModelRecord, VersionState},
        routes::{RoutesByName, VersionMap},
        runtime::Runtime,
    },
    repository::{
        LoadOverrides, ModelId,
        locate::{self, ConfigText},
        not_polled,
        source::ModelSource,
    },
    serving::{LoadedVersion, origin::OnGone},
    size_text::mebibytes,
};

/// The state, in the log, of a version whose reload failed.
const STILL_SERVES: &str = "still READY, since the reload failed";

impl Runtime {
    pub(super) fn unload_now(self: &Arc<Self>, id: &ModelId) {
        let Some(turn) = self.with_record(id, |record| Arc::clone(&record.turn)) else {
            return;
        };
        let _turn = lock(&turn);
        // A model that only left for a while is loaded again from the same source.
        let comes_back = self.residency.unload_begins(self, id, self.loads_of(id));
        self.with_record(id, |record| {
            record.wanted = false;
            record.failure = None;
            if !comes_back {
                record.source = None;
            }
        });
        tracing::info!("unloading model `{id}`");
        self.retire(id);
        self.log_readiness(None);
    }

    pub(super) fn load_now(
        self: &Arc<Self>,
        id: &ModelId,
        overrides: &LoadOverrides,
    ) -> Result<(), RuntimeError> {
        let outcome = self.residency.load(self, id, overrides);
        lock(&self.start_phase).is_done_with(id);
        if outcome.is_err() && !self.is_stopping() {
            // An unknown name has no record, so that clients cannot invent metrics.
            self.with_record(id, |record| record.failed_loads += 1);
        }
        self.log_readiness(outcome.is_err().then_some(id));
        outcome
    }

    /// Loads a model now. If it `is_wanted`, the node is not ready without it.
    pub(super) fn try_load(
        self: &Arc<Self>,
        id: &ModelId,
        overrides: &LoadOverrides,
        is_wanted: bool,
    ) -> Result<(), RuntimeError> {
        if overrides.files.is_empty() {
            self.find(id)?;
        }
        let turn = Arc::clone(&self.records().entry(id.clone()).or_default().turn);
        let _turn = lock(&turn);
        self.with_record(id, |record| record.wanted |= is_wanted);
        let began = Instant::now();
        let outcome = self
            .source(id, overrides)
            .and_then(|source| self.load_versions(id, source));
        // A failure is logged where it happens.
        if outcome.is_ok() {
            tracing::info!("loaded model `{id}` in {} ms", began.elapsed().as_millis());
        }
        outcome
    }

    /// Checks that the repository has the model. A wanted model that is missing is recorded.
    fn find(&self, id: &ModelId) -> Result<(), RuntimeError> {
        let repository = &self.options.repository;
        let at_start = !self.started.load(Ordering::Acquire);
        let found = repository.directory(id).map(drop).map_err(|error| {
            // Clients of later loads rely on Triton's text alone.
            let hint = at_start.then(|| repository.absent_hint(&id.name));
            error.with_hint(hint.flatten())
        });
        found.inspect_err(|error| {
            tracing::error!(
                "model `{id}`: {}: {error}",
                VersionState::Unavailable.name()
            );
            // Missing although the start names it, or claimed by several directories.
            if at_start || repository.models().contains_key(id) {
                let mut records = self.records();
                let record = records.entry(id.clone()).or_default();
                (record.wanted, record.failure) = (true, Some(error.to_string()));
            }
        })
    }

    /// The files and configuration that a load reads.
    fn source(&self, id: &ModelId, overrides: &LoadOverrides) -> Result<ModelSource, RuntimeError> {
        let config = overrides.config.as_deref();
        let made = if overrides.files.is_empty() {
            let directory = self.options.repository.directory(id)?;
            match config {
                Some(json) => ModelSource::with_config(directory, json),
                None => self.repository_source(id, directory),
            }
        } else {
            ModelSource::sent(config, &overrides.files)
        };
        made.map_err(|why| self.failed_before(id, not_polled(id.name.as_str(), &why)))
    }

    /// The files of a directory, with the configuration that a client sent for it, while that is in force.
    pub(super) fn repository_source(
        &self,
        id: &ModelId,
        directory: PathBuf,
    ) -> Result<ModelSource, String> {
        let mut source = ModelSource::repository(directory)?;
        let last = self.with_record(id, |record| record.source.clone());
        if let Some(last) = last.flatten() {
            source.keep_config_of(&last);
        }
        Ok(source)
    }

    /// Records why a load failed before any version was tried.
    fn failed_before(&self, id: &ModelId, error: RuntimeError) -> RuntimeError {
        let serves = !self.serving(id).is_empty();
        let state = if serves {
            STILL_SERVES
        } else {
            VersionState::Unavailable.name()
        };
        tracing::error!("model `{id}`: {state}: {}", error.for_log());
        self.with_record(id, |record| {
            record.failure = Some(error.to_string().trim_end().to_owned());
        });
        error
    }

    fn load_versions(
        self: &Arc<Self>,
        id: &ModelId,
        source: ModelSource,
    ) -> Result<(), RuntimeError> {
        let source = Arc::new(source);
        self.remember_sent(&source);
        let options = &self.options.load;
        let proto = Draft::read_config(&id.name, &source, options).map_err(|error| {
            let error = self.locate(&source, error, None);
            let failure = not_polled(id.name.as_str(), &error.to_string());
            self.failed_before(id, failure.at_place_of(&error))
        })?;
        let draft = Draft::new(&id.name, Arc::clone(&source), proto).map_err(|error| {
            let error = self.locate(&source, error, None);
            let text = format!("load failed for model '{}': {error}\n", id.name);
            self.failed_before(id, RuntimeError::invalid(text).at_place_of(&error))
        })?;
        self.with_record(id, |record| record.failure = None);
        let versions = draft.versions.clone();
        // Before the memory is taken: if the system then kills the process, the log names the model.
        let bytes = source.versions_bytes(&versions);
        tracing::info!("loading model `{id}`, {} of files", mebibytes(bytes));
        let mut outcomes = Vec::new();
        // One ensemble at a time, so that no two become each other's parts.
        let _ensembles = draft.is_ensemble().then(|| lock(&self.ensemble_turn));
        match draft.plan(options, &self.backends) {
            Ok(plan) => {
                if let Some(notice) = plan.missing_cache(options) {
                    let text = ConfigText::of(&source, options.config_choice());
                    let notice = locate::notice(&text.places(), &notice);
                    tracing::warn!("model `{id}`: {notice}");
                }
                for version in versions {
                    let loaded = self.load_version(id, &plan, version);
                    let loaded =
                        loaded.map_err(|error| self.locate(&source, error, Some(plan.config())));
                    outcomes.push((version, loaded));
                }
            }
            Err(error) => {
                let error = self.locate(&source, error, None);
                let failed = versions.into_iter();
                outcomes.extend(failed.map(|version| (version, Err(error.clone()))));
            }
        }
        self.commit(id, source, outcomes)
    }

    /// Adds the place in the configuration file that an error is about.
    fn locate(
        &self,
        source: &ModelSource,
        error: RuntimeError,
        config: Option<&ModelConfig>,
    ) -> RuntimeError {
        let choice = self.options.load.config_choice();
        ConfigText::of(source, choice).locate(error, config)
    }

    /// Loads a version, or keeps it and changes its instances if nothing else changed.
    fn load_version(
        self: &Arc<Self>,
        id: &ModelId,
        plan: &ModelPlan,
        version: ModelVersion,
    ) -> Result<(Option<u64>, Arc<LoadedVersion>), RuntimeError> {
        let serving = self.serving(id).remove(&version);
        if let Some(loaded) = serving.filter(|loaded| plan.keeps(loaded)) {
            return plan.update(&loaded).map(|updated| (None, updated));
        }
        let generation = self.with_record(id, |record| record.loading(version));
        let generation = generation.unwrap_or_default();
        let on_gone = || self.on_gone(id, version, generation);
        let options = &self.options.load;
        let namespace = id.namespace.clone();
        let ready = match plan {
            ModelPlan::Instances(plan) => plan.load(version, options, namespace, on_gone),
            ModelPlan::Ensemble(plan) => {
                let models = Arc::new(RuntimeParts(Arc::downgrade(self)));
                plan.load(version, options, namespace, models, on_gone())
            }
        }?;
        if let Some(warning) = ready.objective_warning() {
            tracing::warn!("model `{id}` version {version}: {warning}");
        }
        Ok((Some(generation), Arc::new(ready)))
    }

    /// Replaces the versions that serve with the loaded ones. A version whose load failed keeps serving.
    fn commit(
        &self,
        id: &ModelId,
        source: Arc<ModelSource>,
        outcomes: Vec<(ModelVersion, VersionOutcome)>,
    ) -> Result<(), RuntimeError> {
        let serving = self.serving(id);
        let mut next = VersionMap::new();
        let (mut failures, mut any) = (String::new(), false);
        let mut records = self.records();
        if self.is_stopping() {
            // The loaded versions are dropped here, after the lock, which their end takes.
            drop(records);
            let text = "Server is stopping, the model is not loaded";
            tracing::error!("model `{id}`: {text}");
            return Err(RuntimeError::new(ErrorKind::Unavailable, text));
        }
        let record = records.entry(id.clone()).or_default();
        for (version, outcome) in outcomes {
            match outcome {
                Ok((generation, loaded)) => {
                    any = true;
                    record.ready(version, generation);
                    next.insert(version, loaded);
                }
                Err(error) => {
                    let reason = format!("{}: {error}", error.kind().name());
                    record.failed(version, &reason);
                    let state = record.state_of(version).name();
                    let serves = serving.contains_key(&version);
                    let said = if serves { STILL_SERVES } else { state };
                    tracing::error!(
                        "model `{id}` version {version}: {said}: {}: {}",
                        error.kind().name(),
                        error.for_log()
                    );
                    failures += &format!(" version {version} is at {state} state: {reason};");
                    if let Some(loaded) = serving.get(&version) {
                        next.insert(version, Arc::clone(loaded));
                    }
                }
            }
        }
        // If nothing new was loaded, everything keeps serving, even versions that the policy no longer wants.
        let previous = any.then(|| {
            record.source = Some(source);
            self.replace(record, id, next)
        });
        drop(records);
        drop((previous, serving));
        if failures.is_empty() {
            return Ok(());
        }
        let text = format!("load failed for model '{}':{failures}\n", id.name);
        Err(RuntimeError::invalid(text))
    }

    /// Takes all versions of a model out of the routing table. They finish their requests.
    pub(super) fn retire(&self, id: &ModelId) {
        let mut records = self.records();
        let previous = records
            .get_mut(id)
            .map(|record| self.replace(record, id, VersionMap::new()));
        drop(records);
        drop(previous);
    }

    /// Puts `next` into the routing table. The old table comes back, to be dropped without the lock.
    fn replace(
        &self,
        record: &mut ModelRecord,
        id: &ModelId,
        next: VersionMap,
    ) -> Arc<RoutesByName> {
        for (version, loaded) in self.serving(id) {
            let next = next.get(&version);
            if next.is_none() {
                record.unloading(version);
            }
            if next.is_none_or(|next| !Arc::ptr_eq(&next.responder, &loaded.responder)) {
                // No further requests come that would be worth waiting for.
                loaded.responder.hurry();
            }
        }
        self.routes.replace(id, next)
    }

    /// Whether nothing of a model is in memory.
    pub(super) fn is_gone(&self, id: &ModelId) -> bool {
        let is_ending = |record: &mut ModelRecord| {
            let mut versions = record.versions.values();
            versions.any(|status| status.state == VersionState::Unloading)
        };
        self.serving(id).is_empty() && !self.with_record(id, is_ending).unwrap_or(false)
    }

    /// The callback for the moment when a version's last instance and its weights are gone.
    fn on_gone(self: &Arc<Self>, id: &ModelId, version: ModelVersion, generation: u64) -> OnGone {
        let (runtime, id): (Weak<Self>, ModelId) = (Arc::downgrade(self), id.clone());
        Box::new(move || {
            let Some(runtime) = runtime.upgrade() else {
                return;
            };
            runtime.with_record(&id, |record| {
                if record.gone(version, generation) {
                    // Under the lock, so that waiters, and the log of a stop, come after this line.
                    tracing::info!("unloaded model `{id}` version {version}");
                }
            });
            runtime.gone.notify_all();
            runtime
                .residency
                .load_gone(&runtime, &id, (version, generation));
        })
    }

    /// The versions that serve, each with the number of its load.
    fn loads_of(&self, id: &ModelId) -> Vec<VersionLoad> {
        let serving = self.serving(id);
        let numbered = |record: &mut ModelRecord| {
            let versions = serving.keys().filter_map(|version| {
                let status = record.versions.get(version)?;
                Some((*version, status.generation))
            });
            versions.collect()
        };
        self.with_record(id, numbered).unwrap_or_default()
    }
}

/// A version, and the number of its load among all loads of the model.
pub(super) type VersionLoad = (ModelVersion, u64);

/// A loaded version and the number of its load; `None` for a version that was kept.
type VersionOutcome = Result<(Option<u64>, Arc<LoadedVersion>), RuntimeError>;
