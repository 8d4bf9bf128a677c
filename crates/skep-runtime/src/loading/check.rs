//! Checks a repository without serving it: what is wrong with each model, and where.

use std::{sync::Arc, time::Duration};

use skep_config::{Ensemble, FieldPositions, ModelConfig, Notice, Position};
use skep_proto::inference;
use skep_types::{ModelName, ModelVersion};

use crate::{
    Backends, ErrorKind, LoadOptions, LoadedVersion, Repository, RuntimeError,
    loading::{Draft, EnsemblePlan, LoadPlan, RepositoryParts},
    repository::{
        ModelId,
        locate::{self, ConfigText},
        source::ModelSource,
    },
    serving::origin::OnGone,
};

/// The result of checking one model.
#[derive(Debug)]
pub struct ModelCheck {
    /// The model.
    pub name: ModelName,
    /// The versions that would be served, ascending.
    pub versions: Vec<ModelVersion>,
    /// Findings that make its load fail.
    pub errors: Vec<CheckFinding>,
    /// Settings without effect, and suspicious ones.
    pub warnings: Vec<CheckFinding>,
    /// The configuration, completed and normalised, if it is valid.
    pub config: Option<inference::ModelConfig>,
    /// The latency objective, if the configuration has one.
    pub objective: Option<Duration>,
    /// Its steps, if it is an ensemble.
    pub ensemble: Option<Ensemble>,
}

/// An error or warning about a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckFinding {
    /// The version concerned; `None` for the model as a whole.
    pub version: Option<ModelVersion>,
    /// The position in the configuration file.
    pub place: Option<Position>,
    /// The path of the field concerned, such as `input[1].dims`; may be empty.
    pub field: String,
    /// What is wrong. Further lines say how to fix it.
    pub text: String,
}

/// Checks the models of a repository, or those with these names. With `load`, each version is loaded, warmed up and
/// dropped. Without it, the weights are not read, except by a backend that must load a model to know its inputs and
/// outputs.
#[must_use]
pub fn check(
    repository: &Repository,
    names: &[ModelName],
    options: &LoadOptions,
    backends: &Backends,
    load: bool,
) -> Vec<ModelCheck> {
    let known = repository.models();
    let missing = names
        .iter()
        .filter(|name| !known.keys().any(|id| id.name == **name))
        .map(|name| ModelId {
            namespace: None,
            name: name.clone(),
        });
    let mut ids: Vec<ModelId> = known
        .keys()
        .filter(|id| names.is_empty() || names.contains(&id.name))
        .cloned()
        .chain(missing)
        .collect();
    ids.sort();
    let checked = |id: &ModelId| {
        let mut found = ModelCheck {
            name: id.name.clone(),
            versions: Vec::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
            config: None,
            objective: None,
            ensemble: None,
        };
        ModelChecker {
            id,
            repository,
            options,
            backends,
            found: &mut found,
        }
        .run(load);
        found
    };
    ids.iter().map(checked).collect()
}

struct ModelChecker<'a> {
    id: &'a ModelId,
    repository: &'a Repository,
    options: &'a LoadOptions,
    backends: &'a Backends,
    found: &'a mut ModelCheck,
}

impl ModelChecker<'_> {
    fn run(mut self, load: bool) {
        let repository = self.repository;
        let source = repository.directory(self.id).and_then(|directory| {
            ModelSource::repository(directory).map_err(RuntimeError::internal)
        });
        let source = match source {
            Ok(source) => Arc::new(source),
            Err(error) => {
                let error = error.with_hint(repository.absent_hint(&self.id.name));
                return self.error(None, &error, None, None);
            }
        };
        let text = ConfigText::of(&source, self.options.config_choice());
        let places = text.places();
        if let Err(error) = self.plan(&source, &places, load) {
            self.error(None, &error, Some(&places), None);
        }
    }

    /// Checks everything that a load of `source` reads.
    ///
    /// # Errors
    /// An error that concerns the model as a whole.
    fn plan(
        &mut self,
        source: &Arc<ModelSource>,
        places: &FieldPositions<'_>,
        load: bool,
    ) -> Result<(), RuntimeError> {
        let draft = self.draft(source)?;
        if draft.is_ensemble() {
            let plan = draft.plan_ensemble(self.options)?;
            self.ensemble(&plan, places);
            return Ok(());
        }
        match draft.choose(self.backends) {
            Ok(backend) => {
                let plan = draft.plan_on(backend, self.options)?;
                self.versions(&plan, places, load);
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                self.without_backend(draft, places);
                self.missing_backend(&error, places);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn draft(&mut self, source: &Arc<ModelSource>) -> Result<Draft, RuntimeError> {
        let name = &self.id.name;
        let proto = Draft::read_config(name, source, self.options)?;
        let draft = Draft::new(name, Arc::clone(source), proto)?;
        self.found.versions = draft.versions.iter().copied().collect();
        Ok(draft)
    }

    /// Checks a configuration whose backend is not available, with the rules that hold for every backend.
    fn without_backend(&mut self, draft: Draft, places: &FieldPositions<'_>) {
        let Some(stand_in) = self.backends.any() else {
            return;
        };
        // The model's own backend may be able to read what the stand-in cannot, so only the configuration's errors
        // count.
        match draft.plan_on(stand_in, self.options) {
            Ok(plan) => {
                self.notices(plan.notices(), places);
                for version in self.found.versions.clone() {
                    if let Some(error) = plan.check(version).err().filter(is_config_error) {
                        self.error(Some(version), &error, Some(places), Some(plan.config()));
                    }
                }
            }
            Err(error) if is_config_error(&error) => self.error(None, &error, Some(places), None),
            Err(_) => {}
        }
    }

    /// Reports that the configured backend is not available, at the line that names it.
    fn missing_backend(&mut self, error: &RuntimeError, places: &FieldPositions<'_>) {
        let mut fields = ["backend", "platform"].into_iter();
        let found = fields.find_map(|field| Some((field, places.find(field)?)));
        self.found.errors.push(CheckFinding {
            version: None,
            field: found
                .as_ref()
                .map_or_else(String::new, |(field, _)| (*field).to_owned()),
            place: found.map(|(_, place)| place),
            text: error.to_string(),
        });
    }

    fn notices<'n>(
        &mut self,
        notices: impl Iterator<Item = &'n Notice>,
        places: &FieldPositions<'_>,
    ) {
        for notice in notices {
            self.found.warnings.push(CheckFinding {
                version: None,
                place: places.find(&notice.field),
                field: notice.field.clone(),
                text: notice.text.clone(),
            });
        }
    }

    fn versions(&mut self, plan: &LoadPlan, places: &FieldPositions<'_>, load: bool) {
        let config = plan.config();
        self.found.config = Some(config.proto().clone());
        self.found.objective = config.latency_objective();
        self.notices(plan.notices(), places);
        for version in self.found.versions.clone() {
            let outcome = if load {
                let on_gone = || -> OnGone { Box::new(|| {}) };
                let loaded = plan.load(version, self.options, None, on_gone);
                loaded.map(|loaded| self.objective(version, &loaded, places))
            } else {
                plan.check(version)
            };
            if let Err(error) = outcome {
                self.error(Some(version), &error, Some(places), Some(config));
            }
        }
    }

    /// Checks an ensemble against its parts, as the repository has them. It loads nothing of its own.
    fn ensemble(&mut self, plan: &EnsemblePlan, places: &FieldPositions<'_>) {
        let config = plan.config();
        self.found.config = Some(config.proto().clone());
        self.found.objective = config.latency_objective();
        self.found.ensemble = config.ensemble().cloned();
        self.notices(plan.notices(), places);
        let parts = RepositoryParts {
            repository: self.repository,
            options: self.options,
            backends: self.backends,
        };
        if let Err(error) = plan.check(self.id.namespace.as_ref(), &parts) {
            self.error(None, &error, Some(places), Some(config));
        }
    }

    /// Warns where the loaded version cannot keep its latency objective.
    fn objective(
        &mut self,
        version: ModelVersion,
        loaded: &LoadedVersion,
        places: &FieldPositions<'_>,
    ) {
        if let Some(text) = loaded.objective_warning() {
            let field = "parameters.slo_latency_ms".to_owned();
            self.found.warnings.push(CheckFinding {
                version: Some(version),
                place: places.find(&field),
                field,
                text,
            });
        }
    }

    fn error(
        &mut self,
        version: Option<ModelVersion>,
        error: &RuntimeError,
        places: Option<&FieldPositions<'_>>,
        config: Option<&ModelConfig>,
    ) {
        let fault = error.config_error();
        let field = fault.map_or_else(String::new, |fault| locate::field(fault, config));
        let place = locate::place(error, places, config);
        let text = error.to_string();
        // The position is shown separately from the text.
        let prefix = place.as_ref().map(|place| format!("{place}: "));
        let text = prefix
            .and_then(|prefix| text.strip_prefix(&prefix).map(str::to_owned))
            .unwrap_or(text);
        self.found.errors.push(CheckFinding {
            version,
            place,
            field,
            text,
        });
    }
}

fn is_config_error(error: &RuntimeError) -> bool {
    error.config_error().is_some()
}
