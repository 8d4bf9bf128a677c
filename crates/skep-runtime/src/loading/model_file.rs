//! Finds a version's model file.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::RuntimeError;

/// The name of a version's model file if the configuration names none and the file does not have the first `usual`
/// name.
pub(crate) fn lone_default(
    version_directory: &Path,
    usual: &[&'static str],
) -> Option<&'static str> {
    let (first, others) = usual.split_first()?;
    if version_directory.join(first).exists() {
        return None;
    }
    let mut others = others.iter().copied();
    others.find(|name| version_directory.join(name).exists())
}

/// Finds a version's model file. If `filename` is a directory, the file is in it under a `usual` name. Versions of a
/// model may use different usual names.
///
/// # Errors
/// A text that says what the directory contains instead, with a hint.
pub(crate) fn find(
    version_directory: &Path,
    filename: &str,
    usual: &[&'static str],
) -> Result<PathBuf, RuntimeError> {
    let mut path = version_directory.join(filename);
    let mut is_usual = usual.contains(&filename);
    if let Some(first) = usual.first()
        && path.is_dir()
    {
        path = path.join(first);
        is_usual = true;
    }
    if is_usual && !path.exists() {
        let other = usual.iter();
        let mut other = other.map(|name| path.with_file_name(name));
        path = other.find(|other| other.exists()).unwrap_or(path);
    }
    // The link exists, but its target does not.
    if !path.exists() && path.is_symlink() {
        let target = fs::read_link(&path).unwrap_or_default();
        return Err(RuntimeError::invalid(format!(
            "no model file: `{}` is a link that leads nowhere: it names `{}`",
            path.display(),
            target.display()
        )));
    }
    if !path.exists() {
        let there: BTreeSet<String> = fs::read_dir(version_directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        let hint = rename_hint(&there);
        let there: Vec<String> = there.iter().map(|name| format!("`{name}`")).collect();
        let found = if there.is_empty() {
            "the directory is empty".to_owned()
        } else {
            format!("found {}", there.join(", "))
        };
        return Err(RuntimeError::invalid(format!(
            "no model file: expected `{}`, {found}",
            path.display()
        ))
        .with_hint(hint));
    }
    Ok(path)
}

/// A hint for the files that were found in place of the model's. An ONNX file is the model, whatever other files exist.
fn rename_hint(files: &BTreeSet<String>) -> Option<String> {
    match files.iter().find(|file| file.ends_with(".onnx")) {
        Some(file) => Some(format!(
            "rename `{file}`, or write `default_model_filename: \"{file}\"`"
        )),
        None => files
            .iter()
            .find_map(|file| skep_config::foreign_file_hint(file)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_names_an_onnx_file_before_any_other() {
        for (files, expected) in [
            (&["config.json", "net.onnx"][..], "rename `net.onnx`"),
            (&["model.pt", "net.onnx"], "rename `net.onnx`"),
            (
                &["export.py", "labels.json", "model.pt"],
                "`model.pt` looks like",
            ),
            (&["labels.json", "vocab.txt"], ""),
        ] {
            let files = files.iter().map(|file| (*file).to_owned()).collect();
            let found = rename_hint(&files).unwrap_or_default();
            assert!(found.contains(expected), "{found}");
            assert_eq!(found.is_empty(), expected.is_empty(), "{found}");
        }
    }
}
