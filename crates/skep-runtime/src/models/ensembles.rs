//! Ensembles and their parts: how an ensemble finds its parts, which loads come before its own, which models go with one.
//!
//! An ensemble's load does not wait for those of its parts on its own thread: with as many ensembles as threads nothing
//! would load at all. It reports which parts are missing instead; the caller has these loaded, and asks again.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use skep_config::ModelConfig;
use skep_proto::inference;
use skep_types::ModelName;

use crate::{
    error::{ErrorKind, RuntimeError},
    loading::{Draft, RepositoryParts},
    models::{
        management::{CallDone, CallOutcome, CallTarget, ManagementCall},
        runtime::Runtime,
    },
    repository::{LoadOverrides, ModelId, source::parse_sent},
    serving::{
        LoadedVersion,
        ensemble::{AcquiredVersion, PartConfigs, StepModels, StepTarget},
    },
};

/// The models of a runtime, for its ensembles, which it owns.
pub(super) struct RuntimeParts(pub(super) Weak<Runtime>);

impl RuntimeParts {
    fn runtime(&self) -> Result<Arc<Runtime>, RuntimeError> {
        let stopped = || RuntimeError::new(ErrorKind::Unavailable, "the server has stopped");
        self.0.upgrade().ok_or_else(stopped)
    }
}

impl fmt::Debug for RuntimeParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RuntimeParts")
    }
}

impl PartConfigs for RuntimeParts {
    fn config(&self, target: &StepTarget) -> Result<Arc<ModelConfig>, RuntimeError> {
        let runtime = self.runtime()?;
        if let Some(part) = runtime.resident_part(target) {
            return Ok(Arc::clone(&part.config));
        }
        let name = target.id.name.as_str();
        if !runtime.loads_on_request(name, version_text(target).as_deref()) {
            let why = runtime.why_missing(target);
            return Err(RuntimeError::new(ErrorKind::Unavailable, why));
        }
        runtime.repository_parts().config(target)
    }
}

impl StepModels for RuntimeParts {
    fn resident(&self, target: &StepTarget) -> Option<Arc<LoadedVersion>> {
        self.0.upgrade()?.resident_part(target)
    }

    fn loads_on_request(&self, target: &StepTarget) -> bool {
        self.0.upgrade().is_some_and(|runtime| {
            runtime.loads_on_request(target.id.name.as_str(), version_text(target).as_deref())
        })
    }

    fn acquire(&self, target: StepTarget, timeout: Option<Duration>) -> AcquiredVersion<'_> {
        Box::pin(async move {
            let runtime = self.runtime()?;
            let version = version_text(&target);
            runtime
                .acquire(target.id.name.as_str(), version.as_deref(), timeout)
                .await
        })
    }
}

fn version_text(target: &StepTarget) -> Option<String> {
    target.version.map(|version| version.to_string())
}

/// A load, before which an ensemble's parts may have to be loaded.
pub(super) struct LoadCall {
    pub(super) target: CallTarget,
    pub(super) overrides: LoadOverrides,
}

impl LoadCall {
    /// The call that reports missing parts, or that fails for want of them.
    pub(super) fn managed(&self, reports_missing: bool) -> ManagementCall {
        ManagementCall::Load {
            target: self.target.clone(),
            overrides: self.overrides.clone(),
            reports_missing,
        }
    }
}

impl Runtime {
    pub(super) fn repository_parts(&self) -> RepositoryParts<'_> {
        RepositoryParts {
            repository: &self.options.repository,
            options: &self.options.load,
            backends: &self.backends,
        }
    }

    /// The version of a step, if it takes requests now.
    fn resident_part(&self, target: &StepTarget) -> Option<Arc<LoadedVersion>> {
        let of_namespace = self.routes.with_versions_of(&target.id, |versions| {
            let version = match target.version {
                Some(version) => versions.get(&version),
                None => versions.values().next_back(),
            };
            version.cloned()
        });
        match of_namespace {
            Some(version) => version,
            None => {
                // Not by `resolve`, which looks at the records, whose lock a caller may hold.
                let version = version_text(target);
                let found = self
                    .routes
                    .find(target.id.name.as_str(), version.as_deref());
                found.ok().flatten()
            }
        }
    }

    /// Why a part is not available.
    fn why_missing(&self, target: &StepTarget) -> String {
        let records = self.records();
        let record = records.iter().find(|(id, _)| id.name == target.id.name);
        let Some((_, record)) = record else {
            drop(records);
            return match self.repository_parts().id(target) {
                Ok(_) => format!("model '{}' is not loaded", target.id.name),
                Err(error) => error.to_string(),
            };
        };
        let mut reasons: Vec<String> = record.failure.iter().cloned().collect();
        for (version, status) in &record.versions {
            let reason = match &*status.reason {
                "" => String::new(),
                reason => format!(": {reason}"),
            };
            reasons.push(format!(
                "version {version} is at {} state{reason}",
                status.state.name()
            ));
        }
        if reasons.is_empty() {
            return format!("model '{}' is not loaded", target.id.name);
        }
        format!("model '{}': {}", target.id.name, reasons.join("; "))
    }

    /// The parts of an ensemble that a load would need and that are neither loaded nor loaded on request; none for any
    /// other model.
    pub(super) fn missing_parts(&self, id: &ModelId, overrides: &LoadOverrides) -> Vec<ModelId> {
        // Without one the load says why.
        let config = self.config_of(id, overrides).unwrap_or_default();
        let missing = skep_config::ensemble_parts(&config).filter_map(|(model, namespace)| {
            let target = StepTarget {
                id: ModelId {
                    namespace: namespace.map(Arc::from).or_else(|| id.namespace.clone()),
                    name: model,
                },
                version: None,
            };
            let is_there = self.resident_part(&target).is_some()
                || self.loads_on_request(target.id.name.as_str(), None);
            let part = (!is_there).then(|| self.repository_parts().id(&target).ok());
            part.flatten().filter(|part| part != id)
        });
        let missing: BTreeSet<ModelId> = missing.collect();
        missing.into_iter().collect()
    }

    /// The configuration that a load would read.
    fn config_of(&self, id: &ModelId, overrides: &LoadOverrides) -> Option<inference::ModelConfig> {
        if let Some(json) = &overrides.config {
            return parse_sent(json).ok();
        }
        let directory = self.options.repository.directory(id).ok()?;
        let source = self.repository_source(id, directory).ok()?;
        Draft::read_config(&id.name, &source, &self.options.load).ok()
    }

    /// Loads models, several at once, and before each ensemble the parts that it lacks. `seen` are the models that are
    /// being loaded already, so that a circle of ensembles ends. Blocks.
    pub(super) fn load_with_parts(
        self: &Arc<Self>,
        calls: Vec<LoadCall>,
        seen: &mut BTreeSet<ModelId>,
        from_client: bool,
    ) -> Vec<Result<(), RuntimeError>> {
        let first = calls.iter().map(|call| call.managed(true));
        let mut outcomes = self.manage_now(first, from_client);
        let mut parts = BTreeSet::new();
        for outcome in outcomes.iter().flatten() {
            if let CallDone::LacksParts(missing) = outcome {
                parts.extend(missing.iter().filter(|part| !seen.contains(part)).cloned());
            }
        }
        let mut waiting = lacking_parts(&outcomes);
        if !parts.is_empty() {
            self.load_parts(parts, seen);
        }
        // Ensembles on other ones have to wait for these; each round loads at least one, or all are tried as they are.
        let mut reports_missing = true;
        while !waiting.is_empty() {
            let round = waiting
                .iter()
                .map(|position| calls[*position].managed(reports_missing));
            let round = self.manage_now(round, from_client);
            for (position, outcome) in waiting.iter().zip(round) {
                outcomes[*position] = outcome;
            }
            let left = lacking_parts(&outcomes);
            reports_missing = left.len() < waiting.len();
            waiting = left;
        }
        outcomes
            .into_iter()
            .map(|outcome| outcome.map(drop))
            .collect()
    }

    /// Loads the parts of ensembles. What fails is that part's failure, and the ensemble's load names it.
    pub(super) fn load_parts(
        self: &Arc<Self>,
        parts: BTreeSet<ModelId>,
        seen: &mut BTreeSet<ModelId>,
    ) {
        seen.extend(parts.iter().cloned());
        let calls = parts.iter().cloned().map(|part| LoadCall {
            target: CallTarget::One(part),
            overrides: LoadOverrides::default(),
        });
        drop(self.load_with_parts(calls.collect(), seen, false));
        self.loaded_as_parts(&parts);
    }

    /// Notes that models were loaded because an ensemble needs them.
    fn loaded_as_parts(&self, parts: &BTreeSet<ModelId>) {
        for part in parts {
            self.with_record(part, |record| record.is_part = true);
        }
    }

    /// Notes that a model was asked for by its name.
    pub(super) fn asked_for(&self, id: &ModelId) {
        self.with_record(id, |record| record.is_part = false);
    }

    /// The ensembles that need a model with this name, the outermost first.
    pub(super) fn ensembles_on(&self, name: &ModelName) -> Vec<ModelName> {
        let loaded = self.loaded();
        let mut found: Vec<ModelName> = Vec::new();
        let mut next = vec![name.clone()];
        while let Some(part) = next.pop() {
            for ensemble in loaded.iter().filter(|one| has_part(one, &part)) {
                if !found.contains(ensemble.name()) {
                    found.push(ensemble.name().clone());
                    next.push(ensemble.name().clone());
                }
            }
        }
        found.reverse();
        found
    }

    /// The parts of an ensemble that were loaded for it, and that no other loaded ensemble needs.
    pub(super) fn parts_only_of(&self, name: &ModelName) -> Vec<ModelName> {
        let loaded = self.loaded();
        let mut leaving = vec![name.clone()];
        let mut next = 0;
        while let Some(ensemble) = leaving.get(next).cloned() {
            next += 1;
            let versions = loaded.iter().filter(|one| *one.name() == ensemble);
            let parts = versions.filter_map(|one| one.config().ensemble());
            for step in parts.flat_map(|ensemble| &ensemble.steps) {
                let part = &step.model;
                let others = loaded
                    .iter()
                    .filter(|one| has_part(one, part) && !leaving.contains(one.name()));
                let records = self.records();
                let mut records = records.iter().filter(|(id, _)| id.name == *part);
                let is_part = records.all(|(_, record)| record.is_part);
                if is_part && !leaving.contains(part) && others.count() == 0 {
                    leaving.push(part.clone());
                }
            }
        }
        leaving.split_off(1)
    }

    /// Stops ensembles before their parts: each takes no new requests, and those that it has end.
    pub(super) fn drain_ensembles(&self, deadline: Option<Instant>) {
        let mut left: Vec<Arc<LoadedVersion>> = self.loaded();
        left.retain(|one| one.config().ensemble().is_some());
        while !left.is_empty() {
            let is_part =
                |one: &Arc<LoadedVersion>| left.iter().any(|other| has_part(other, one.name()));
            let (outer, inner): (Vec<_>, Vec<_>) =
                left.iter().cloned().partition(|one| !is_part(one));
            // None is in a circle; should one be, they stop together.
            let (outer, inner) = match outer.is_empty() {
                true => (inner, Vec::new()),
                false => (outer, inner),
            };
            for ensemble in &outer {
                ensemble.responder.drain();
            }
            for ensemble in &outer {
                ensemble.responder.wait_until_idle(deadline);
            }
            left = inner;
        }
    }
}

/// The positions of the calls that wait for parts.
fn lacking_parts(outcomes: &[CallOutcome]) -> Vec<usize> {
    let lacks = |outcome: &CallOutcome| matches!(outcome, Ok(CallDone::LacksParts(_)));
    let positions = outcomes.iter().enumerate();
    positions
        .filter_map(|(position, outcome)| lacks(outcome).then_some(position))
        .collect()
}

/// Whether a version is an ensemble with a part of this name.
fn has_part(version: &LoadedVersion, name: &ModelName) -> bool {
    let ensemble = version.config().ensemble();
    ensemble.is_some_and(|ensemble| ensemble.steps.iter().any(|step| step.model == *name))
}
