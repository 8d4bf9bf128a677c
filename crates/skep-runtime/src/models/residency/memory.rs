//! What models hold: estimates from their files, and what loads have really taken.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use skep_host::lock;
use skep_placer::residency::{ModelSize, ModelTerms, TensorKey};
use skep_types::ModelVersion;

use crate::{
    models::runtime::Runtime,
    repository::{ModelId, source::files_bytes, versions},
};

/// What a model holds beside its files' bytes at least: its session, its instances' threads.
const LEAST_BYTES: u64 = 1 << 20;

/// How long the first load of a model is thought to take: some milliseconds, and a second for a GiB.
const LOAD_TIME: Duration = Duration::from_millis(10);

/// Measures what loads take, as the growth of the process's private memory. Loads that overlap cannot be told apart.
#[derive(Debug)]
pub(super) struct MemoryProbe {
    state: Mutex<ProbeState>,
    /// What the process had before any model.
    baseline: u64,
}

#[derive(Debug, Default)]
struct ProbeState {
    running: usize,
    /// How many loads have begun.
    begun: u64,
}

/// The beginning of a load.
#[derive(Debug)]
pub(super) struct LoadMeasure {
    private_bytes: Option<u64>,
    number: u64,
    is_alone: bool,
}

/// What the process may hold beyond its baseline, its models and its requests without any of it counting: the tables of
/// the models' library, memory that the heap keeps.
const SLACK_BYTES: u64 = 64 << 20;

impl MemoryProbe {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            baseline: skep_host::private_bytes().unwrap_or(0),
        }
    }

    /// What the process holds beyond so many bytes for models and requests. `None` while a load runs.
    pub(super) fn beyond(&self, counted: u64) -> Option<u64> {
        let now = skep_host::private_bytes()?;
        let expected = self.baseline + counted + SLACK_BYTES;
        (lock(&self.state).running == 0).then(|| now.saturating_sub(expected))
    }

    pub(super) fn begin(&self) -> LoadMeasure {
        let mut state = lock(&self.state);
        state.begun += 1;
        state.running += 1;
        LoadMeasure {
            private_bytes: skep_host::private_bytes(),
            number: state.begun,
            is_alone: state.running == 1,
        }
    }

    /// What the load has taken; `None` if others ran meanwhile, or the system does not tell.
    pub(super) fn end(&self, measure: &LoadMeasure) -> Option<u64> {
        let now = skep_host::private_bytes();
        let mut state = lock(&self.state);
        state.running -= 1;
        let was_alone = measure.is_alone && measure.number == state.begun;
        let taken = now?.saturating_sub(measure.private_bytes?);
        was_alone.then_some(taken)
    }
}

/// What is expected of a model with files of so many bytes.
fn terms(file_bytes: u64) -> ModelTerms {
    ModelTerms {
        // Weights in layouts of their own are some tenths larger.
        size: ModelSize::private(file_bytes + file_bytes / 4 + LEAST_BYTES),
        // The library holds two copies of what it rewrites.
        load_bytes: file_bytes,
        load_time: LOAD_TIME + Duration::from_nanos(file_bytes),
        is_pinned: false,
    }
}

/// The versions of a model's directory, and what the latest is expected to hold.
pub(in crate::models) fn of_model(directory: &Path) -> (Vec<ModelVersion>, ModelTerms) {
    let numbers: Vec<ModelVersion> = versions(directory)
        .map(|found| found.into_iter().collect())
        .unwrap_or_default();
    let latest = numbers.last().copied();
    let bytes = latest.map_or(0, |version| {
        files_bytes(&directory.join(version.to_string()))
    });
    (latest.into_iter().collect(), terms(bytes))
}

/// The same of files that a client sent. They are gone once the model is, so that it stays.
pub(super) fn of_sent(files: &[(String, Bytes)]) -> (Vec<ModelVersion>, ModelTerms) {
    let bytes: usize = files.iter().map(|(_, data)| data.len()).sum();
    let expected = ModelTerms {
        is_pinned: true,
        ..terms(bytes as u64)
    };
    let number = |(path, _): &(String, Bytes)| {
        let (version, _) = path.split_once('/')?;
        ModelVersion::parse(version).ok()
    };
    (
        files.iter().filter_map(number).max().into_iter().collect(),
        expected,
    )
}

/// What a loaded model holds, and what its next load takes beside that. `private` is what this load took, if that could be
/// told.
pub(super) fn measured(
    runtime: &Arc<Runtime>,
    id: &ModelId,
    private: Option<u64>,
) -> (ModelSize, u64) {
    let mut tensors: Vec<(TensorKey, u64)> = Vec::new();
    let (mut expected, mut least) = (LEAST_BYTES, LEAST_BYTES);
    for loaded in runtime.serving(id).values() {
        let shared = loaded.responder.stored_tensors();
        let directory = loaded.origin.source.directory();
        let files = files_bytes(&directory.join(loaded.version().to_string()));
        let stored: u64 = shared.iter().map(|(_, bytes)| bytes).sum();
        expected += (files + files / 4).saturating_sub(stored);
        least += files.saturating_sub(stored);
        tensors.extend(
            shared
                .into_iter()
                .map(|(digest, bytes)| (TensorKey(digest.0), bytes)),
        );
    }
    let size = ModelSize {
        // A load that got memory which others had just given back seems smaller than it is.
        private_bytes: private.unwrap_or(expected).max(least),
        tensors,
    };
    // Files that are not in the store are read again, and rewritten.
    (size, least - LEAST_BYTES)
}
