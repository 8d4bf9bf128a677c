//! Directories that were given as a repository but are not one: empty, one level too deep, or one level too high.

use std::{
    fs,
    path::{Path, PathBuf},
};

use skep_types::ModelVersion;

use crate::repository::{
    entries::{CONFIG_FILE, is_model, subdirectories},
    roots::Repository,
};

/// Something odd about a repository as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutFinding {
    /// What was found. Further lines say how to correct it.
    pub text: String,
    /// Whether the directory is not a repository. Otherwise it may be correct: it has no models yet, or a stray file.
    pub is_wrong: bool,
}

impl Repository {
    /// What looks odd about the repositories as a whole, and how to correct it: no models, a model file in the wrong
    /// place, a level too deep or too high. Models are served nevertheless.
    #[must_use]
    pub fn layout(&self) -> Vec<LayoutFinding> {
        self.roots().iter().filter_map(|root| look(root)).collect()
    }
}

fn look(root: &Path) -> Option<LayoutFinding> {
    let mut directories: Vec<String> = subdirectories(root).ok()?;
    directories.retain(|name| !name.starts_with('.'));
    directories.sort();
    let has_models = directories.iter().any(|name| is_model(&root.join(name)));
    let shown = root.display();
    let (text, is_wrong) = if let Some(file) = onnx_file(root) {
        match version_of(root).filter(|_| !has_models) {
            Some(above) => (a_version(root, &file, &above), true),
            None => (beside_models(root, &file), !has_models),
        }
    } else if root.join(CONFIG_FILE).is_file() || has_version(root) {
        (a_model(root), true)
    } else if directories.is_empty() {
        let text = format!(
            "repository `{shown}` has no models\n  expected: {shown}/NAME/1/model.onnx, a directory for each model and one for each \
             of its versions"
        );
        (text, false)
    } else if has_models {
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

/// If `root` is named like a version: the directory that holds the version's model.
fn version_of(root: &Path) -> Option<PathBuf> {
    let absolute = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    ModelVersion::parse(&file_name(&absolute)?).ok()?;
    Some(absolute.parent()?.parent()?.to_owned())
}

/// The text for a version's directory.
fn a_version(root: &Path, file: &str, above: &Path) -> String {
    format!(
        "`{}` is a version of a model, since it has `{file}`, not a repository\n  try: {}",
        root.display(),
        above.display()
    )
}

/// The text for a model's file among the directories of models.
fn beside_models(root: &Path, file: &str) -> String {
    let shown = root.display();
    let name = file.strip_suffix(".onnx").unwrap_or(file);
    format!(
        "`{shown}/{file}` is not served: a model's file belongs in a version's directory, inside the model's directory\n  try: mkdir -p \
         {shown}/{name}/1 && mv {shown}/{file} {shown}/{name}/1/model.onnx"
    )
}

/// The text for a model's directory.
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
        "`{shown}` is a model's directory, since it has {why}, not a repository\n  try: {}",
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

/// Whether a directory has a version: a directory named by a number that has a model's file, or a directory so named.
fn has_version(directory: &Path) -> bool {
    let names = subdirectories(directory).unwrap_or_default();
    names.iter().any(|name| {
        let version = directory.join(name);
        ModelVersion::parse(name).is_ok()
            && (onnx_file(&version).is_some() || version.join("model.onnx").is_dir())
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

    /// The finding for the directory `root` below a directory with these files.
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
    fn directories_that_are_not_repositories_are_found() {
        for (files, root, expected) in [
            (&["r/m/1/model.onnx"][..], "r", None),
            (&["r/m/config.pbtxt"], "r", None),
            (
                &["r/m/1/model.onnx", "r/net.onnx"],
                "r",
                Some("`TOP/r/net.onnx` is not served"),
            ),
            // A repository may be named by a number.
            (
                &["2024/a/1/model.onnx", "2024/stray.onnx"],
                "2024",
                Some("`TOP/2024/stray.onnx` is not served"),
            ),
            // A model may be named by a number, and a repository may have other directories.
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
                    "`TOP/r/m` is a model's directory, since it has versions with model files, not a repository\n  try: TOP/r",
                ),
            ),
            (
                &["r/m/config.pbtxt"],
                "r/m",
                Some("since it has `config.pbtxt`, not a repository\n  try: TOP/r"),
            ),
            (
                &["r/m/1/model.onnx"],
                "r/m/1",
                Some(
                    "`TOP/r/m/1` is a version of a model, since it has `model.onnx`, not a repository\n  try: TOP/r",
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
