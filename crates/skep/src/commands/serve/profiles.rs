//! The flag on profiles, by which models with `live_configuration` are configured while they serve.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use skep_perf::profile::{MeasuredConfiguration, ModelProfile, ProfileFile};
use skep_placer::configuration::{LatencyProfile, ProfilePoint};
use skep_runtime::{ModelProfiles, ProfiledModel};

use crate::commands::profile::{MAX_BYTES, described, this_machine};

#[derive(Debug, Args)]
#[command(next_help_heading = "Live configuration")]
pub(super) struct ProfileFlag {
    /// Profiles of `skep profile`: models that set `live_configuration` get the instances, threads and batches that answer
    /// soonest at their present rate. A profile of another machine or version of Skep is ignored with a warning (Skep's
    /// own)
    #[arg(long, value_name = "FILE")]
    profiles: Option<PathBuf>,
}

impl ProfileFlag {
    /// The profiles of the file, if one is given and it was measured here.
    ///
    /// # Errors
    /// If the file cannot be read, or is no file of `skep profile`.
    pub(super) fn read(&self) -> anyhow::Result<Option<Arc<ModelProfiles>>> {
        let Some(path) = &self.profiles else {
            return Ok(None);
        };
        let flag = || format!("--profiles {}", path.display());
        let text = skep_host::read_named_text(path, MAX_BYTES).with_context(flag)?;
        let file = ProfileFile::read(&text).with_context(flag)?;
        let machine = this_machine();
        if file.machine != machine {
            tracing::warn!(
                "{}: ignored, because it was measured on another machine or version: {}, and this is {}",
                flag(),
                described(&file.machine),
                described(&machine)
            );
            return Ok(None);
        }
        let mut models = BTreeMap::new();
        for model in &file.models {
            let profiled = profiled(model)
                .map_err(anyhow::Error::msg)
                .with_context(flag)?;
            if models.insert(model.name.clone(), profiled).is_some() {
                bail!("{}: two profiles of model `{}`", flag(), model.name);
            }
        }
        Ok(Some(Arc::new(ModelProfiles::new(models))))
    }
}

fn profiled(model: &ModelProfile) -> Result<ProfiledModel, String> {
    let mut measured: Vec<&MeasuredConfiguration> = model.configurations.iter().collect();
    // Of one configuration on several numbers of cores, the one on the most counts: as many as the server has.
    measured.sort_by_key(|one| one.cpus);
    let points = measured.into_iter().map(point);
    let points: Vec<ProfilePoint> = points
        .collect::<Option<_>>()
        .ok_or_else(|| format!("model `{}`: a latency is too large to be one", model.name))?;
    let latencies = LatencyProfile::new(points)
        .ok_or_else(|| format!("model `{}` has no measured configuration", model.name))?;
    Ok(ProfiledModel {
        files: model.model_files.clone(),
        latencies,
    })
}

fn point(one: &MeasuredConfiguration) -> Option<ProfilePoint> {
    /// A batch that takes longer is a mistake in units, or damage.
    const LONGEST: Duration = Duration::from_secs(24 * 3600);
    let duration = |millis: f64| {
        let duration = Duration::try_from_secs_f64(millis / 1e3).ok()?;
        (duration <= LONGEST).then_some(duration)
    };
    Some(ProfilePoint {
        instances: one.instances,
        threads: one.threads,
        batch: one.batch,
        typical: duration(one.latency.p50_ms)?,
        late: duration(one.latency.p95_ms)?,
    })
}
