//! Model repositories on disk: which models, which versions, which files.
//!
//! ```text
//! <repository>/<model>/config.pbtxt
//! <repository>/<model>/configs/<name>.pbtxt      taken instead under `--model-config-name=<name>`
//! <repository>/<model>/<version>/model.onnx
//! ```
//!
//! Source: Triton, user guide, "Model Repository".

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use skep_types::{ModelName, ModelVersion};

use crate::{
    RuntimeError,
    snapshot::{ModelFiles, RepositoryFiles},
};

/// The file that configures a model.
pub(crate) const CONFIG_FILE: &str = "config.pbtxt";

/// The directory of configurations that are chosen by name.
pub(crate) const CUSTOM_CONFIG_DIRECTORY: &str = "configs";

/// What tells a model from any other: its name, and the repository it is in where names need not be unique.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ModelId {
    /// The repository's path; `None` where names are unique.
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
    /// Whether each root is a namespace of its own.
    namespaces: bool,
}

impl Repository {
    /// A repository over these directories, in which names must be unique.
    ///
    /// # Errors
    /// A text that names the directory which cannot be read.
    pub fn open(roots: Vec<PathBuf>) -> Result<Self, String> {
        for root in &roots {
            fs::read_dir(root)
                .map_err(|e| format!("cannot read model repository `{}`: {e}", root.display()))?;
        }
        Ok(Self {
            roots,
            namespaces: false,
        })
    }

    /// Makes each directory a namespace: models of the same name may stand in several.
    #[must_use]
    pub fn with_namespaces(mut self, namespaces: bool) -> Self {
        self.namespaces = namespaces;
        self
    }

    fn id(&self, root: &Path, name: ModelName) -> ModelId {
        ModelId {
            namespace: self.namespaces.then(|| root.display().to_string().into()),
            name,
        }
    }

    /// All models, each with the directories that claim its name. Hidden directories are no models.
    pub(crate) fn models(&self) -> BTreeMap<ModelId, Vec<PathBuf>> {
        let mut models: BTreeMap<ModelId, Vec<PathBuf>> = BTreeMap::new();
        for root in &self.roots {
            let names = subdirectories(root).unwrap_or_else(|error| {
                tracing::error!("cannot read model repository `{}`: {error}", root.display());
                Vec::new()
            });
            for name in names.iter().filter(|name| !name.starts_with('.')) {
                match ModelName::new(name) {
                    Ok(model) => models
                        .entry(self.id(root, model))
                        .or_default()
                        .push(root.join(name)),
                    Err(error) => {
                        tracing::warn!("ignored a directory of `{}`: {error}", root.display());
                    }
                }
            }
        }
        models
    }

    /// All models with what is in their directories.
    pub(crate) fn files(&self) -> RepositoryFiles {
        let place = |path: PathBuf| {
            // A directory that vanished meanwhile has no files; the next look will not find it.
            let files = ModelFiles::read(&path).unwrap_or_default();
            (path, files)
        };
        self.models()
            .into_iter()
            .map(|(id, paths)| (id, paths.into_iter().map(place).collect()))
            .collect()
    }

    /// The models of a name: one at most, unless there are namespaces.
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
    /// When there is none, or when several directories claim its name.
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

/// A model that the repository does not have, or not in a form that can be read: Triton's text, and why.
pub(crate) fn not_polled(name: &str, why: &str) -> RuntimeError {
    let mut text = format!("failed to load '{name}', failed to poll from model repository");
    if !why.is_empty() {
        text += &format!(": {why}");
    }
    RuntimeError::internal(text)
}

/// The version directories of a model: names that are positive integers without a leading zero; others are ignored.
pub(crate) fn versions(model: &Path) -> io::Result<BTreeSet<ModelVersion>> {
    Ok(subdirectories(model)?
        .iter()
        .filter_map(|name| ModelVersion::parse(name).ok())
        .collect())
}

/// Names of the directories in `path`; links to directories count.
fn subdirectories(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.path().is_dir()
            && let Some(name) = entry.file_name().to_str()
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
