//! Lookups: the version that a request goes to, all loaded versions, the index.

use std::sync::Arc;

use skep_types::{ModelName, ModelVersion};

use crate::{
    error::{ErrorKind, RuntimeError},
    models::{
        records::{self, IndexEntry},
        routes::{RequestedVersion, VersionMap, requested_version},
        runtime::Runtime,
    },
    repository::ModelId,
    serving::LoadedVersion,
};

impl Runtime {
    /// Finds the version that a request goes to: the requested one, or the latest.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an unknown model or version, [`ErrorKind::Unavailable`] for a version that is not
    /// ready or that the start has yet to load.
    pub fn resolve(
        &self,
        name: &str,
        version: Option<&str>,
    ) -> Result<Arc<LoadedVersion>, RuntimeError> {
        let found = self.routes.find(name, version)?;
        found.ok_or_else(|| self.not_found(name, version))
    }

    /// Why no version was found, in Triton's words; during the start in Skep's, since Triton opens its ports after it.
    fn not_found(&self, name: &str, version: Option<&str>) -> RuntimeError {
        if self.start_may_load(name) {
            let text = format!("model '{name}' is not loaded yet: the server is starting");
            return RuntimeError::new(ErrorKind::Unavailable, text);
        }
        let records = self.records();
        let record = records.iter().find(|(id, _)| id.name.as_str() == name);
        let Some((_, record)) = record else {
            return unknown(ErrorKind::NotFound, name, "is not found");
        };
        let requested = version.and_then(|text| requested_version(text).ok());
        let Some(RequestedVersion::Number(number)) = requested else {
            return unknown(ErrorKind::NotFound, name, "has no available versions");
        };
        let version = ModelVersion::new(number).ok();
        match version.and_then(|version| record.versions.get(&version)) {
            Some(status) => {
                let text = format!("version {number} is at {} state", status.state.name());
                unknown(ErrorKind::Unavailable, name, &text)
            }
            None => {
                let text = format!("version {number} is not found");
                unknown(ErrorKind::NotFound, name, &text)
            }
        }
    }

    /// All versions that take requests, by name and version.
    #[must_use]
    pub fn loaded(&self) -> Vec<Arc<LoadedVersion>> {
        self.routes.all()
    }

    /// The versions of one model that take requests, ascending.
    #[must_use]
    pub fn versions(&self, name: &str) -> Vec<ModelVersion> {
        self.routes.numbers(name)
    }

    /// The versions of a model that take requests now.
    pub(super) fn serving(&self, id: &ModelId) -> VersionMap {
        self.routes.versions_of(id)
    }

    /// Every known model: those that were loaded or tried, and those in the repository.
    #[must_use]
    pub fn index(&self, ready_only: bool) -> Vec<IndexEntry> {
        let repository = &self.options.repository;
        let why_not = |id: &ModelId, version| self.why_unhealthy(id, version);
        let known = self.residency.available();
        records::index(&self.records(), repository, &known, &why_not, ready_only)
    }

    /// Why a version that takes requests cannot run them now.
    fn why_unhealthy(&self, id: &ModelId, version: ModelVersion) -> Option<String> {
        let found = self
            .routes
            .with_versions_of(id, |versions| versions.get(&version).cloned());
        found.flatten()?.why_unhealthy()
    }

    /// The models with a name; if there are none, one that will fail under its name alone.
    pub(super) fn ids(&self, name: &ModelName) -> Vec<ModelId> {
        let mut ids = self.options.repository.named(name);
        if ids.is_empty() {
            ids.push(ModelId {
                namespace: None,
                name: name.clone(),
            });
        }
        ids
    }
}

/// A request for a model or a version that is not available, in Triton's words.
fn unknown(kind: ErrorKind, name: &str, rest: &str) -> RuntimeError {
    RuntimeError::new(kind, format!("Request for unknown model: '{name}' {rest}"))
}
