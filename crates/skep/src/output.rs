//! Files that a command writes beside what it prints.

use std::{fs, path::Path};

use anyhow::{Context, bail};

/// Says before a minute's work what could not be written after it.
pub(crate) fn check(flag: &str, path: Option<&Path>) -> anyhow::Result<()> {
    let directory = path.and_then(Path::parent);
    if let Some(directory) = directory.filter(|d| !d.as_os_str().is_empty() && !d.is_dir()) {
        bail!("{flag}: there is no directory `{}`", directory.display());
    }
    Ok(())
}

/// Writes a file, if one is asked for.
pub(crate) fn write(
    flag: &str,
    path: Option<&Path>,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    match path {
        Some(path) => fs::write(path, text())
            .with_context(|| format!("{flag}: cannot write `{}`", path.display())),
        None => Ok(()),
    }
}
