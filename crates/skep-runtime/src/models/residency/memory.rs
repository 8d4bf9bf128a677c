//! What models hold: what loads have really taken.

use std::sync::{Arc, Mutex};

use skep_host::lock;
use skep_placer::residency::{ModelSize, TensorKey};

use crate::{
    models::runtime::Runtime,
    repository::{ModelId, source::files_bytes},
};

/// What a model holds beside its files' bytes at least: its session, its instances' threads.
pub(super) const LEAST_BYTES: u64 = 1 << 20;

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
