//! The records of a runtime's models: the states of their versions, and the reasons.
//!
//! ```text
//!   load ok                 unload, or another load replaced it
//! LOADING ----> READY  ----------------> UNLOADING ----> UNAVAILABLE (reason `unloaded`)
//!    |                        the last request is answered, instances and weights are gone
//!    +--> UNAVAILABLE (reason: why the load failed)
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use skep_types::{ModelName, ModelVersion};

use crate::repository::{ModelId, Repository, source::ModelSource};

/// The state of a model version, as Triton's index names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionState {
    /// Being loaded.
    Loading,
    /// Ready for requests.
    Ready,
    /// Takes no new requests; the last ones are being answered.
    Unloading,
    /// Not loaded.
    Unavailable,
}

impl VersionState {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loading => "LOADING",
            Self::Ready => "READY",
            Self::Unloading => "UNLOADING",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

/// A row of the repository index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// The model.
    pub name: ModelName,
    /// Its version and state; `None` for a model that was never loaded.
    pub version: Option<ModelVersion>,
    /// The state; `None` for a model that was never loaded.
    pub state: Option<VersionState>,
    /// Why it is in this state; may be empty.
    pub reason: String,
}

/// The record of one model.
#[derive(Debug, Default)]
pub(crate) struct ModelRecord {
    pub(crate) versions: BTreeMap<ModelVersion, VersionStatus>,
    /// Why the last load failed before any version was tried.
    pub(crate) failure: Option<String>,
    /// Whether the model was requested and should be ready.
    pub(crate) wanted: bool,
    /// Whether it was loaded because an ensemble needs it, and nobody asked for it by its name.
    pub(crate) is_part: bool,
    /// How many loads of versions have begun.
    loads: u64,
    /// How many loads failed.
    pub(crate) failed_loads: u64,
    /// The source of the last load; `None` once the model is unloaded.
    pub(crate) source: Option<Arc<ModelSource>>,
    /// Serialises loads and unloads of this model.
    pub(crate) turn: Arc<Mutex<()>>,
}

/// The state of one version.
#[derive(Debug)]
pub(crate) struct VersionStatus {
    pub(crate) state: VersionState,
    pub(crate) reason: String,
    /// The number of the load that this state is about, among all loads of the model.
    pub(crate) generation: u64,
}

impl ModelRecord {
    /// Notes that a version is being loaded, and numbers the load. A version that serves stays READY meanwhile.
    pub(crate) fn loading(&mut self, version: ModelVersion) -> u64 {
        self.loads += 1;
        let status = self.versions.get(&version);
        if status.is_none_or(|status| status.state != VersionState::Ready) {
            self.set(version, VersionState::Loading, "", self.loads);
        }
        self.loads
    }

    /// Notes that a version takes requests, from the load with this number, or still from the previous one.
    pub(crate) fn ready(&mut self, version: ModelVersion, generation: Option<u64>) {
        let before = self.versions.get(&version).map(|status| status.generation);
        let generation = generation.or(before).unwrap_or_default();
        self.set(version, VersionState::Ready, "", generation);
    }

    /// Notes why a version could not be loaded. A version that serves keeps serving.
    pub(crate) fn failed(&mut self, version: ModelVersion, reason: &str) {
        let serving = self
            .versions
            .get(&version)
            .filter(|status| status.state == VersionState::Ready)
            .map(|status| status.generation);
        match serving {
            Some(generation) => self.set(version, VersionState::Ready, reason, generation),
            None => self.set(version, VersionState::Unavailable, reason, self.loads),
        }
    }

    /// Notes that a version takes no more requests.
    pub(crate) fn unloading(&mut self, version: ModelVersion) {
        if let Some(status) = self.versions.get_mut(&version) {
            status.state = VersionState::Unloading;
            status.reason.clear();
        }
    }

    /// Notes that the instances and weights of a load are gone. Returns whether that made the version unavailable.
    pub(crate) fn gone(&mut self, version: ModelVersion, generation: u64) -> bool {
        let status = self.versions.get_mut(&version).filter(|status| {
            status.generation == generation && status.state == VersionState::Unloading
        });
        status.is_some_and(|status| {
            status.state = VersionState::Unavailable;
            "unloaded".clone_into(&mut status.reason);
            true
        })
    }

    /// The state of a version, for texts about its load.
    pub(crate) fn state_of(&self, version: ModelVersion) -> VersionState {
        self.versions
            .get(&version)
            .map_or(VersionState::Unavailable, |status| status.state)
    }

    fn set(&mut self, version: ModelVersion, state: VersionState, reason: &str, generation: u64) {
        let reason = reason.to_owned();
        let status = VersionStatus {
            state,
            reason,
            generation,
        };
        self.versions.insert(version, status);
    }
}

/// Every known model: those that were loaded or tried, and those in the repository. Versions of `known`, which the first
/// request loads, are ready. `why_not` says why a loaded version cannot run.
pub(crate) fn index(
    records: &BTreeMap<ModelId, ModelRecord>,
    repository: &Repository,
    known: &BTreeMap<ModelId, Vec<ModelVersion>>,
    why_not: &impl Fn(&ModelId, ModelVersion) -> Option<String>,
    ready_only: bool,
) -> Vec<IndexEntry> {
    let on_disk = repository.models();
    let ids: BTreeSet<&ModelId> = records.keys().chain(on_disk.keys()).collect();
    let mut rows = Vec::new();
    for id in ids {
        let is_at_rest = |record: &ModelRecord| {
            let mut versions = record.versions.values();
            !versions
                .any(|status| matches!(status.state, VersionState::Ready | VersionState::Loading))
        };
        if let Some(versions) = known.get(id)
            && records.get(id).is_none_or(is_at_rest)
        {
            let ready = Some(VersionState::Ready);
            rows.extend(
                versions
                    .iter()
                    .map(|version| row(id, Some(*version), ready, "")),
            );
            continue;
        }
        let ambiguous = on_disk.get(id).is_some_and(|places| places.len() > 1);
        match records.get(id) {
            Some(record) if !record.versions.is_empty() => {
                rows.extend(record.versions.iter().map(|(version, status)| {
                    let is_ready = status.state == VersionState::Ready;
                    let why_not = is_ready.then(|| why_not(id, *version)).flatten();
                    let (state, reason) = match &why_not {
                        Some(why) => (VersionState::Unavailable, why),
                        None => (status.state, &status.reason),
                    };
                    row(id, Some(*version), Some(state), reason)
                }))
            }
            // Triton's words.
            _ if ambiguous => rows.push(row(
                id,
                None,
                Some(VersionState::Unavailable),
                "model appears in two or more repositories",
            )),
            Some(ModelRecord {
                failure: Some(reason),
                ..
            }) => {
                rows.push(row(id, None, Some(VersionState::Unavailable), reason));
            }
            _ => rows.push(row(id, None, None, "")),
        }
    }
    rows.retain(|row| !ready_only || row.state == Some(VersionState::Ready));
    rows
}

fn row(
    id: &ModelId,
    version: Option<ModelVersion>,
    state: Option<VersionState>,
    reason: &str,
) -> IndexEntry {
    IndexEntry {
        name: id.name.clone(),
        version,
        state,
        reason: reason.to_owned(),
    }
}
