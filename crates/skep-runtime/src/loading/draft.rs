//! From a model's directory to a validated configuration and a backend: the first half of a load.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use skep_backend::{Backend, ModelFile};
use skep_config::{Completion, ModelConfig, Notice};
use skep_proto::inference;
use skep_types::{ModelName, ModelVersion};

use crate::{
    LoadedVersion, RuntimeError,
    loading::{
        EnsemblePlan, LoadOptions, LoadPlan,
        backends::{BackendChoice, Backends},
        file_interface::{FileInspector, InspectedFile},
        model_file::{find, lone_default},
    },
    repository::{
        self,
        locate::{self, ConfigText},
        source::ModelSource,
    },
};

/// A model with its configuration as read, and the versions to load.
pub(crate) struct Draft {
    name: ModelName,
    source: Arc<ModelSource>,
    proto: inference::ModelConfig,
    /// The versions in the model's directory; never empty.
    available: BTreeSet<ModelVersion>,
    /// The selected versions; never empty.
    pub(crate) versions: BTreeSet<ModelVersion>,
}

/// A model whose configuration is valid, before its versions are loaded.
pub(crate) enum ModelPlan {
    /// Instances run it.
    Instances(Box<LoadPlan>),
    /// Its steps are requests to other models.
    Ensemble(EnsemblePlan),
}

impl ModelPlan {
    pub(crate) fn config(&self) -> &Arc<ModelConfig> {
        match self {
            Self::Instances(plan) => &plan.config,
            Self::Ensemble(plan) => &plan.config,
        }
    }

    /// Whether `loaded` can stay.
    pub(crate) fn keeps(&self, loaded: &LoadedVersion) -> bool {
        match self {
            Self::Instances(plan) => plan.keeps(loaded),
            Self::Ensemble(plan) => plan.keeps(loaded),
        }
    }

    /// A version that stays, under the new configuration.
    pub(crate) fn update(
        &self,
        loaded: &Arc<LoadedVersion>,
    ) -> Result<Arc<LoadedVersion>, RuntimeError> {
        match self {
            Self::Instances(plan) => plan.update(loaded),
            Self::Ensemble(_) => Ok(Arc::clone(loaded)),
        }
    }

    /// A warning about a response cache that the model asks for and the node does not have.
    pub(crate) fn missing_cache(&self, options: &LoadOptions) -> Option<Notice> {
        let wants_cache = self.config().response_cache().is_some();
        (wants_cache && options.response_cache.is_none()).then(|| {
            let text = "no effect, every request is computed: the server has no response cache, which `--cache-config=local,size=BYTES` gives it";
            Notice::new("response_cache.enable", text)
        })
    }
}

impl Draft {
    /// Reads the model's configuration.
    ///
    /// # Errors
    /// If the configuration cannot be read, or belongs to another model (in Triton's terms, the poll failed).
    pub(crate) fn read_config(
        name: &ModelName,
        source: &ModelSource,
        options: &LoadOptions,
    ) -> Result<inference::ModelConfig, RuntimeError> {
        let mut proto = source.read_config(name, options.config_choice())?;
        skep_config::check_name(&mut proto, name).map_err(RuntimeError::from)?;
        Ok(proto)
    }

    /// Selects the versions.
    ///
    /// # Errors
    /// If the model has no versions, or the policy selects none of them.
    pub(crate) fn new(
        name: &ModelName,
        source: Arc<ModelSource>,
        proto: inference::ModelConfig,
    ) -> Result<Self, RuntimeError> {
        let directory = source.directory();
        let available = repository::versions(directory).map_err(|e| {
            RuntimeError::internal(format!("cannot read `{}`: {e}", directory.display()))
        })?;
        let none = |why: String| {
            RuntimeError::invalid(format!(
                "at least one version must be available under the version policy of model '{name}'\n{why}"
            ))
        };
        if available.is_empty() {
            return Err(none(format!(
                "model '{name}' has no version: expected a directory named by a positive integer, such as `1`, in `{}`",
                directory.display()
            )));
        }
        let policy = skep_config::version_policy(&proto, name).map_err(RuntimeError::from)?;
        let versions = policy.select(&available);
        if versions.is_empty() {
            let there: Vec<String> = available.iter().map(ToString::to_string).collect();
            return Err(none(format!("available: {}", there.join(", "))));
        }
        Ok(Self {
            name: name.clone(),
            source,
            proto,
            available,
            versions,
        })
    }

    /// Completes and validates the configuration.
    pub(crate) fn plan(
        self,
        options: &LoadOptions,
        backends: &Backends,
    ) -> Result<ModelPlan, RuntimeError> {
        if self.is_ensemble() {
            return self.plan_ensemble(options).map(ModelPlan::Ensemble);
        }
        let backend = self.choose(backends)?;
        self.plan_on(backend, options)
            .map(|plan| ModelPlan::Instances(Box::new(plan)))
    }

    /// Whether the configuration is that of an ensemble, which has no backend.
    pub(crate) fn is_ensemble(&self) -> bool {
        skep_config::is_ensemble(&self.proto)
    }

    /// Validates the configuration of an ensemble.
    pub(crate) fn plan_ensemble(self, options: &LoadOptions) -> Result<EnsemblePlan, RuntimeError> {
        let config = ModelConfig::from_proto(self.proto, &options.context(&self.name))
            .map_err(RuntimeError::from)?;
        warn_of(config.notices(), &self.name, &self.source, options);
        Ok(EnsemblePlan {
            source: self.source,
            config: Arc::new(config),
        })
    }

    /// Chooses the model's backend.
    pub(crate) fn choose(&self, backends: &Backends) -> Result<Arc<dyn Backend>, RuntimeError> {
        let name = &self.name;
        skep_config::check_backend_name(&self.proto, name).map_err(RuntimeError::from)?;
        let BackendChoice { backend, note } =
            backends.choose(skep_config::configured_backend(&self.proto))?;
        if let Some(note) = note {
            tracing::warn!("model `{name}`: {note}");
        }
        Ok(backend)
    }

    /// Completes and validates the configuration for a backend.
    pub(crate) fn plan_on(
        mut self,
        backend: Arc<dyn Backend>,
        options: &LoadOptions,
    ) -> Result<LoadPlan, RuntimeError> {
        let name = &self.name;
        let configured = skep_config::configured_backend(&self.proto).map(str::to_owned);
        // The configuration keeps the name that it gave: a fallback changes the backend that runs the model, not its
        // configuration.
        let shown = configured.as_deref().unwrap_or_else(|| backend.name());
        let latest = self.available.last().map(ToString::to_string);
        let directory = self.source.directory().join(latest.unwrap_or_default());
        let configured_batch_size = self.proto.max_batch_size;
        let inspected = complete(&mut self.proto, name, shown, &directory, &*backend, options)?;
        let notices = inspected.as_ref().map_or_else(Vec::new, |inspected| {
            inspected.notices(configured_batch_size)
        });
        let config = ModelConfig::from_proto(self.proto, &options.context(name))
            .map_err(RuntimeError::from)?;
        let all = config.notices().iter().chain(&notices);
        warn_of(all, name, &self.source, options);
        Ok(LoadPlan {
            source: self.source,
            config: Arc::new(config),
            backend,
            notices,
            inspected,
        })
    }
}

/// Logs notices about a configuration, each with its place.
fn warn_of<'a>(
    notices: impl IntoIterator<Item = &'a Notice>,
    name: &ModelName,
    source: &ModelSource,
    options: &LoadOptions,
) {
    let mut notices = notices.into_iter().peekable();
    if notices.peek().is_none() {
        return;
    }
    let text = ConfigText::of(source, options.config_choice());
    let places = text.places();
    for notice in notices {
        tracing::warn!("model `{name}`: {}", locate::notice(&places, notice));
    }
}

/// Completes the configuration. Returns the model's file if it was inspected.
pub(crate) fn complete(
    proto: &mut inference::ModelConfig,
    name: &ModelName,
    shown: &str,
    version_directory: &Path,
    backend: &dyn Backend,
    options: &LoadOptions,
) -> Result<Option<InspectedFile>, RuntimeError> {
    let usual = backend.model_files();
    let needs_file = backend.needs_file();
    let mut filename = skep_config::model_filename(proto, name)
        .map_err(RuntimeError::from)?
        .to_owned();
    if proto.default_model_filename.is_empty()
        && let Some(lone) = lone_default(version_directory, usual)
    {
        lone.clone_into(&mut filename);
    }
    let complete_tensors =
        needs_file && options.auto_complete && (proto.input.is_empty() || proto.output.is_empty());
    let inspected = if complete_tensors {
        let inspector = FileInspector {
            backend,
            model: name,
            limit: options.sandbox_load_limit,
        };
        let file = ModelFile::open(&find(version_directory, &filename, usual)?)?;
        Some(inspector.inspect(file, proto)?)
    } else {
        None
    };
    let inspection = inspected.as_ref().map(|inspected| &inspected.inspection);
    let completion = Completion {
        model: name,
        backend: shown,
        model_filename: if needs_file { &filename } else { "" },
        default_max_batch_size: options.default_max_batch_size(shown),
        signature: inspection.and_then(|inspection| inspection.signature.as_ref()),
        is_unbatched: inspection.is_some_and(|inspection| inspection.not_batched.is_some()),
    };
    skep_config::complete(proto, &completion).map_err(RuntimeError::from)?;
    Ok(inspected)
}
