//! A version's load request for its backend, and where its weights are kept.

use std::num::NonZeroUsize;

use skep_backend::{LoadRequest, ModelFile};
use skep_config::ModelConfig;
use skep_store::Tenant;
use skep_weights::WeightSource;

use crate::{LoadOptions, RuntimeError};

/// The load request for a version.
pub(crate) fn request<'a>(
    file: &'a ModelFile,
    config: &'a ModelConfig,
    options: &'a LoadOptions,
    weights: Option<&'a WeightSource>,
) -> LoadRequest<'a> {
    let groups = config.instance_groups().iter();
    let instances: u32 = groups.map(|group| group.count).sum();
    let instances = usize::try_from(instances).unwrap_or(usize::MAX).max(1);
    // All instances together get as many threads as there are cores: more would only compete.
    let threads = NonZeroUsize::new(options.cores.get() / instances);
    LoadRequest {
        file,
        config,
        threads: threads.unwrap_or(NonZeroUsize::MIN),
        weights,
        device: options.device(),
        request_memory: options.request_memory.as_ref(),
    }
}

/// Where a model's weights are kept: in its tenant's part of the store and of the cache.
pub(crate) fn weights(
    config: &ModelConfig,
    options: &LoadOptions,
) -> Result<Option<WeightSource>, RuntimeError> {
    let Some(weights) = &options.weights else {
        return Ok(None);
    };
    let Some(name) = config.tenant() else {
        return Ok(Some(weights.clone()));
    };
    let tenant = Tenant::named(name).map_err(|error| RuntimeError::invalid(error.to_string()))?;
    match weights.cache.of_tenant(name) {
        Ok(cache) => Ok(Some(WeightSource {
            tenant,
            cache,
            ..weights.clone()
        })),
        Err(error) => {
            tracing::warn!(
                "models of tenant `{name}` are loaded without the weight cache: {error}"
            );
            Ok(None)
        }
    }
}
