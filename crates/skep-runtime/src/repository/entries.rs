//! The entries of a repository: which directories are models, and which are versions.

use std::{
    collections::BTreeSet,
    fs::{self, DirEntry},
    io,
    path::Path,
};

use skep_types::{ModelName, ModelVersion};

/// The file that configures a model.
pub(crate) const CONFIG_FILE: &str = "config.pbtxt";

/// The directory of configurations that are selected by name.
pub(crate) const CUSTOM_CONFIG_DIRECTORY: &str = "configs";

/// The version directories of a model: those named by a positive integer without a leading zero. Others are ignored.
pub(crate) fn versions(model: &Path) -> io::Result<BTreeSet<ModelVersion>> {
    Ok(subdirectories(model)?
        .iter()
        .filter_map(|name| ModelVersion::parse(name).ok())
        .collect())
}

/// Whether a directory looks like a model's, even if the model cannot be served: it has a version or a configuration. A
/// repository has neither.
#[must_use]
pub fn is_model(directory: &Path) -> bool {
    directory.join(CONFIG_FILE).exists() || versions(directory).is_ok_and(|found| !found.is_empty())
}

/// The models among the directories of a repository. Hidden directories are not models.
pub(crate) fn model_names(root: &Path, directories: &[String]) -> Vec<ModelName> {
    let mut names = Vec::new();
    for name in directories.iter().filter(|name| !name.starts_with('.')) {
        match ModelName::new(name) {
            Ok(name) => names.push(name),
            Err(error) => {
                tracing::warn!("ignored a directory of `{}`: {error}", root.display());
            }
        }
    }
    names
}

/// Whether an entry is a directory, or a link to one. An entry that cannot be examined counts as a directory: reading
/// it reports the error.
pub(crate) fn is_directory(entry: &DirEntry) -> bool {
    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
        return true;
    }
    fs::metadata(entry.path()).map_or_else(|error| !is_absent(&error), |found| found.is_dir())
}

/// Whether an error means that the entry does not exist, as opposed to one that cannot be read. A dangling link does
/// not exist.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    const TOO_MANY_LINKS: i32 = 40;
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    ) || error.raw_os_error() == Some(TOO_MANY_LINKS)
}

/// The names of the directories in `path`, links to directories included.
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
        assert!(!is_model(directory.path()), "a file is not a version");
    }
}
