//! What a version was loaded from, and what ends with it.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use skep_heap::give_back_freed_memory;

use crate::{baking::PendingBake, repository::source::ModelSource};

/// Called when the last trace of a version (its instances, its weights) is gone.
pub(crate) type OnGone = Box<dyn FnOnce() + Send + Sync>;

/// Runs its callback when the last holder drops it. Instances hold it besides their version: an instance may outlive that.
pub(crate) struct Life(Option<OnGone>);

impl Life {
    pub(crate) fn new(on_gone: OnGone) -> Arc<Self> {
        Arc::new(Self(Some(on_gone)))
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(on_gone) = self.0.take() {
            give_back_freed_memory();
            on_gone();
        }
    }
}

/// What a version was loaded from. Versions that follow from one another without a reload share it.
pub(crate) struct Origin {
    /// Files that a client sent are removed with this.
    pub(crate) source: Arc<ModelSource>,
    /// The repository's path where names need not be unique.
    pub(crate) namespace: Option<Arc<str>>,
    /// The model's baking in the background, which ends with it.
    baking: OnceLock<PendingBake>,
    /// Last: a version is gone when all else is.
    _life: Arc<Life>,
}

impl Origin {
    pub(crate) fn new(
        source: Arc<ModelSource>,
        namespace: Option<Arc<str>>,
        life: Arc<Life>,
    ) -> Arc<Self> {
        Arc::new(Self {
            source,
            namespace,
            baking: OnceLock::new(),
            _life: life,
        })
    }

    /// Keeps an order to bake the version, which is cancelled when this is dropped. At most once.
    pub(crate) fn keep(&self, order: Option<PendingBake>) {
        if let Some(order) = order {
            let _ = self.baking.set(order);
        }
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin")
            .field("source", &self.source.directory())
            .finish_non_exhaustive()
    }
}
