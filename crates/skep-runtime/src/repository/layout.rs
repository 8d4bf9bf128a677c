//! Directories that were passed as a repository but are not one: empty, one level too deep, one too high.

use std::{
    fs,
    path::{Path, PathBuf},
};

use skep_types::ModelVersion;

use crate::{
    Repository,
    repository::{CONFIG_FILE, is_model, subdirectories},
};

/// What looks odd about a repository as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutFinding {
    /// What was found. Further lines say how to mend it.
    pub text: String,
    /// Whether the directory is something else than a repository. Otherwise it may be right: it has no models yet, or a
    /// file too many.
    pub is_wrong: bool,
}

impl Repository {
    /// What looks odd about the repositories as a whole, with the way out: no models, a model file where none is looked
    /// for, a level too deep or too high. Nothing of it keeps models from being served.
    #[must_use]
    pub fn layout(&self) -> Vec<LayoutFinding> {
        self.roots().iter().filter_map(|root| look(root)).collect()
    }
}

fn look(root: &Path) -> Option<LayoutFinding> {
    let mut directories: Vec<String> = subdirectories(root).ok()?;
    directories.retain(|name| !name.starts_with('.'));
    directories.sort();
    let shown = root.display();
    let has_models = || directories.iter().any(|name| is_model(&root.join(name)));
    let (text, is_wrong) = if let Some(file) = onnx_file(root) {
        match version_of(root).filter(|_| !has_models()) {
            Some(above) => (a_version(root, &file, &above), true),
            None => (beside_models(root, &file), !has_models()),
        }
    } else if root.join(CONFIG_FILE).is_file() || has_version(root) {
        (a_model(root), true)
    } else if directories.is_empty() {
        let text = format!(
            "repository `{shown}` has no models\n  expected: {shown}/NAME/1/model.onnx, a directory for each model and one for each \
             of its versions"
        );
        (text, false)
    } else if has_models() {
        return None;
    } else {
        let repository = directories
            .iter()
            .map(|name| root.join(name))
            .find(|path| has_model(path))?;
        let text = format!(
            "repository `{shown}` has no models, but its directory `{0}` has: it looks like the repository\n  try: {0}",
            repository.display()
        );
        (text, true)
    };
    Some(LayoutFinding { text, is_wrong })
}

/// The directory above the model of which `root` is a version by its name.
fn version_of(root: &Path) -> Option<PathBuf> {
    let absolute = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    ModelVersion::parse(&file_name(&absolute)?).ok()?;
    Some(absolute.parent()?.parent()?.to_owned())
}

/// A version's directory was given.
fn a_version(root: &Path, file: &str, above: &Path) -> String {
    format!(
        "`{}` is a version of a model, since it has `{file}`, and no repository\n  try: {}",
        root.display(),
        above.display()
    )
}

/// A model's file lies where directories of models are expected.
fn beside_models(root: &Path, file: &str) -> String {
    let shown = root.display();
    let name = file.strip_suffix(".onnx").unwrap_or(file);
    format!(
        "`{shown}/{file}` is not served: a model's file lies in a version's directory of a model's directory\n  try: mkdir -p \
         {shown}/{name}/1 && mv {shown}/{file} {shown}/{name}/1/model.onnx"
    )
}

/// A model's directory was given.
fn a_model(root: &Path) -> String {
    let shown = root.display();
    let absolute = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    let above: PathBuf = absolute.parent().unwrap_or(&absolute).to_owned();
    let why = if root.join(CONFIG_FILE).is_file() {
        format!("`{CONFIG_FILE}`")
    } else {
        "versions with model files".to_owned()
    };
    format!(
        "`{shown}` is a model's directory, since it has {why}, and no repository\n  try: {}",
        above.display()
    )
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

/// The first ONNX file in a directory.
fn onnx_file(directory: &Path) -> Option<String> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    let files = entries.filter(|entry| entry.path().is_file());
    let names = files.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.ends_with(".onnx")).min()
}

/// Whether a directory has a version: one that is named by a number and has a model's file, or a directory of that name.
fn has_version(directory: &Path) -> bool {
    let names = subdirectories(directory).unwrap_or_default();
    names.iter().any(|name| {
        let version = directory.join(name);
        let has_file = || onnx_file(&version).is_some() || version.join("model.onnx").is_dir();
        ModelVersion::parse(name).is_ok() && has_file()
    })
}

fn has_model(directory: &Path) -> bool {
    let names = subdirectories(directory).unwrap_or_default();
    names.iter().any(|name| is_model(&directory.join(name)))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// What is found in a directory with these files, from the directory `root` in it on.
    fn found(files: &[&str], root: &str) -> Option<(String, bool)> {
        let top = TempDir::new().expect("directory");
        let path = top.path().canonicalize().expect("path");
        fs::create_dir_all(path.join(root)).expect("root");
        for file in files {
            let file = path.join(file);
            fs::create_dir_all(file.parent().expect("parent")).expect("directory");
            fs::write(file, "").expect("file");
        }
        let repository = Repository::open(vec![path.join(root)]).expect("opens");
        let mut findings = repository.layout();
        assert!(findings.len() < 2);
        let finding = findings.pop()?;
        let text = finding.text.replace(&path.display().to_string(), "TOP");
        Some((text, finding.is_wrong))
    }

    #[test]
    fn repositories_are_told_from_what_is_none() {
        for (files, root, expected) in [
            (&["r/m/1/model.onnx"][..], "r", None),
            (&["r/m/config.pbtxt"], "r", None),
            (
                &["r/m/1/model.onnx", "r/net.onnx"],
                "r",
                Some("`TOP/r/net.onnx` is not served"),
            ),
            // A repository may be named by a number too.
            (
                &["2024/a/1/model.onnx", "2024/stray.onnx"],
                "2024",
                Some("`TOP/2024/stray.onnx` is not served"),
            ),
            // Models may have numbers for names, and lie beside directories that are not models.
            (&["r/1/1/model.onnx", "r/docs/a.txt"], "r", None),
            (&["r/docs/a.txt"], "r", None),
            (
                &[],
                "r",
                Some("repository `TOP/r` has no models\n  expected: TOP/r/NAME/1/model.onnx"),
            ),
            (
                &["r/.git/x", "r/README.md"],
                "r",
                Some("repository `TOP/r` has no models"),
            ),
            (
                &["r/net.onnx"],
                "r",
                Some("try: mkdir -p TOP/r/net/1 && mv TOP/r/net.onnx TOP/r/net/1/model.onnx"),
            ),
            (
                &["r/m/1/model.onnx"],
                "r/m",
                Some(
                    "`TOP/r/m` is a model's directory, since it has versions with model files, and no repository\n  try: TOP/r",
                ),
            ),
            (
                &["r/m/config.pbtxt"],
                "r/m",
                Some("since it has `config.pbtxt`, and no repository\n  try: TOP/r"),
            ),
            (
                &["r/m/1/model.onnx"],
                "r/m/1",
                Some(
                    "`TOP/r/m/1` is a version of a model, since it has `model.onnx`, and no repository\n  try: TOP/r",
                ),
            ),
            (
                &["r/m/1/model.onnx"],
                "",
                Some("its directory `TOP/r` has: it looks like the repository\n  try: TOP/r"),
            ),
        ] {
            let found = found(files, root);
            assert_eq!(
                found.is_some(),
                expected.is_some(),
                "{files:?} {root}: {found:?}"
            );
            let (text, is_wrong) = found.unwrap_or_default();
            assert!(
                text.contains(expected.unwrap_or_default()),
                "{files:?} {root}: {text}"
            );
            assert_eq!(is_wrong, text.contains("try:") && files.len() < 2, "{text}");
        }
    }
}
