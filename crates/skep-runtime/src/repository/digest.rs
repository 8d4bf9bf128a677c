//! The digest of a model's files.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Which files of a model's directory a digest is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigestedFiles {
    /// All of them.
    All,
    /// All but its configurations: `config.pbtxt`, and what lies in `configs`.
    WithoutConfiguration,
}

/// BLAKE3 over the files of a model's directory and their paths, in hexadecimal. Reads all of them.
///
/// # Errors
/// If a file cannot be read.
pub fn files_digest(directory: &Path, which: DigestedFiles) -> io::Result<String> {
    let mut files = Vec::new();
    collect(directory, &mut files)?;
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for path in files {
        let name = path.strip_prefix(directory).unwrap_or(&path);
        let is_configuration = name == Path::new("config.pbtxt") || name.starts_with("configs");
        if is_configuration && which == DigestedFiles::WithoutConfiguration {
            continue;
        }
        hasher.update(name.as_os_str().as_encoded_bytes());
        hasher.update(&[0]);
        hasher.update_reader(&mut File::open(&path)?)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        match fs::metadata(&path)?.is_dir() {
            true => collect(&path, files)?,
            false => files.push(path),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_names_and_contents() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(path, text).expect("written");
        };
        let digests = || {
            [DigestedFiles::All, DigestedFiles::WithoutConfiguration]
                .map(|which| files_digest(root.path(), which).expect("readable"))
        };
        write("1/model.onnx", "weights");
        write("config.pbtxt", "name: 'm'");
        let [all, own] = digests();
        assert_ne!(all, own);
        write("config.pbtxt", "name: 'n'");
        write("configs/other.pbtxt", "");
        let [changed, same] = digests();
        assert!(changed != all && same == own);
        write("1/config.pbtxt", "no configuration");
        assert_ne!(digests()[1], own);
        assert!(files_digest(&root.path().join("none"), DigestedFiles::All).is_err());
    }
}
