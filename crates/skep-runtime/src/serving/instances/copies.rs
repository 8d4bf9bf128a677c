//! The loaded copies of a version's model.
//!
//! One is enough for all instances, unless runs use threads or processes that are bound to the CPUs of the load: then each
//! device has its own. Instances with another number of threads need a copy of their own as well. Copies share weights
//! through the tensor store. One that no instance uses any more is dropped.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex},
};

use skep_backend::Model;
use skep_host::lock;

use crate::{baking::PendingBake, error::RuntimeError};

/// What instances of one copy have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct CopyTerms {
    /// The index of the device whose CPUs it runs on; `None` for all CPUs.
    pub(crate) device: Option<usize>,
    /// Threads of a run; `None` for what the configuration says, or its default.
    pub(crate) threads: Option<NonZeroUsize>,
}

/// A copy.
pub(crate) struct LoadedCopy {
    pub(crate) model: Arc<dyn Model>,
    /// Its baking in the background, which ends with the copy.
    #[expect(dead_code, reason = "held until the copy is dropped")]
    pub(crate) baking: Option<PendingBake>,
}

/// Loads a further copy.
pub(crate) type LoadCopy = Box<dyn Fn(CopyTerms) -> Result<LoadedCopy, RuntimeError> + Send + Sync>;

/// The copies of a version's model; at least one.
pub(crate) struct ModelCopies {
    /// `None` if the first one is enough for ever.
    load: Option<LoadCopy>,
    copies: Mutex<Vec<(CopyTerms, LoadedCopy)>>,
}

impl ModelCopies {
    pub(crate) fn new(terms: CopyTerms, first: Arc<dyn Model>, load: Option<LoadCopy>) -> Self {
        let first = LoadedCopy {
            model: first,
            baking: None,
        };
        Self {
            load,
            copies: Mutex::new(vec![(terms, first)]),
        }
    }

    /// One of the copies: what is true of all of them can be asked of it.
    pub(super) fn any(&self) -> Arc<dyn Model> {
        Arc::clone(&lock(&self.copies)[0].1.model)
    }

    /// The copy for these terms; loads it if it is missing.
    ///
    /// # Errors
    /// Those of the load.
    pub(super) fn get(&self, terms: CopyTerms) -> Result<Arc<dyn Model>, RuntimeError> {
        if let Some(model) = self.find(terms) {
            return Ok(model);
        }
        let Some(load) = &self.load else {
            // Without further loads, all instances are alike.
            return Ok(self.any());
        };
        // Not under the lock: a load takes a while, and what is known of the others is asked meanwhile. Only one change of
        // instances takes place at a time.
        let copy = load(terms)?;
        let model = Arc::clone(&copy.model);
        lock(&self.copies).push((terms, copy));
        Ok(model)
    }

    fn find(&self, terms: CopyTerms) -> Option<Arc<dyn Model>> {
        let copies = lock(&self.copies);
        let mut alike = copies.iter().filter(|(own, copy)| {
            own.threads == terms.threads
                && (own.device == terms.device || !copy.model.is_bound_by_load())
        });
        alike.next().map(|(_, copy)| Arc::clone(&copy.model))
    }

    /// Drops the copies that none of these terms needs; their last instance frees them.
    pub(super) fn keep(&self, used: &[CopyTerms]) {
        let mut gone = Vec::new();
        let mut copies = lock(&self.copies);
        for (own, copy) in std::mem::take(&mut *copies) {
            let is_bound = copy.model.is_bound_by_load();
            let is_used = used.iter().any(|terms| {
                own.threads == terms.threads && (own.device == terms.device || !is_bound)
            });
            match is_used {
                true => copies.push((own, copy)),
                false => gone.push((own, copy)),
            }
        }
        if copies.is_empty() {
            copies.extend(gone.pop());
        }
        // Freeing a session takes a while.
        drop(copies);
        drop(gone);
    }
}
