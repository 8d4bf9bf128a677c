//! The source of a loaded version, and what ends with the version.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use skep_heap::give_back_freed_memory;

use crate::{baking::PendingBake, repository::source::ModelSource};

/// Called when the last part of a version (its instances, its weights) is dropped.
pub(crate) type OnGone = Box<dyn FnOnce() + Send + Sync>;

/// Runs its callback when the last holder drops it. Instances hold it as well as their version, because an instance may
/// outlive the version.
pub(crate) struct VersionLife(Option<OnGone>);

impl VersionLife {
    pub(crate) fn new(on_gone: OnGone) -> Arc<Self> {
        Arc::new(Self(Some(on_gone)))
    }
}

impl Drop for VersionLife {
    fn drop(&mut self) {
        if let Some(on_gone) = self.0.take() {
            give_back_freed_memory();
            on_gone();
        }
    }
}

/// What a version was loaded from. A version that is updated without a reload passes it on.
pub(crate) struct VersionOrigin {
    /// Dropping it removes files that a client sent.
    pub(crate) source: Arc<ModelSource>,
    /// The repository's path, if model names need not be unique.
    pub(crate) namespace: Option<Arc<str>>,
    /// The baking of the model in the background, which dropping this cancels.
    baking: OnceLock<PendingBake>,
    /// Declared last: a version is gone when everything else is.
    _life: Arc<VersionLife>,
}

impl VersionOrigin {
    pub(crate) fn new(
        source: Arc<ModelSource>,
        namespace: Option<Arc<str>>,
        life: Arc<VersionLife>,
    ) -> Arc<Self> {
        Arc::new(Self {
            source,
            namespace,
            baking: OnceLock::new(),
            _life: life,
        })
    }

    /// Keeps an order to bake the version, which dropping this cancels. Call it at most once.
    pub(crate) fn keep(&self, order: Option<PendingBake>) {
        if let Some(order) = order {
            let _ = self.baking.set(order);
        }
    }
}

impl fmt::Debug for VersionOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VersionOrigin")
            .field("source", &self.source.directory())
            .finish_non_exhaustive()
    }
}
