//! The plan of an ensemble: it has no file and no backend, and its parts have to fit it.

use std::{sync::Arc, time::Instant};

use skep_config::{Ensemble, ModelConfig, Notice};
use skep_types::{ModelSignature, ModelVersion, TensorSpec};

use crate::{
    LoadOptions, LoadedVersion, Repository, RuntimeError,
    loading::{Backends, Draft, ModelPlan, plan::with_cache},
    repository::{ModelId, source::ModelSource},
    serving::{
        ensemble::{
            EnsembleResponder, PartConfigs, StepModels, StepTarget, check_parts, find_parts,
        },
        interface::Interface,
        labels::{self, ClassLabels},
        origin::{OnGone, VersionLife, VersionOrigin},
    },
    statistics::{RecorderOptions, recorder::Statistics},
};

/// The name that stands for a backend, in logs and reports.
const ENSEMBLE: &str = "ensemble";

/// An ensemble whose configuration is valid, before its versions are loaded.
pub(crate) struct EnsemblePlan {
    pub(super) source: Arc<ModelSource>,
    pub(super) config: Arc<ModelConfig>,
}

impl EnsemblePlan {
    fn ensemble(&self) -> Result<&Ensemble, RuntimeError> {
        let ensemble = self.config.ensemble();
        ensemble.ok_or_else(|| RuntimeError::internal("an ensemble without steps"))
    }

    /// Whether `loaded` can stay: nothing of its configuration that its requests depend on has changed.
    pub(super) fn keeps(&self, loaded: &LoadedVersion) -> bool {
        loaded.is_healthy()
            && self
                .source
                .same_version(&loaded.origin.source, loaded.version())
            && self.config.proto() == loaded.config.proto()
    }

    /// Checks the ensemble's files, and the ensemble against its parts.
    pub(super) fn check(
        &self,
        namespace: Option<&Arc<str>>,
        parts: &dyn PartConfigs,
    ) -> Result<(), RuntimeError> {
        labels::read(self.config.outputs(), self.source.directory())?;
        self.parts(namespace, parts).map(drop)
    }

    /// The configurations of the parts, which fit the ensemble, in the order of its steps.
    fn parts(
        &self,
        namespace: Option<&Arc<str>>,
        parts: &dyn PartConfigs,
    ) -> Result<Vec<Arc<ModelConfig>>, RuntimeError> {
        let ensemble = self.ensemble()?;
        let parts = find_parts(&self.config, ensemble, namespace, parts)?;
        check_parts(&self.config, ensemble, &parts)?;
        Ok(parts)
    }

    /// Loads a version.
    pub(crate) fn load(
        &self,
        version: ModelVersion,
        options: &LoadOptions,
        namespace: Option<Arc<str>>,
        models: Arc<dyn StepModels>,
        on_gone: OnGone,
    ) -> Result<LoadedVersion, RuntimeError> {
        let began = Instant::now();
        let parts = self.parts(namespace.as_ref(), &*models)?;
        let config = Arc::clone(&self.config);
        let ensemble = self.ensemble()?;
        let steps = ensemble.steps.iter();
        let targets: Vec<StepTarget> = steps
            .map(|step| StepTarget::new(step, namespace.as_ref()))
            .collect();
        let labels = self.labels(ensemble, &targets, &*models)?;
        let interface = Interface::new(&config, version, &signature(&config), &[], None);
        let interface = Arc::new(interface);
        let life = VersionLife::new(on_gone);
        let responder = EnsembleResponder::new(
            Arc::clone(&interface),
            (Arc::clone(&config), ensemble),
            (targets, parts),
            models,
            Statistics::new(RecorderOptions::new(options.metrics, &config)),
        );
        let responder = with_cache(Arc::new(responder), &config, options);
        Ok(LoadedVersion {
            interface,
            labels,
            backend: ENSEMBLE,
            load_duration: began.elapsed(),
            profile: None,
            responder,
            origin: VersionOrigin::new(Arc::clone(&self.source), namespace, life),
            config,
        })
    }

    /// The labels of the outputs: those of the ensemble, or else of the part that writes the output.
    fn labels(
        &self,
        ensemble: &Ensemble,
        targets: &[StepTarget],
        models: &dyn StepModels,
    ) -> Result<Vec<(String, ClassLabels)>, RuntimeError> {
        let mut labels = labels::read(self.config.outputs(), self.source.directory())?;
        for (step, target) in ensemble.steps.iter().zip(targets) {
            let Some(part) = models.resident(target) else {
                continue;
            };
            for (of_part, of_ensemble) in &step.outputs {
                let has_own = labels.iter().any(|(output, _)| output == of_ensemble);
                if !has_own && let Some(of_part) = part.labels(of_part) {
                    labels.push((of_ensemble.clone(), of_part.clone()));
                }
            }
        }
        Ok(labels)
    }

    pub(super) fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub(super) fn notices(&self) -> impl Iterator<Item = &Notice> {
        self.config.notices().iter()
    }
}

/// The inputs and outputs of the configuration, in its order.
fn signature(config: &ModelConfig) -> ModelSignature {
    let specs = |tensors: &[skep_config::TensorConfig]| {
        let specs = tensors.iter().map(|tensor| TensorSpec {
            name: tensor.name.clone(),
            datatype: tensor.datatype,
            dims: Some(tensor.full_dims()),
        });
        specs.collect()
    };
    ModelSignature {
        inputs: specs(config.inputs()),
        outputs: specs(config.outputs()),
    }
}

/// The parts as a repository has them, without loading any.
pub(crate) struct RepositoryParts<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) options: &'a LoadOptions,
    pub(crate) backends: &'a Backends,
}

impl RepositoryParts<'_> {
    /// The model that a step names: in the namespace, or else the only one of the name.
    pub(crate) fn id(&self, target: &StepTarget) -> Result<ModelId, RuntimeError> {
        let mut ids = self.repository.named(&target.id.name);
        if let Some(own) = ids.iter().find(|id| **id == target.id) {
            return Ok(own.clone());
        }
        match (ids.pop(), ids.is_empty()) {
            (Some(id), true) => Ok(id),
            (Some(_), false) => Err(RuntimeError::invalid(format!(
                "several repositories have a model '{}': name one in the step's `model_namespace`",
                target.id.name
            ))),
            (None, _) => Err(RuntimeError::invalid(format!(
                "there is no model '{}' in the repository",
                target.id.name
            ))),
        }
    }
}

impl PartConfigs for RepositoryParts<'_> {
    fn config(&self, target: &StepTarget) -> Result<Arc<ModelConfig>, RuntimeError> {
        let id = self.id(target)?;
        let directory = self.repository.directory(&id)?;
        let source = ModelSource::repository(directory).map_err(RuntimeError::internal)?;
        let source = Arc::new(source);
        let proto = Draft::read_config(&id.name, &source, self.options)?;
        let draft = Draft::new(&id.name, source, proto)?;
        let version = match target.version {
            Some(version) if !draft.versions.contains(&version) => {
                let text = format!("its version {version} is not served");
                return Err(RuntimeError::invalid(text));
            }
            Some(version) => Some(version),
            None => draft.versions.last().copied(),
        };
        let plan = draft.plan(self.options, self.backends)?;
        let version = version.ok_or_else(|| RuntimeError::invalid("it has no version"))?;
        plan.config_of(version)
    }
}

impl ModelPlan {
    /// The configuration of a version, checked against its file.
    fn config_of(&self, version: ModelVersion) -> Result<Arc<ModelConfig>, RuntimeError> {
        match self {
            Self::Instances(plan) => plan.config_of(version),
            Self::Ensemble(plan) => Ok(Arc::clone(&plan.config)),
        }
    }
}
