//! A repository, checked without being served: what is wrong with each model, and where.

use std::{sync::Arc, time::Duration};

use skep_config::{FieldPositions, ModelConfig, Position};
use skep_proto::inference;
use skep_types::{ModelName, ModelVersion};

use crate::{
    Backends, ErrorKind, LoadOptions, LoadedVersion, Repository, RuntimeError,
    loading::{Draft, LoadPlan},
    repository::{
        ModelId,
        locate::{self, ConfigText},
        source::ModelSource,
    },
    serving::origin::OnGone,
};

/// What was found about one model.
#[derive(Debug)]
pub struct ModelCheck {
    /// The model.
    pub name: ModelName,
    /// The versions that would be served, ascending.
    pub versions: Vec<ModelVersion>,
    /// What fails its load.
    pub errors: Vec<Finding>,
    /// Settings without effect, and what looks odd.
    pub warnings: Vec<Finding>,
    /// The configuration, completed and normalised, if it is valid.
    pub config: Option<inference::ModelConfig>,
    /// How long an answer may take, if the configuration says so.
    pub objective: Option<Duration>,
}

/// One thing about a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The version that it is about; `None` for the model as a whole.
    pub version: Option<ModelVersion>,
    /// Where in a configuration file it is.
    pub place: Option<Position>,
    /// The path of the field that it is about, such as `input[1].dims`; may be empty.
    pub field: String,
    /// What is wrong. Further lines say how to mend it.
    pub text: String,
}

/// Checks the models of a repository, or those of these names. With `load` each version is loaded, warmed up and let go;
/// without, the weights are not touched, except where a backend must read a model to tell its inputs and outputs.
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
        };
        ModelChecker {
            id,
            options,
            backends,
            found: &mut found,
        }
        .run(repository, load);
        found
    };
    ids.iter().map(checked).collect()
}

struct ModelChecker<'a> {
    id: &'a ModelId,
    options: &'a LoadOptions,
    backends: &'a Backends,
    found: &'a mut ModelCheck,
}

impl ModelChecker<'_> {
    fn run(mut self, repository: &Repository, load: bool) {
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

    /// Checks what a load of `source` reads.
    ///
    /// # Errors
    /// What is wrong with the model as a whole.
    fn plan(
        &mut self,
        source: &Arc<ModelSource>,
        places: &FieldPositions<'_>,
        load: bool,
    ) -> Result<(), RuntimeError> {
        let draft = self.draft(source)?;
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

    /// What is wrong with a configuration, whose backend is not there to open the model's file: what holds on every backend.
    fn without_backend(&mut self, draft: Draft, places: &FieldPositions<'_>) {
        let Some(stand_in) = self.backends.any() else {
            return;
        };
        // What the stand-in cannot read of the file may be what the model's own backend can.
        let of_config = |error: &RuntimeError| error.config_error().is_some();
        match draft.plan_on(stand_in, self.options) {
            Ok(plan) => {
                self.notices(&plan, places);
                for version in self.found.versions.clone() {
                    if let Some(error) = plan.check(version).err().filter(of_config) {
                        self.error(Some(version), &error, Some(places), Some(plan.config()));
                    }
                }
            }
            Err(error) if of_config(&error) => self.error(None, &error, Some(places), None),
            Err(_) => {}
        }
    }

    /// That the backend which the configuration names is not there, at the line that names it.
    fn missing_backend(&mut self, error: &RuntimeError, places: &FieldPositions<'_>) {
        let mut fields = ["backend", "platform"].into_iter();
        let found = fields.find_map(|field| Some((field, places.find(field)?)));
        self.found.errors.push(Finding {
            version: None,
            field: found
                .as_ref()
                .map_or_else(String::new, |(field, _)| (*field).to_owned()),
            place: found.map(|(_, place)| place),
            text: error.to_string(),
        });
    }

    fn notices(&mut self, plan: &LoadPlan, places: &FieldPositions<'_>) {
        for notice in plan.notices() {
            self.found.warnings.push(Finding {
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
        self.notices(plan, places);
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

    /// Warns where the loaded version cannot keep its latency objective.
    fn objective(
        &mut self,
        version: ModelVersion,
        loaded: &LoadedVersion,
        places: &FieldPositions<'_>,
    ) {
        if let Some(text) = loaded.objective_warning() {
            let field = "parameters.slo_latency_ms".to_owned();
            self.found.warnings.push(Finding {
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
        // The place stands beside the text.
        let prefix = place.as_ref().map(|place| format!("{place}: "));
        let text = prefix
            .and_then(|prefix| text.strip_prefix(&prefix).map(str::to_owned))
            .unwrap_or(text);
        self.found.errors.push(Finding {
            version,
            place,
            field,
            text,
        });
    }
}
