//! What is known of a model before its load: its versions, its own settings, and what it is expected to hold.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use skep_config::{ModelResidency, VersionPolicy};
use skep_placer::residency::{ModelSize, ModelTerms};
use skep_types::{ModelName, ModelVersion};

use super::memory::LEAST_BYTES;
use crate::repository::{
    LoadOverrides,
    source::{ConfigChoice, files_bytes},
    versions,
};

/// How long the first load of a model is thought to take: some milliseconds, and a second for a GiB.
const LOAD_TIME: Duration = Duration::from_millis(10);

/// What is known of a model before its load.
#[derive(Debug, Default)]
pub(in crate::models) struct KnownTerms {
    /// The versions that a load would serve.
    pub(super) versions: Vec<ModelVersion>,
    pub(super) expected: ModelTerms,
    pub(in crate::models) settings: ModelResidency,
    /// Its files are gone once the model is.
    pub(super) is_sent: bool,
}

impl KnownTerms {
    /// Of a model's directory.
    pub(in crate::models) fn of_model(
        name: &ModelName,
        directory: &Path,
        choice: ConfigChoice<'_>,
    ) -> Self {
        let config = choice.peek(directory).unwrap_or_default();
        let available = versions(directory).unwrap_or_default();
        let policy = skep_config::version_policy(&config, name).unwrap_or(VersionPolicy::Latest(1));
        let versions = Vec::from_iter(policy.select(&available));
        let bytes_of = |version: &ModelVersion| files_bytes(&directory.join(version.to_string()));
        let file_bytes = versions.iter().map(bytes_of).sum();
        let settings = ModelResidency::configured(&config);
        Self {
            versions,
            expected: expected(file_bytes, settings.is_pinned()),
            settings,
            is_sent: false,
        }
    }

    /// Of files that a client sent. They are gone once the model is, so that it stays.
    pub(super) fn of_sent(overrides: &LoadOverrides) -> Self {
        let files = &overrides.files;
        let bytes: usize = files.iter().map(|(_, data)| data.len()).sum();
        let number = |(path, _): &(String, Bytes)| {
            let (version, _) = path.split_once('/')?;
            ModelVersion::parse(version).ok()
        };
        Self {
            versions: files.iter().filter_map(number).max().into_iter().collect(),
            expected: expected(bytes as u64, true),
            // Known once it is loaded.
            settings: ModelResidency::default(),
            is_sent: true,
        }
    }
}

/// What is expected of a model with files of so many bytes.
fn expected(file_bytes: u64, is_pinned: bool) -> ModelTerms {
    ModelTerms {
        // Weights in layouts of their own are some tenths larger.
        size: ModelSize::private(file_bytes + file_bytes / 4 + LEAST_BYTES),
        // The library holds two copies of what it rewrites.
        load_bytes: file_bytes,
        load_time: LOAD_TIME + Duration::from_nanos(file_bytes),
        is_pinned,
    }
}
