//! A version's load request for its backend, and where its weights are kept.

use std::num::NonZeroUsize;

use skep_backend::{LoadRequest, ModelFile};
use skep_config::{InstanceKind, ModelConfig};
use skep_store::Tenant;
use skep_weights::WeightSource;

use crate::{LoadOptions, RuntimeError, serving::instances::CopyTerms};

/// The load request for a version.
pub(crate) fn request<'a>(
    file: &'a ModelFile,
    config: &'a ModelConfig,
    options: &'a LoadOptions,
    weights: Option<&'a WeightSource>,
    terms: CopyTerms,
) -> LoadRequest<'a> {
    let devices = options.devices.as_deref();
    let cpus = devices.zip(terms.device);
    LoadRequest {
        file,
        config,
        threads: terms.threads.unwrap_or_else(|| threads(config, options)),
        weights,
        device: options.device(),
        cpus: cpus.map(|(devices, index)| &devices.device(index).cpus),
        request_memory: options.request_memory.as_ref(),
    }
}

/// Threads of a run where the configuration does not say. All instances together get as many as there are cores, and one
/// on a device as many as that has: more would only compete.
pub(crate) fn threads(config: &ModelConfig, options: &LoadOptions) -> NonZeroUsize {
    let groups = config.instance_groups();
    let instances: u32 = groups.iter().map(|group| group.count).sum();
    let instances = usize::try_from(instances).unwrap_or(usize::MAX).max(1);
    let mut cores = options.cores.get() / instances;
    if let Some(devices) = &options.devices
        && groups.iter().any(|group| group.kind == InstanceKind::Auto)
    {
        cores = cores.min(devices.least_cpus());
    }
    NonZeroUsize::new(cores).unwrap_or(NonZeroUsize::MIN)
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
