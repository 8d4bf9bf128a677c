//! Where a model is loaded from: a directory of the repository, perhaps under another configuration, or files that a
//! client sent.
//!
//! Files of a client lie in a directory of their own under the system's temporary directory. It is there as long as
//! anything was loaded from it, and nothing that a client names may lie outside of it.
//!
//! Source: Triton, model repository extension, load parameters `config` and `file:<path>`.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use skep_proto::inference;
use skep_tensor::Charge;
use skep_types::{ModelName, ModelVersion};
use tempfile::TempDir;

use crate::{
    RuntimeError,
    repository::{CONFIG_FILE, CUSTOM_CONFIG_DIRECTORY, snapshot::ModelFiles},
};

/// How errors call the configuration of a load request.
const CONFIG_PARAMETER: &str = "parameter `config`";

/// What a load request puts in the place of what the repository holds; nothing by default.
#[derive(Debug, Clone, Default)]
pub struct LoadOverrides {
    /// The model's configuration as JSON, instead of `config.pbtxt`.
    pub config: Option<String>,
    /// The model's files, by their path in the model's directory (`1/model.onnx`), instead of all that lie there. They
    /// need a `config` beside them.
    pub files: Vec<(String, Bytes)>,
    /// What they hold of the node's memory, until the load is over. `None` where nobody counts.
    pub charge: Option<Arc<Charge>>,
}

/// A configuration of ten thousand instance groups is smaller. What it becomes takes some fifty times as much.
const MAX_CONFIG_BYTES: u64 = 2 << 20;

/// How many bytes of overrides are compared at most: a tenth of a millisecond.
const COMPARED_BYTES: usize = 1 << 20;

impl LoadOverrides {
    /// Whether a load with these is one with the others. Large ones never are: who compares them holds a lock.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let files = self
            .files
            .iter()
            .map(|(path, data)| path.len() + data.len());
        let config = self.config.as_ref().map_or(0, String::len);
        let bytes = files.fold(config, usize::saturating_add);
        bytes <= COMPARED_BYTES && self.config == other.config && self.files == other.files
    }
}

/// Which configuration file of a model is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConfigChoice<'a> {
    /// The `configs/<name>.pbtxt` that is taken instead of `config.pbtxt`, if the model has it.
    pub(crate) name: Option<&'a str>,
    /// Whether a model without a configuration gets an empty one, which is completed from its file.
    pub(crate) may_be_missing: bool,
}

/// A model's directory, and what the configuration is read from.
#[derive(Debug)]
pub(crate) struct ModelSource {
    directory: PathBuf,
    files: ModelFiles,
    /// The configuration that a client gave.
    config: Option<inference::ModelConfig>,
    /// Kept for its end: the directory is removed with it.
    temporary: Option<TempDir>,
}

impl ModelSource {
    /// The model as the repository holds it.
    ///
    /// # Errors
    /// A text that says which directory cannot be read.
    pub(crate) fn repository(directory: PathBuf) -> Result<Self, String> {
        let files = read(&directory)?;
        Ok(Self {
            directory,
            files,
            config: None,
            temporary: None,
        })
    }

    /// The model as the repository holds it, under a configuration in JSON.
    pub(crate) fn with_config(directory: PathBuf, json: &str) -> Result<Self, String> {
        let mut source = Self::repository(directory)?;
        source.config = Some(parse(json)?);
        Ok(source)
    }

    /// The model that a client sent.
    pub(crate) fn sent(json: Option<&str>, files: &[(String, Bytes)]) -> Result<Self, String> {
        let json = json.ok_or("`file:` parameters need the parameter `config` beside them")?;
        let config = parse(json)?;
        for (path, _) in files {
            check_path(path)?;
        }
        let error = |e: io::Error| format!("cannot keep the model's files: {e}");
        let temporary = tempfile::Builder::new()
            .prefix("skep-model-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(error)?;
        for (path, data) in files {
            let place = temporary.path().join(path);
            let parent = place.parent().unwrap_or(temporary.path());
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&place, data))
                .map_err(|e| format!("cannot write `file:{path}`: {e}"))?;
        }
        Ok(Self {
            directory: temporary.path().to_owned(),
            files: read(temporary.path())?,
            config: Some(config),
            temporary: Some(temporary),
        })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the files in the directories of these versions come to: not what lies deeper, nor what cannot be looked at.
    pub(crate) fn versions_bytes(&self, versions: &BTreeSet<ModelVersion>) -> u64 {
        let of_version = |version: &ModelVersion| {
            let directory = fs::read_dir(self.directory.join(version.to_string()));
            let files = directory.into_iter().flatten().filter_map(Result::ok);
            let found = files.filter_map(|file| fs::metadata(file.path()).ok());
            found
                .filter(|found| found.is_file())
                .map(|found| found.len())
                .sum::<u64>()
        };
        versions.iter().map(of_version).sum()
    }

    /// Takes the configuration of the last load if it was a client's and nothing in the repository changed since.
    pub(crate) fn keep_config_of(&mut self, last: &Self) {
        if last.directory == self.directory && last.files == self.files {
            self.config.clone_from(&last.config);
        }
    }

    /// Whether a version loaded from `other` has the same files here, those that all versions share included.
    pub(crate) fn same_version(&self, other: &Self, version: ModelVersion) -> bool {
        self.directory == other.directory
            && self.files.same_others(&other.files)
            && self.files.same_version(&other.files, version)
    }

    /// The configuration as written; an empty one when there is none and completion is allowed.
    pub(crate) fn read_config(
        &self,
        name: &ModelName,
        choice: ConfigChoice<'_>,
    ) -> Result<inference::ModelConfig, RuntimeError> {
        if let Some(config) = &self.config {
            return Ok(config.clone());
        }
        let path = self.config_path(choice);
        match skep_host::read_file(&path, MAX_CONFIG_BYTES) {
            Ok(text) => skep_config::parse_pbtxt(&text, &path.display().to_string())
                .map_err(RuntimeError::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound && choice.may_be_missing => {
                Ok(inference::ModelConfig::default())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(RuntimeError::invalid(format!(
                    "model '{name}' has no configuration: expected `{}`, since completing configurations is switched off",
                    path.display()
                )))
            }
            Err(error) => Err(RuntimeError::invalid(format!(
                "cannot read `{}`: {error}",
                path.display()
            ))),
        }
    }

    /// The file of the configuration: the one chosen by name if the model has it.
    pub(crate) fn config_path(&self, choice: ConfigChoice<'_>) -> PathBuf {
        choice
            .name
            .map(|name| {
                self.directory
                    .join(CUSTOM_CONFIG_DIRECTORY)
                    .join(format!("{name}.pbtxt"))
            })
            .filter(|path| path.is_file())
            .unwrap_or_else(|| self.directory.join(CONFIG_FILE))
    }

    /// Whether the configuration is a client's, which is in no file.
    pub(crate) const fn has_clients_config(&self) -> bool {
        self.config.is_some()
    }

    /// Whether the files are a client's.
    pub(crate) const fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// Removes a client's files although something may still be loaded from them: the process is about to end.
    pub(crate) fn remove_temporary(&self) {
        if let Some(temporary) = &self.temporary {
            drop(fs::remove_dir_all(temporary.path()));
        }
    }
}

fn read(directory: &Path) -> Result<ModelFiles, String> {
    ModelFiles::read(directory).map_err(|e| format!("cannot read `{}`: {e}", directory.display()))
}

fn parse(json: &str) -> Result<inference::ModelConfig, String> {
    if json.len() as u64 > MAX_CONFIG_BYTES {
        return Err(format!(
            "{CONFIG_PARAMETER} has {} bytes, expected at most {MAX_CONFIG_BYTES}",
            json.len()
        ));
    }
    skep_config::parse_json(json, CONFIG_PARAMETER).map_err(|error| error.to_string())
}

/// A path of a client must lead to a file inside of the model's directory, by plain names.
fn check_path(path: &str) -> Result<(), String> {
    let plain = |name: &str| {
        !matches!(name, "" | "." | "..") && !name.contains(|c: char| c == '\\' || c.is_control())
    };
    if path.split('/').all(plain) {
        return Ok(());
    }
    Err(format!(
        "parameter `file:{}` names no file inside of the model's directory, expected a path such as `file:1/model.onnx`",
        path.escape_debug()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(paths: &[&str]) -> Result<ModelSource, String> {
        let files: Vec<(String, Bytes)> = paths
            .iter()
            .map(|path| ((*path).to_owned(), Bytes::from_static(b"data")))
            .collect();
        ModelSource::sent(Some("{}"), &files)
    }

    #[test]
    fn sent_files_lie_in_a_directory_that_goes_with_them() {
        let source = sent(&["1/model.onnx", "labels.txt", "1/deep/er"]).expect("taken");
        let directory = source.directory().to_owned();
        for path in ["1/model.onnx", "labels.txt", "1/deep/er"] {
            assert_eq!(fs::read(directory.join(path)).expect("file"), b"data");
        }
        drop(source);
        assert!(!directory.exists());
    }

    #[test]
    fn paths_that_are_no_plain_files_inside_are_refused() {
        for path in [
            "",
            "/",
            "/etc/x",
            "..",
            "../x",
            "1/../../x",
            "1/..",
            "1/",
            "1//x",
            "./x",
            "1/./x",
            "1\\x",
            "a\0b",
            "a\nb",
        ] {
            let error = sent(&["1/model.onnx", path]).map(|_| ()).expect_err(path);
            assert!(
                error.contains("names no file inside of the model's directory"),
                "{path}: {error}"
            );
        }
        // A file where another needs a directory.
        let error = sent(&["1", "1/model.onnx"]).map(|_| ()).expect_err("clash");
        assert!(
            error.contains("cannot write `file:1/model.onnx`"),
            "{error}"
        );
    }

    #[test]
    fn files_need_a_configuration() {
        let files = [("1/model.onnx".to_owned(), Bytes::new())];
        for (config, expected) in [
            (None, "need the parameter `config`"),
            (Some("{"), "parameter `config`: "),
        ] {
            let error = ModelSource::sent(config, &files)
                .map(|_| ())
                .expect_err("refused");
            assert!(error.contains(expected), "{error}");
        }
    }
}
