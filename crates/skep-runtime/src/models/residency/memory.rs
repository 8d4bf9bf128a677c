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

/// Measures what loads take, as the growth of the private memory of this process and of its workers. Loads that overlap
/// cannot be told apart.
#[derive(Debug)]
pub(super) struct MemoryProbe {
    state: Mutex<ProbeState>,
    /// What there was before any model.
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

/// What this process and those that run models for it hold, and no other process.
fn private_bytes() -> Option<u64> {
    Some(skep_host::private_bytes()? + skep_sandbox::worker_bytes())
}

impl MemoryProbe {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            baseline: private_bytes().unwrap_or(0),
        }
    }

    /// What there is beyond the baseline and so many bytes, which models and requests may hold by now. Loads that run count
    /// with all that they may take, so that it is not too much.
    pub(super) fn beyond(&self, counted: u64) -> u64 {
        let now = private_bytes().unwrap_or(0);
        now.saturating_sub(self.baseline.saturating_add(counted))
    }

    pub(super) fn begin(&self) -> LoadMeasure {
        let mut state = lock(&self.state);
        state.begun += 1;
        state.running += 1;
        LoadMeasure {
            private_bytes: private_bytes(),
            number: state.begun,
            is_alone: state.running == 1,
        }
    }

    /// What the load has taken; `None` if others ran meanwhile, or the system does not tell.
    pub(super) fn end(&self, measure: &LoadMeasure) -> Option<u64> {
        let now = private_bytes();
        let mut state = lock(&self.state);
        state.running -= 1;
        let was_alone = measure.is_alone && measure.number == state.begun;
        let taken = now?.saturating_sub(measure.private_bytes?);
        was_alone.then_some(taken)
    }
}

/// The tensors of the store that a loaded model uses, each with its bytes.
fn stored_tensors(runtime: &Arc<Runtime>, id: &ModelId) -> Vec<(TensorKey, u64)> {
    let mut tensors = Vec::new();
    for loaded in runtime.serving(id).values() {
        let stored = loaded.responder.stored_tensors().into_iter();
        tensors.extend(stored.map(|(digest, bytes)| (TensorKey(digest.0), bytes)));
    }
    tensors
}

/// What a loaded model holds once its weights have moved to the store; `None` if none are there. `private_bytes` is what
/// it held before by itself, with its weights if those `were_private`.
pub(super) fn moved(
    runtime: &Arc<Runtime>,
    id: &ModelId,
    private_bytes: u64,
    were_private: bool,
) -> Option<ModelSize> {
    let tensors = stored_tensors(runtime, id);
    let stored: u64 = tensors.iter().map(|(_, bytes)| bytes).sum();
    let gone = if were_private { stored } else { 0 };
    (stored > 0).then(|| ModelSize {
        private_bytes: private_bytes.saturating_sub(gone).max(LEAST_BYTES),
        tensors,
    })
}

/// What a loaded model holds, and what its next load takes beside that. `private` is what this load took, if that could be
/// told.
pub(super) fn measured(
    runtime: &Arc<Runtime>,
    id: &ModelId,
    private: Option<u64>,
) -> (ModelSize, u64) {
    let tensors = stored_tensors(runtime, id);
    let stored: u64 = tensors.iter().map(|(_, bytes)| bytes).sum();
    let serving = runtime.serving(id);
    // The weights of a baked form are mapped from its file until they are in the store.
    let own = serving
        .values()
        .filter(|loaded| !loaded.responder.is_baked());
    let file_bytes = own.map(|loaded| {
        let directory = loaded.origin.source.directory();
        files_bytes(&directory.join(loaded.version().to_string()))
    });
    let files: u64 = file_bytes.sum();
    let expected = LEAST_BYTES + (files + files / 4).saturating_sub(stored);
    // Files that are not in the store are read again, and rewritten.
    let load_bytes = files.saturating_sub(stored);
    let size = ModelSize {
        // A load that got memory which others had just given back seems smaller than it is.
        private_bytes: private.unwrap_or(expected).max(LEAST_BYTES + load_bytes),
        tensors,
    };
    (size, load_bytes)
}
