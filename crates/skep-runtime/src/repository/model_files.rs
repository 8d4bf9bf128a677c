//! The files in a model's directory at one moment.
//!
//! Files are told apart by size, time of change and inode, so that a file counts as changed when another one is renamed
//! over it, whatever its time.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use skep_types::ModelVersion;

use crate::repository::entries::{CONFIG_FILE, CUSTOM_CONFIG_DIRECTORY, is_absent, is_directory};

/// How deep directories are searched. No model nests its files this deep, and a link that leads back to its own parent
/// ends here.
const MAX_DEPTH: usize = 16;

/// What could not be read, and why.
pub(crate) type UnreadPaths = BTreeMap<PathBuf, String>;

/// What tells a file from its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileStamp {
    /// Only its existence: its entries have their own stamps.
    Directory,
    File {
        bytes: u64,
        changed_s: i64,
        changed_ns: i64,
        inode: u64,
    },
}

/// Files and directories by their path in the model's directory.
pub(super) type FileTree = BTreeMap<PathBuf, FileStamp>;

/// The files of one model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ModelFiles {
    /// `config.pbtxt` and everything in `configs`.
    pub(super) configuration: FileTree,
    pub(super) versions: BTreeMap<ModelVersion, FileTree>,
    /// Labels, warm-up data and everything else.
    pub(super) others: FileTree,
}

impl ModelFiles {
    /// Scans `directory`. Entries that cannot be read are left out; the load will report them.
    pub(crate) fn read(directory: &Path) -> io::Result<Self> {
        Self::read_again(directory, &Self::default(), &mut UnreadPaths::new())
    }

    /// Scans `directory` again. Entries that cannot be read are taken over from `known` and listed in `unread`.
    pub(super) fn read_again(
        directory: &Path,
        known: &Self,
        unread: &mut UnreadPaths,
    ) -> io::Result<Self> {
        let mut files = Self::default();
        let nothing = FileTree::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_directory = is_directory(&entry);
            let version = name
                .to_str()
                .filter(|_| is_directory)
                .and_then(|name| ModelVersion::parse(name).ok());
            let (tree, known) = match version {
                Some(version) => {
                    let known = known.versions.get(&version);
                    let tree = files.versions.entry(version).or_default();
                    (tree, known.unwrap_or(&nothing))
                }
                None if name == CONFIG_FILE || name == CUSTOM_CONFIG_DIRECTORY => {
                    (&mut files.configuration, &known.configuration)
                }
                None => (&mut files.others, &known.others),
            };
            TreeWalk {
                root: directory,
                tree,
                known,
                unread,
            }
            .enter(&entry.path(), 0);
        }
        Ok(files)
    }

    /// Whether the files that all versions share, except the configuration, are the same.
    pub(crate) fn same_others(&self, other: &Self) -> bool {
        self.others == other.others
    }

    /// Whether both have the version with the same files.
    pub(crate) fn same_version(&self, other: &Self, version: ModelVersion) -> bool {
        let tree = self.versions.get(&version);
        tree.is_some() && tree == other.versions.get(&version)
    }
}

/// A scan of one tree of files.
struct TreeWalk<'a> {
    root: &'a Path,
    tree: &'a mut FileTree,
    /// The result of the previous scan.
    known: &'a FileTree,
    unread: &'a mut UnreadPaths,
}

impl TreeWalk<'_> {
    /// Adds `path` and everything in it.
    fn enter(&mut self, path: &Path, depth: usize) {
        let Ok(relative) = path.strip_prefix(self.root) else {
            return;
        };
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return self.keep(path, relative, &error),
        };
        if !metadata.is_dir() {
            let stamp = FileStamp::File {
                bytes: metadata.len(),
                changed_s: metadata.mtime(),
                changed_ns: metadata.mtime_nsec(),
                inode: metadata.ino(),
            };
            self.tree.insert(relative.to_owned(), stamp);
            return;
        }
        self.tree.insert(relative.to_owned(), FileStamp::Directory);
        if depth == MAX_DEPTH {
            return;
        }
        let entries = match fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(error) => return self.keep(path, relative, &error),
        };
        for entry in entries {
            self.enter(&entry.path(), depth + 1);
        }
    }

    /// Takes over what the previous scan found at a path that cannot be read now.
    fn keep(&mut self, path: &Path, relative: &Path, error: &io::Error) {
        if is_absent(error) {
            return;
        }
        self.unread.insert(path.to_owned(), error.to_string());
        let known = self
            .known
            .iter()
            .filter(|(known, _)| known.starts_with(relative));
        self.tree
            .extend(known.map(|(path, stamp)| (path.clone(), *stamp)));
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn version(number: u64) -> ModelVersion {
        ModelVersion::new(number).expect("version")
    }

    /// A model whose files are of these sizes: its configuration, its versions' files, its labels.
    fn model(config: u64, versions: &[(u64, u64)], labels: Option<u64>) -> ModelFiles {
        let versions = versions.iter();
        ModelFiles {
            configuration: tree("config.pbtxt", config),
            versions: versions
                .map(|(number, bytes)| (version(*number), tree("model.onnx", *bytes)))
                .collect(),
            others: labels.map_or_else(FileTree::new, |bytes| tree("labels.txt", bytes)),
        }
    }

    fn tree(path: &str, bytes: u64) -> FileTree {
        let stamp = FileStamp::File {
            bytes,
            changed_s: 0,
            changed_ns: 0,
            inode: 1,
        };
        FileTree::from([(path.into(), stamp)])
    }

    #[test]
    fn a_version_is_compared_by_its_own_files() {
        let before = model(1, &[(1, 8), (2, 8)], None);
        let after = model(2, &[(1, 8), (2, 9), (3, 1)], None);
        assert!(before.same_others(&after));
        assert!(before.same_version(&after, version(1)));
        for changed in [2, 3, 4] {
            assert!(!before.same_version(&after, version(changed)), "{changed}");
        }
        assert!(!before.same_others(&model(1, &[], Some(1))));
    }

    #[test]
    fn files_are_found_down_the_tree_and_a_loop_of_links_ends() {
        let root = TempDir::new().expect("directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            fs::write(path, text).expect("file");
        };
        for path in [
            "config.pbtxt",
            "configs/x.pbtxt",
            "1/model.onnx/deep/weights",
            "warmup/a",
        ] {
            write(path, "text");
        }
        fs::create_dir(root.path().join("2")).expect("an empty version");
        std::os::unix::fs::symlink(root.path(), root.path().join("loop")).expect("link");
        let read = || ModelFiles::read(root.path()).expect("read");
        let before = read();
        assert_eq!(before.versions.len(), 2);
        assert_eq!(before, read());
        write("1/model.onnx/deep/weights", "other text");
        let after = read();
        assert!(!before.same_version(&after, ModelVersion::ONE));
        write("configs/x.pbtxt", "longer");
        assert_ne!(read().configuration, after.configuration);
    }
}
