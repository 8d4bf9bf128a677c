//! Live configuration: the profiles that a node was given, and what a model's configuration is chosen for.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use skep_config::{InstanceKind, ModelConfig, SchedulerConfig};
use skep_placer::configuration::{LatencyProfile, RunTerms};

use crate::{
    LoadOptions,
    repository::digest::{DigestedFiles, files_digest},
};

/// The profiles of models, by name.
#[derive(Debug, Default)]
pub struct ModelProfiles(BTreeMap<String, ProfiledModel>);

/// The profile of one model.
#[derive(Debug)]
pub struct ProfiledModel {
    /// The digest of the files that were measured, without the configuration, as [`files_digest`] makes it.
    pub files: String,
    /// What was measured.
    pub latencies: LatencyProfile,
}

impl ModelProfiles {
    /// These profiles, by the names of their models.
    #[must_use]
    pub fn new(models: BTreeMap<String, ProfiledModel>) -> Self {
        Self(models)
    }

    /// The profile of a model whose files lie in a directory, if it is one of these files.
    ///
    /// # Errors
    /// Why the model has no profile: a text for the log.
    fn of(&self, name: &str, directory: &Path) -> Result<LatencyProfile, String> {
        let Some(profiled) = self.0.get(name) else {
            return Err("`--profiles` has no profile of the model".to_owned());
        };
        let files = files_digest(directory, DigestedFiles::WithoutConfiguration)
            .map_err(|error| format!("its files cannot be read: {error}"))?;
        match files == profiled.files {
            true => Ok(profiled.latencies.clone()),
            false => Err(
                "the profile is of other files: measure it again with `skep profile`".to_owned(),
            ),
        }
    }
}

/// The profile by which a model's configuration is chosen; `None` if it is not. One warning says why not if the model asks
/// for it.
pub(crate) fn profile(
    config: &ModelConfig,
    directory: &Path,
    options: &LoadOptions,
) -> Option<Arc<LatencyProfile>> {
    if !config.residency().is_live {
        return None;
    }
    let name = config.name().as_str();
    let found = match &options.profiles {
        Some(profiles) => profiles.of(name, directory),
        None => Err("the server has no profiles (`--profiles`)".to_owned()),
    };
    let found = found.inspect_err(|why| {
        tracing::warn!("model `{name}`: `live_configuration` has no effect: {why}");
    });
    found.ok().map(Arc::new)
}

/// What a model's configuration is chosen for, at so many inferences a second. Cores are shared evenly by so many models
/// with live configurations.
pub(crate) fn run_terms(
    config: &ModelConfig,
    options: &LoadOptions,
    rate: f64,
    sharing: usize,
) -> RunTerms {
    let devices = options.devices.as_deref();
    let mut groups = config.instance_groups().iter();
    let devices = devices.filter(|_| groups.any(|group| group.kind == InstanceKind::Auto));
    let (all, max_threads) = match devices {
        Some(devices) => (devices.cores(), devices.least_cpus()),
        None => (options.cores.get(), options.cores.get()),
    };
    let cores = count(all / sharing.max(1)).max(1);
    let (max_batch, batch_delay, objective) = match config.scheduler() {
        SchedulerConfig::Dynamic(batching) => (
            count(config.max_batch_size()).max(1),
            batching.max_queue_delay,
            batching
                .objective
                .as_ref()
                .map(|objective| objective.latency),
        ),
        _ => (1, Duration::ZERO, None),
    };
    RunTerms {
        cores,
        max_threads: count(max_threads),
        rate,
        objective,
        max_batch,
        is_batch_fixed: objective.is_some(),
        // A policy with an objective waits as long as that allows.
        batch_delay: match objective {
            Some(_) => Duration::ZERO,
            None => batch_delay,
        },
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
