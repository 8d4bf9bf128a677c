//! The directories of a repository, seen as one: which models there are, and where.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use skep_host::lock;
use skep_types::ModelName;

use crate::{
    error::RuntimeError,
    repository::entries::{model_names, subdirectories},
};

/// How many models a hint names.
const SHOWN_MODELS: usize = 10;

/// A model's identity: its name, and its repository if names need not be unique.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ModelId {
    /// The repository's path; `None` if names are unique.
    pub(crate) namespace: Option<Arc<str>>,
    pub(crate) name: ModelName,
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            None => self.name.fmt(f),
            Some(namespace) => write!(f, "{namespace}::{}", self.name),
        }
    }
}

/// One or more repository directories, seen as one.
#[derive(Debug, Clone)]
pub struct Repository {
    roots: Vec<PathBuf>,
    /// Whether each root is a namespace.
    namespaces: bool,
    /// The roots that the log has reported as unreadable, so that it does so once and not with each index.
    unreadable: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Repository {
    /// A repository over these directories, in which names must be unique. A path given twice counts once, as in
    /// Triton; two paths that lead to the same directory do not.
    ///
    /// # Errors
    /// A text that names the directory that cannot be read.
    pub fn open(mut roots: Vec<PathBuf>) -> Result<Self, String> {
        let mut seen = BTreeSet::new();
        roots.retain(|root| seen.insert(root.clone()));
        for root in &roots {
            fs::read_dir(root).map_err(|error| {
                let hint =
                    unreadable_hint(root).map_or_else(String::new, |hint| format!("\n  {hint}"));
                format!(
                    "cannot read model repository `{}`: {error}{hint}",
                    root.display()
                )
            })?;
        }
        Ok(Self {
            roots,
            namespaces: false,
            unreadable: Arc::default(),
        })
    }

    /// Makes each directory a namespace: several may have models of the same name.
    #[must_use]
    pub fn with_namespaces(mut self, namespaces: bool) -> Self {
        self.namespaces = namespaces;
        self
    }

    /// Logs that a root cannot be read, once until it can be read again.
    fn note_readable(&self, root: &Path, error: Option<&io::Error>) {
        let mut unreadable = lock(&self.unreadable);
        let Some(error) = error else {
            unreadable.remove(root);
            return;
        };
        if unreadable.insert(root.to_owned()) {
            tracing::error!("cannot read model repository `{}`: {error}", root.display());
        }
    }

    /// The identity of a model in one of the repositories.
    pub(crate) fn id(&self, root: &Path, name: ModelName) -> ModelId {
        ModelId {
            namespace: self.namespaces.then(|| root.display().to_string().into()),
            name,
        }
    }

    /// All models, each with the directories that claim its name. Hidden directories are not models.
    pub(crate) fn models(&self) -> BTreeMap<ModelId, Vec<PathBuf>> {
        let mut models: BTreeMap<ModelId, Vec<PathBuf>> = BTreeMap::new();
        for root in &self.roots {
            let names = subdirectories(root);
            self.note_readable(root, names.as_ref().err());
            let names = names.unwrap_or_default();
            for model in model_names(root, &names) {
                let path = root.join(model.as_str());
                models.entry(self.id(root, model)).or_default().push(path);
            }
        }
        models
    }

    /// The directories of the repositories.
    pub(crate) fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// Names the models that exist, or the one that `name` probably means. `None` if a model has the name.
    pub(crate) fn absent_hint(&self, name: &ModelName) -> Option<String> {
        let models = self.models();
        let names: BTreeSet<&str> = models.keys().map(|id| id.name.as_str()).collect();
        if names.contains(name.as_str()) {
            return None;
        }
        let roots: Vec<String> = self
            .roots
            .iter()
            .map(|root| format!("`{}`", root.display()))
            .collect();
        let roots = roots.join(", ");
        if let Some(near) = skep_config::nearest(name.as_str(), names.iter().copied()) {
            return Some(format!(
                "{roots} has no directory `{name}`; did you mean `{near}`?"
            ));
        }
        let shown: Vec<String> = names
            .iter()
            .take(SHOWN_MODELS)
            .map(|name| format!("`{name}`"))
            .collect();
        let there = match names.len().saturating_sub(shown.len()) {
            _ if names.is_empty() => "it has no models".to_owned(),
            0 => format!("available models: {}", shown.join(", ")),
            more => format!("available models: {} and {more} more", shown.join(", ")),
        };
        Some(format!("{roots} has no directory `{name}`; {there}"))
    }

    /// The models with a name: one at most, unless there are namespaces.
    pub(crate) fn named(&self, name: &ModelName) -> Vec<ModelId> {
        let roots = self
            .roots
            .iter()
            .filter(|root| root.join(name.as_str()).is_dir());
        let ids: BTreeSet<ModelId> = roots.map(|root| self.id(root, name.clone())).collect();
        ids.into_iter().collect()
    }

    /// The directory of one model.
    ///
    /// # Errors
    /// When no directory has its name, or when several do.
    pub(crate) fn directory(&self, id: &ModelId) -> Result<PathBuf, RuntimeError> {
        let roots = self.roots.iter().filter(|root| {
            let namespace = id.namespace.as_deref();
            namespace.is_none_or(|namespace| root.display().to_string() == namespace)
        });
        let found: Vec<PathBuf> = roots
            .map(|root| root.join(id.name.as_str()))
            .filter(|path| path.is_dir())
            .collect();
        match found.as_slice() {
            [] => Err(not_polled(id.name.as_str(), "")),
            [directory] => Ok(directory.clone()),
            several => {
                let places: Vec<String> = several
                    .iter()
                    .map(|p| format!("`{}`", p.display()))
                    .collect();
                let places = places.join(" and ");
                let why = format!("the name is not unique, it is in {places}");
                Err(not_polled(id.name.as_str(), &why))
            }
        }
    }
}

/// The repository lacks the model, or cannot read it: Triton's text, and why.
pub(crate) fn not_polled(name: &str, why: &str) -> RuntimeError {
    let mut text = format!("failed to load '{name}', failed to poll from model repository");
    if !why.is_empty() {
        text += &format!(": {why}");
    }
    RuntimeError::internal(text)
}

/// What to do about a repository that cannot be read.
fn unreadable_hint(root: &Path) -> Option<String> {
    let text = root.to_str()?;
    if let Some((scheme, _)) = text.split_once("://") {
        return Some(format!(
            "`{scheme}://` is not supported: copy the models to a directory, or mount them as one"
        ));
    }
    root.is_file()
        .then(|| "a repository is a directory: expected NAME/1/model.onnx in it".to_owned())
}
