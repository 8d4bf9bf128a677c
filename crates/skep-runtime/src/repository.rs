//! Model repositories on disk: which models, which versions, which files.
//!
//! ```text
//! <repository>/<model>/config.pbtxt
//! <repository>/<model>/<version>/model.onnx
//! ```
//!
//! Source: Triton, user guide, "Model Repository".

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use skep_types::{ModelName, ModelVersion};

use crate::RuntimeError;

/// The file that configures a model.
pub(crate) const CONFIG_FILE: &str = "config.pbtxt";

/// One or more repository directories, seen as one.
#[derive(Debug, Clone)]
pub struct Repository {
    roots: Vec<PathBuf>,
}

impl Repository {
    /// A repository over these directories.
    ///
    /// # Errors
    /// A text that names the directory which cannot be read.
    pub fn open(roots: Vec<PathBuf>) -> Result<Self, String> {
        for root in &roots {
            fs::read_dir(root)
                .map_err(|e| format!("cannot read model repository `{}`: {e}", root.display()))?;
        }
        Ok(Self { roots })
    }

    /// All models, each with the directories that claim its name. Hidden directories are no models.
    pub(crate) fn models(&self) -> BTreeMap<ModelName, Vec<PathBuf>> {
        let mut models: BTreeMap<ModelName, Vec<PathBuf>> = BTreeMap::new();
        for root in &self.roots {
            match subdirectories(root) {
                Ok(names) => {
                    for name in names {
                        match ModelName::new(&name) {
                            Ok(model) if !name.starts_with('.') => {
                                models.entry(model).or_default().push(root.join(&name));
                            }
                            Ok(_) => {}
                            Err(error) => tracing::warn!(
                                "ignored a directory of `{}`: {error}",
                                root.display()
                            ),
                        }
                    }
                }
                Err(error) => {
                    tracing::error!("cannot read model repository `{}`: {error}", root.display())
                }
            }
        }
        models
    }

    /// The directory of one model.
    pub(crate) fn model(&self, name: &ModelName) -> Result<PathBuf, RuntimeError> {
        let found: Vec<PathBuf> = self
            .roots
            .iter()
            .map(|root| root.join(name.as_str()))
            .filter(|path| path.is_dir())
            .collect();
        match found.as_slice() {
            [] => Err(RuntimeError::internal(format!(
                "failed to load '{name}', failed to poll from model repository"
            ))),
            [directory] => Ok(directory.clone()),
            several => {
                let places: Vec<String> = several
                    .iter()
                    .map(|p| format!("`{}`", p.display()))
                    .collect();
                Err(RuntimeError::internal(format!(
                    "failed to load '{name}': the name is not unique, it is in {}",
                    places.join(" and ")
                )))
            }
        }
    }
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
