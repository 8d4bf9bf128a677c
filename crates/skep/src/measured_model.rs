//! Where a model to measure lies: in its repository, or, for a file, in one that is made of links.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, bail};
use skep_backend::ModelFile;
use skep_onnx::OnnxModel;
use skep_types::ModelName;

/// The version of a file that is in no repository.
const VERSION: &str = "1";

/// What such a file is called there.
const LINK: &str = "model.onnx";

/// Where the model lies.
pub(crate) struct MeasuredModel {
    pub(crate) repository: PathBuf,
    pub(crate) name: ModelName,
    /// The made one; removed with this.
    files: Option<tempfile::TempDir>,
}

impl MeasuredModel {
    pub(crate) fn of(path: &Path) -> anyhow::Result<Self> {
        let unreadable = || format!("cannot read `{}`", path.display());
        let mut absolute = path.canonicalize().with_context(unreadable)?;
        if !absolute.is_dir() {
            return Self::file(&absolute);
        }
        // A link to a directory keeps its name, which is the model's.
        if let Some(name) = path.file_name() {
            let parent = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            absolute = parent.canonicalize().with_context(unreadable)?.join(name);
        }
        let name = absolute.file_name().unwrap_or_default().to_string_lossy();
        let repository = absolute.parent().unwrap_or(&absolute).to_owned();
        if !skep_runtime::is_model(&absolute) {
            bail!(
                "there is no model in `{}`: expected a model's directory, which holds versions such as `1`, or an ONNX file",
                path.display()
            );
        }
        Ok(Self {
            repository,
            name: ModelName::new(&name)?,
            files: None,
        })
    }

    /// Whether it is a file's.
    pub(crate) const fn is_file(&self) -> bool {
        self.files.is_some()
    }

    /// What an error says, with the file's own path in place of the link's.
    pub(crate) fn named(&self, text: &str, path: &Path) -> String {
        let link = self.repository.join(self.name.as_str());
        let link = link.join(VERSION).join(LINK).display().to_string();
        text.replace(&link, &path.display().to_string())
    }

    /// Links to the file and what lies beside it of its data, as the only version of a model.
    fn file(path: &Path) -> anyhow::Result<Self> {
        if !path.is_file() {
            bail!(
                "`{}` is neither a model's directory nor a regular file",
                path.display()
            );
        }
        let files = tempfile::Builder::new().prefix("skep-model-").tempdir()?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = ModelName::new(&stem).or_else(|_| ModelName::new("model"))?;
        let version = files.path().join(name.as_str()).join(VERSION);
        fs::create_dir_all(&version)?;
        symlink(path, version.join(LINK))?;
        let mapped = ModelFile::open(path)?;
        // If the file is not a model, the load says so.
        let beside = OnnxModel::decode(mapped.bytes().clone()).map(|onnx| onnx.external_files());
        let directory = path.parent().unwrap_or(path);
        for name in beside.unwrap_or_default() {
            let plain = Path::new(&name)
                .components()
                .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            if !plain {
                bail!("the model has data in `{name}`, expected a file beside it");
            }
            let link = version.join(&name);
            if let Some(parent) = link.parent() {
                fs::create_dir_all(parent)?;
            }
            symlink(directory.join(&name), link)?;
        }
        Ok(Self {
            repository: files.path().to_owned(),
            name,
            files: Some(files),
        })
    }
}
