//! Model repositories on disk: which models, which versions, which files.
//!
//! ```text
//! <repository>/<model>/config.pbtxt
//! <repository>/<model>/configs/<name>.pbtxt      taken instead under `--model-config-name=<name>`
//! <repository>/<model>/<version>/model.onnx
//! ```
//!
//! Source: Triton, user guide, "Model Repository".

mod layout;
pub(crate) mod locate;
pub(crate) mod snapshot;
pub(crate) mod source;

pub use layout::LayoutFinding;
pub use source::LoadOverrides;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, DirEntry},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use skep_host::lock;
use skep_types::{ModelName, ModelVersion};

use crate::RuntimeError;

/// How many models a hint names.
const SHOWN_MODELS: usize = 10;

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
    /// The roots that the log says cannot be read, so that it says so once and not with each index.
    unreadable: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Repository {
    /// A repository over these directories, in which names must be unique. A path given twice counts once, as in Triton;
    /// two paths that lead to the same directory do not.
    ///
    /// # Errors
    /// A text that names the directory which cannot be read.
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

    /// Makes each directory a namespace: models of the same name may stand in several.
    #[must_use]
    pub fn with_namespaces(mut self, namespaces: bool) -> Self {
        self.namespaces = namespaces;
        self
    }

    /// Logs that a root cannot be read, when that begins.
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

    /// All models, each with the directories that claim its name. Hidden directories are no models.
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

    /// Which models there are, and which one was probably meant by a name that none has. `None` for a name that one has.
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
            _ if names.is_empty() => "no models are there".to_owned(),
            0 => format!("models there: {}", shown.join(", ")),
            more => format!("models there: {} and {more} more", shown.join(", ")),
        };
        Some(format!("{roots} has no directory `{name}`; {there}"))
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

/// Whether a directory looks like a model's, even one that cannot be served: it has a version or a configuration. A
/// repository's has neither.
#[must_use]
pub fn is_model(directory: &Path) -> bool {
    directory.join(CONFIG_FILE).exists() || versions(directory).is_ok_and(|found| !found.is_empty())
}

/// The models among the directories of a repository. Hidden ones are no models.
pub(crate) fn model_names(root: &Path, directories: &[String]) -> Vec<ModelName> {
    let named = |name: &String| {
        ModelName::new(name)
            .inspect_err(|error| {
                tracing::warn!("ignored a directory of `{}`: {error}", root.display());
            })
            .ok()
    };
    let shown = directories.iter().filter(|name| !name.starts_with('.'));
    shown.filter_map(named).collect()
}

/// What to do where a repository cannot be read.
fn unreadable_hint(root: &Path) -> Option<String> {
    let text = root.to_str()?;
    if let Some((scheme, _)) = text.split_once("://") {
        return Some(format!(
            "`{scheme}://` is not read: copy the models to a directory, or mount them as one"
        ));
    }
    root.is_file()
        .then(|| "a repository is a directory: expected NAME/1/model.onnx in it".to_owned())
}

/// Whether an entry is a directory, or a link to one. One of which that cannot be told counts as one: reading it says why.
pub(crate) fn is_directory(entry: &DirEntry) -> bool {
    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
        return true;
    }
    fs::metadata(entry.path()).map_or_else(|error| !is_absent(&error), |found| found.is_dir())
}

/// Whether an error means that nothing is there, as opposed to something that cannot be read; links that lead nowhere are
/// nothing.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    const TOO_MANY_LINKS: i32 = 40;
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    ) || error.raw_os_error() == Some(TOO_MANY_LINKS)
}

/// Names of the directories in `path`; links to directories count.
pub(crate) fn subdirectories(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if is_directory(&entry)
            && let Some(name) = entry.file_name().to_str()
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_model_has_a_version_or_a_configuration() {
        for (path, expected) in [
            ("1", true),
            (CONFIG_FILE, true),
            ("+1", false),
            ("01", false),
            ("0", false),
            ("m", false),
        ] {
            let directory = TempDir::new().expect("directory");
            fs::create_dir(directory.path().join(path)).expect("entry");
            assert_eq!(is_model(directory.path()), expected, "{path}");
        }
        let directory = TempDir::new().expect("directory");
        fs::write(directory.path().join("1"), "").expect("file");
        assert!(!is_model(directory.path()), "a file is no version");
    }
}
