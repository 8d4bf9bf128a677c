//! Loads of a version's model: the first one, and further ones for other devices and numbers of threads while it serves.

use std::{
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use skep_backend::{Backend, BackendError, ErrorKind, Model, ModelFile};
use skep_config::{Isolation, ModelConfig};
use skep_types::ModelSignature;

use crate::{
    RuntimeError,
    baking::{self, BakeOrder, PendingBake},
    loading::{
        LoadOptions,
        request::{request, weights},
    },
    serving::instances::{CopyTerms, LoadedCopy},
};

/// Everything that a version's model is loaded from. The configuration and the file stay those of the version, whatever
/// happens to the repository meanwhile.
pub(super) struct CopySource {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) file: ModelFile,
    pub(super) config: Arc<ModelConfig>,
    /// That of the file, where it declares one.
    pub(super) signature: Option<ModelSignature>,
    pub(super) options: LoadOptions,
}

impl CopySource {
    /// Loads the model once, for instances with these terms.
    pub(super) fn load(&self, terms: CopyTerms) -> Result<Arc<dyn Model>, RuntimeError> {
        let config = self.config_for(terms.threads);
        let weights = weights(&config, &self.options)?;
        let request = request(&self.file, &config, &self.options, weights.as_ref(), terms);
        let isolated = || {
            let limit = self.options.sandbox_load_limit;
            skep_sandbox::load(&*self.backend, &request, self.signature.as_ref(), limit)
        };
        let load = || match config.isolation() {
            Isolation::Process => isolated(),
            Isolation::Thread => match self.backend.needs_process(&request) {
                None => self.backend.load(&request),
                Some(why) => {
                    let model = config.name();
                    tracing::info!("model `{model}` runs in worker processes: {why}");
                    isolated()
                }
            },
        };
        // A broken file must not end the server.
        let loaded = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|_| {
            let backend = self.backend.name();
            let text = format!("backend `{backend}` panicked while loading the model");
            Err(BackendError::new(ErrorKind::Internal, text))
        });
        Ok(loaded?)
    }

    /// Loads a further copy, to be baked in the background like the first one.
    pub(super) fn further(&self, terms: CopyTerms) -> Result<LoadedCopy, RuntimeError> {
        let model = self.load(terms)?;
        let baking = self.bake_in_background(&model, terms)?;
        Ok(LoadedCopy { model, baking })
    }

    /// Orders the baking of a model that is ready, if the node bakes in the background.
    pub(super) fn bake_in_background(
        &self,
        model: &Arc<dyn Model>,
        terms: CopyTerms,
    ) -> Result<Option<PendingBake>, RuntimeError> {
        let config = self.config_for(terms.threads);
        let Some(weights) = weights(&config, &self.options)? else {
            return Ok(None);
        };
        let request = request(&self.file, &config, &self.options, None, terms);
        let order = BakeOrder {
            backend: Arc::clone(&self.backend),
            threads: request.threads,
            device: request.device,
            cpus: request.cpus.cloned(),
            file: self.file.clone(),
            config: Arc::clone(&config),
            weights,
            model: Arc::downgrade(model),
        };
        Ok(baking::order(order))
    }

    /// The configuration, with this number of threads in place of the default.
    fn config_for(&self, threads: Option<NonZeroUsize>) -> Arc<ModelConfig> {
        match threads {
            None => Arc::clone(&self.config),
            Some(threads) => Arc::new(self.config.with_intra_op_threads(threads)),
        }
    }
}
