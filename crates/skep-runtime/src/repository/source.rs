//! Where a model is loaded from: a directory of the repository, perhaps under another configuration, or files that a
//! client sent.
//!
//! A client's files are kept in their own directory under the system's temporary directory, as long as anything is
//! loaded from them. No path that a client gives may lead outside of that directory.
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
    error::RuntimeError,
    repository::{
        entries::{CONFIG_FILE, CUSTOM_CONFIG_DIRECTORY},
        model_files::ModelFiles,
    },
};

/// How errors call the configuration of a load request.
const CONFIG_PARAMETER: &str = "parameter `config`";

/// What a load request uses instead of the repository's files; nothing by default.
#[derive(Debug, Clone, Default)]
pub struct LoadOverrides {
    /// The model's configuration as JSON, instead of `config.pbtxt`.
    pub config: Option<String>,
    /// The model's files, by their path in the model's directory (`1/model.onnx`), instead of all files there. They
    /// require a `config`.
    pub files: Vec<(String, Bytes)>,
    /// Their share of the node's memory, held until the load is over. `None` if memory is not counted.
    pub charge: Option<Arc<Charge>>,
}

/// A configuration with ten thousand instance groups is smaller. Parsed, it takes some fifty times as much.
const MAX_CONFIG_BYTES: u64 = 2 << 20;

/// Larger overrides are not compared: a comparison takes a tenth of a millisecond at most.
const COMPARED_BYTES: usize = 1 << 20;

impl LoadOverrides {
    /// Whether a load with these is the same as one with `other`. Large overrides count as different, since the
    /// comparison runs under a lock.
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
    /// Selects `configs/<name>.pbtxt` instead of `config.pbtxt`, if the model has it.
    pub(crate) name: Option<&'a str>,
    /// Whether a model without a configuration gets an empty one, to be completed from its file.
    pub(crate) may_be_missing: bool,
}

impl ConfigChoice<'_> {
    /// The configuration's file in a model's directory: the one selected by name, if the model has it.
    fn path(self, directory: &Path) -> PathBuf {
        self.name
            .map(|name| {
                directory
                    .join(CUSTOM_CONFIG_DIRECTORY)
                    .join(format!("{name}.pbtxt"))
            })
            .filter(|path| path.is_file())
            .unwrap_or_else(|| directory.join(CONFIG_FILE))
    }

    /// The configuration in a model's directory, if it can be read.
    pub(crate) fn peek(self, directory: &Path) -> Option<inference::ModelConfig> {
        let path = self.path(directory);
        let text = skep_host::read_file(&path, MAX_CONFIG_BYTES).ok()?;
        skep_config::parse_pbtxt(&text, "").ok()
    }
}

/// A model's directory, and where its configuration comes from.
#[derive(Debug)]
pub(crate) struct ModelSource {
    directory: PathBuf,
    files: ModelFiles,
    /// The configuration that a client gave.
    config: Option<inference::ModelConfig>,
    /// Removes the directory when it is dropped.
    temporary: Option<TempDir>,
}

impl ModelSource {
    /// The model in the repository.
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

    /// The model in the repository, with a configuration in JSON.
    pub(crate) fn with_config(directory: PathBuf, json: &str) -> Result<Self, String> {
        let mut source = Self::repository(directory)?;
        source.config = Some(parse_sent(json)?);
        Ok(source)
    }

    /// The model that a client sent.
    pub(crate) fn sent(json: Option<&str>, files: &[(String, Bytes)]) -> Result<Self, String> {
        let json = json.ok_or("`file:` parameters need the parameter `config` beside them")?;
        let config = parse_sent(json)?;
        for (path, _) in files {
            check_path(path)?;
        }
        let temporary = tempfile::Builder::new()
            .prefix("skep-model-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(|error| format!("cannot store the model's files: {error}"))?;
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

    /// The size of the files in the directories of these versions. Nested directories and unreadable files do not
    /// count.
    pub(crate) fn versions_bytes(&self, versions: &BTreeSet<ModelVersion>) -> u64 {
        let directories = versions
            .iter()
            .map(|version| self.directory.join(version.to_string()));
        directories.map(|directory| files_bytes(&directory)).sum()
    }

    /// Takes over the configuration of the last load if a client gave it and the repository has not changed since.
    pub(crate) fn keep_config_of(&mut self, last: &Self) {
        if last.directory == self.directory && last.files == self.files {
            self.config.clone_from(&last.config);
        }
    }

    /// Whether a version loaded from `other` has the same files here, including those that all versions share.
    pub(crate) fn same_version(&self, other: &Self, version: ModelVersion) -> bool {
        self.directory == other.directory
            && self.files.same_others(&other.files)
            && self.files.same_version(&other.files, version)
    }

    /// The configuration as written; an empty one if the file is missing and may be.
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
                    "model '{name}' has no configuration: expected `{}`, since the completion of configurations is disabled",
                    path.display()
                )))
            }
            Err(error) => Err(RuntimeError::invalid(format!(
                "cannot read `{}`: {error}",
                path.display()
            ))),
        }
    }

    /// The configuration's file: the one selected by name, if the model has it.
    pub(crate) fn config_path(&self, choice: ConfigChoice<'_>) -> PathBuf {
        choice.path(&self.directory)
    }

    /// Whether a client gave the configuration, which then has no file.
    pub(crate) const fn has_clients_config(&self) -> bool {
        self.config.is_some()
    }

    /// Whether a client sent the files.
    pub(crate) const fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// Removes a client's files although a model may still be loaded from them: the process is about to end.
    pub(crate) fn remove_temporary(&self) {
        if let Some(temporary) = &self.temporary {
            drop(fs::remove_dir_all(temporary.path()));
        }
    }
}

/// The size of the files in a directory; what cannot be read does not count.
pub(crate) fn files_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| fs::metadata(entry.path()).ok());
    found
        .filter(|found| found.is_file())
        .map(|found| found.len())
        .sum()
}

fn read(directory: &Path) -> Result<ModelFiles, String> {
    ModelFiles::read(directory).map_err(|e| format!("cannot read `{}`: {e}", directory.display()))
}

pub(crate) fn parse_sent(json: &str) -> Result<inference::ModelConfig, String> {
    if json.len() as u64 > MAX_CONFIG_BYTES {
        return Err(format!(
            "{CONFIG_PARAMETER} has {} bytes, expected at most {MAX_CONFIG_BYTES}",
            json.len()
        ));
    }
    skep_config::parse_json(json, CONFIG_PARAMETER).map_err(|error| error.to_string())
}

/// A client's path must lead to a file inside the model's directory, by plain names.
fn check_path(path: &str) -> Result<(), String> {
    if path.split('/').all(is_plain) {
        return Ok(());
    }
    Err(format!(
        "parameter `file:{}` does not name a file inside the model's directory, expected a path such as `file:1/model.onnx`",
        path.escape_debug()
    ))
}

/// Whether a part of a path is a plain name.
fn is_plain(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(|c: char| c == '\\' || c.is_control())
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
    fn sent_files_are_removed_with_their_source() {
        let source = sent(&["1/model.onnx", "labels.txt", "1/deep/er"]).expect("taken");
        let directory = source.directory().to_owned();
        for path in ["1/model.onnx", "labels.txt", "1/deep/er"] {
            assert_eq!(fs::read(directory.join(path)).expect("file"), b"data");
        }
        drop(source);
        assert!(!directory.exists());
    }

    #[test]
    fn paths_that_lead_outside_or_are_not_plain_are_refused() {
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
                error.contains("does not name a file inside the model's directory"),
                "{path}: {error}"
            );
        }
        // A file where another file needs a directory.
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
