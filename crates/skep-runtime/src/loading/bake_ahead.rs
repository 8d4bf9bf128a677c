//! Bakes models ahead of time: makes the forms that loads would make, without loading.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use skep_backend::ModelFile;
use skep_config::ModelConfig;
use skep_proto::inference;
use skep_types::{ModelName, ModelVersion};
use skep_weights::Baked;

use crate::{
    Backends, LoadOptions, Repository, RuntimeError,
    loading::{Draft, ModelPlan, draft, request},
    repository::{self, source::ModelSource},
    serving::instances::CopyTerms,
};

/// The result for one version of a model, or for a file.
#[derive(Debug)]
pub struct BakeOutcome {
    /// The model's directory, or the file.
    pub path: PathBuf,
    /// The version; `None` for a file, and for a model whose versions cannot be determined.
    pub version: Option<ModelVersion>,
    /// Whether it was baked.
    pub outcome: Result<Baked, RuntimeError>,
    /// How long it took.
    pub took: Duration,
}

/// A model or file that [`bake`] can bake.
#[derive(Debug)]
pub struct Bakeable {
    /// A model's directory, or a file.
    pub path: PathBuf,
    /// The versions in the directory; those that would be served are baked.
    pub versions: BTreeSet<ModelVersion>,
}

/// What to bake at `path`: the directories of a repository's models, in order; otherwise the path itself. If that is
/// neither a model nor a file, `bake` reports it.
#[must_use]
pub fn bakeable(path: &Path) -> Vec<Bakeable> {
    let paths = if !path.is_dir() || repository::is_model(path) {
        vec![path.to_owned()]
    } else {
        match Repository::open(vec![path.to_owned()]) {
            Ok(repository) => repository.models().into_values().flatten().collect(),
            Err(_) => vec![path.to_owned()],
        }
    };
    let models = paths.into_iter().map(|path| Bakeable {
        versions: repository::versions(&path).unwrap_or_default(),
        path,
    });
    models.collect()
}

/// Bakes a model file, or the versions of a model's directory that would be served.
#[must_use]
pub fn bake(path: &Path, options: &LoadOptions, backends: &Backends) -> Vec<BakeOutcome> {
    if path.is_dir() {
        return model(path, options, backends);
    }
    vec![one(path, None, || file(path, options, backends))]
}

fn one(
    path: &Path,
    version: Option<ModelVersion>,
    bake: impl FnOnce() -> Result<Baked, RuntimeError>,
) -> BakeOutcome {
    let began = Instant::now();
    let outcome = guarded(bake);
    BakeOutcome {
        path: path.to_owned(),
        version,
        outcome,
        took: began.elapsed(),
    }
}

/// Turns a panic into an error, so that a broken file does not keep others from being baked.
fn guarded(bake: impl FnOnce() -> Result<Baked, RuntimeError>) -> Result<Baked, RuntimeError> {
    catch_unwind(AssertUnwindSafe(bake))
        .unwrap_or_else(|_| Err(RuntimeError::internal("the backend panicked".to_owned())))
}

/// The versions of a model that would be served.
fn model(directory: &Path, options: &LoadOptions, backends: &Backends) -> Vec<BakeOutcome> {
    let planned = || {
        // For a path such as `.`, the directory has the name.
        let absolute = directory
            .canonicalize()
            .unwrap_or_else(|_| directory.to_owned());
        let name = absolute.file_name().unwrap_or_default().to_string_lossy();
        let name =
            ModelName::new(&name).map_err(|error| RuntimeError::invalid(error.to_string()))?;
        let source =
            ModelSource::repository(directory.to_owned()).map_err(RuntimeError::invalid)?;
        let source = Arc::new(source);
        let proto = Draft::read_config(&name, &source, options)?;
        let draft = Draft::new(&name, source, proto)?;
        let versions = draft.versions.clone();
        match draft.plan(options, backends)? {
            ModelPlan::Instances(plan) => Ok((plan, versions)),
            ModelPlan::Ensemble(_) => Err(RuntimeError::invalid(
                "an ensemble has no weights to bake: bake the models of its steps",
            )),
        }
    };
    match planned() {
        Err(error) => vec![one(directory, None, || Err(error))],
        Ok((plan, versions)) => versions
            .into_iter()
            .map(|version| one(directory, Some(version), || plan.bake(version, options)))
            .collect(),
    }
}

/// Bakes a file outside any repository, with a configuration that is completed from the file.
fn file(path: &Path, options: &LoadOptions, backends: &Backends) -> Result<Baked, RuntimeError> {
    let file = ModelFile::open(path)?;
    let backend = backends.choose(None)?.backend;
    let name =
        ModelName::new("model").map_err(|error| RuntimeError::internal(error.to_string()))?;
    let mut proto = inference::ModelConfig {
        default_model_filename: path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        ..inference::ModelConfig::default()
    };
    let directory = path.parent().unwrap_or(Path::new(""));
    draft::complete(
        &mut proto,
        &name,
        backend.name(),
        directory,
        &*backend,
        options,
    )?;
    let config = ModelConfig::from_proto(proto, &options.context(&name))?;
    let weights = request::weights(&config, options)?;
    backend
        .bake(&request::request(
            &file,
            &config,
            options,
            weights.as_ref(),
            CopyTerms::default(),
        ))
        .map_err(Into::into)
}
