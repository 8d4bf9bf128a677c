//! A model by itself, served as a repository of one: an ONNX file, or a directory that holds `model.onnx`.
//!
//! ```text
//! skep serve birds.onnx            a directory of links in the system's temporary directory:
//! skep serve /mnt/models             birds/1/model.onnx -> birds.onnx, and what its file names as its data
//!   model.onnx, config.pbtxt         birds/config.pbtxt -> the one beside it
//! ```

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use skep_onnx::OnnxModel;
use skep_runtime::is_model;
use skep_types::{ModelName, ModelVersion};
use tempfile::TempDir;

/// The file of a model by itself in a directory.
const MODEL_FILE: &str = "model.onnx";

/// Files beside a model that belong to its configuration: linked beside its version.
const CONFIG_FILE: &str = "config.pbtxt";

/// How a bare model is called.
#[derive(Debug, Args)]
pub(super) struct BareModelArgs {
    /// The name of the one model, if it is an .onnx file or a directory with model.onnx in place of a repository (Skep's own)
    #[arg(long, value_name = "NAME", value_parser = |text: &str| ModelName::new(text))]
    model_name: Option<ModelName>,
}

/// Repositories, and the directories of links that some of them are, as long as it lives.
#[derive(Debug)]
pub(super) struct GivenRepositories {
    pub(super) roots: Vec<PathBuf>,
    pub(super) links: Vec<TempDir>,
}

impl BareModelArgs {
    /// The repositories that were given; each bare model is one of its own.
    ///
    /// # Errors
    /// A bare model whose name is no model's name, a directory of links that cannot be made, or a `--model-name` without
    /// exactly one bare model.
    pub(super) fn repositories(&self, given: Vec<PathBuf>) -> anyhow::Result<GivenRepositories> {
        let mut repositories = GivenRepositories {
            roots: Vec::new(),
            links: Vec::new(),
        };
        for path in given {
            let Some(file) = bare_file(&path, self.model_name.is_some()) else {
                repositories.roots.push(path);
                continue;
            };
            let name = match &self.model_name {
                Some(name) => name.clone(),
                None => name_of(&path, &file)?,
            };
            let links = linked(&file, &name)
                .with_context(|| format!("cannot serve the model `{}`", path.display()))?;
            tracing::info!("serving `{}` as model `{name}`", file.display());
            repositories.roots.push(links.path().to_owned());
            repositories.links.push(links);
        }
        if self.model_name.is_some() && repositories.links.len() != 1 {
            bail!(
                "--model-name names a model by itself: expected one .onnx file, or one directory with {MODEL_FILE} in it, got {}",
                repositories.links.len()
            );
        }
        Ok(repositories)
    }
}

/// The model's file, if `path` is a bare model. A version's directory is one only if the model is `named`: otherwise it is
/// more likely a mistake for its repository.
fn bare_file(path: &Path, named: bool) -> Option<PathBuf> {
    if path.is_file() {
        let extension = path.extension().and_then(OsStr::to_str)?;
        return ["onnx", "ort"]
            .contains(&extension)
            .then(|| path.to_owned());
    }
    let file = path.join(MODEL_FILE);
    if !file.is_file() || has_models(path) {
        return None;
    }
    let is_version = file_name(path).is_some_and(|name| ModelVersion::parse(&name).is_ok());
    (named || !is_version).then_some(file)
}

/// Whether a directory is a repository as well.
fn has_models(path: &Path) -> bool {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut directories = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir());
    directories.any(|directory| is_model(&directory))
}

fn file_name(path: &Path) -> Option<String> {
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    Some(absolute.file_name()?.to_str()?.to_owned())
}

/// The name of a bare model: the directory's, or the file's; `model.onnx` is called as its directory.
fn name_of(path: &Path, file: &Path) -> anyhow::Result<ModelName> {
    let stem = file.file_stem().and_then(OsStr::to_str).map(str::to_owned);
    let stem = stem.filter(|stem| stem != "model");
    let above = match path.is_dir() {
        true => file_name(path),
        false => path
            .parent()
            .and_then(|parent| match parent.as_os_str().is_empty() {
                true => file_name(Path::new(".")),
                false => file_name(parent),
            }),
    };
    let name = stem.or(above).unwrap_or_else(|| "model".to_owned());
    ModelName::new(&name).with_context(|| {
        format!(
            "`{}` cannot be served under the name `{name}`: choose one with --model-name",
            path.display()
        )
    })
}

/// A repository of links to the model's file, its data, and the files beside it that configure it.
fn linked(file: &Path, name: &ModelName) -> anyhow::Result<TempDir> {
    let file = file.canonicalize()?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let links = tempfile::Builder::new().prefix("skep-bare-").tempdir()?;
    let model = links.path().join(name.as_str());
    let version = model.join("1");
    fs::create_dir_all(&version)?;
    symlink(&file, version.join(MODEL_FILE))?;
    for data in external_files(&file)? {
        let place = version.join(&data);
        fs::create_dir_all(place.parent().unwrap_or(&version))?;
        symlink(folder.join(&data), place)?;
    }
    let config = folder.join(CONFIG_FILE);
    // Only a directory that is the model's own has its configuration.
    if file.file_name() == Some(OsStr::new(MODEL_FILE)) && config.is_file() {
        symlink(&config, model.join(CONFIG_FILE))?;
        for labels in label_files(folder)? {
            let name = labels.file_name().unwrap_or_default();
            symlink(&labels, model.join(name))?;
        }
    }
    Ok(links)
}

/// The files with data of a model, as it names them. One that cannot be read says why when it loads.
fn external_files(file: &Path) -> io::Result<Vec<PathBuf>> {
    let bytes = fs::read(file)?;
    let files = OnnxModel::decode(bytes.into()).map(|model| model.external_files());
    let files = files.unwrap_or_default().into_iter().map(PathBuf::from);
    // A path out of the folder is refused when the model loads.
    let within = |path: &PathBuf| {
        path.components()
            .all(|part| matches!(part, std::path::Component::Normal(_)))
    };
    Ok(files.filter(within).collect())
}

/// Text files beside a configuration, which may name them as labels.
fn label_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let is_text = |path: &PathBuf| path.extension() == Some(OsStr::new("txt")) && path.is_file();
    Ok(entries.filter(is_text).collect())
}
