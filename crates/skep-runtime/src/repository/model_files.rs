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

use crate::repository::entries::{CONFIG_FILE, CUSTOM_CONFIG_DIRECTORY, is_absent};

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

/// The files of one model: files and directories by their path in the model's directory, ascending.
///
/// One list, as compact as can be: a node that polls has one for each model that it knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ModelFiles(Box<[(Box<Path>, FileStamp)]>);

/// What a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileGroup {
    /// `config.pbtxt` and everything in `configs`.
    Configuration,
    Version(ModelVersion),
    /// Labels, warm-up data and everything else.
    Others,
}

impl FileGroup {
    fn of(path: &Path, stamp: FileStamp) -> Self {
        let mut parts = path.iter();
        let first = parts.next().unwrap_or_default();
        let is_directory = stamp == FileStamp::Directory || parts.next().is_some();
        let name = first.to_str().filter(|_| is_directory);
        match name.and_then(|name| ModelVersion::parse(name).ok()) {
            Some(version) => Self::Version(version),
            None if first == CONFIG_FILE || first == CUSTOM_CONFIG_DIRECTORY => Self::Configuration,
            None => Self::Others,
        }
    }
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
        let mut found = Vec::new();
        for entry in fs::read_dir(directory)? {
            TreeWalk {
                root: directory,
                found: &mut found,
                known,
                unread,
            }
            .enter(&entry?.path(), 0);
        }
        Ok(Self::of(found))
    }

    pub(super) fn of(mut files: Vec<(Box<Path>, FileStamp)>) -> Self {
        files.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Self(files.into())
    }

    /// Whether the files that all versions share, except the configuration, are the same.
    pub(crate) fn same_others(&self, other: &Self) -> bool {
        self.in_group(FileGroup::Others)
            .eq(other.in_group(FileGroup::Others))
    }

    /// Whether both have the version with the same files.
    pub(crate) fn same_version(&self, other: &Self, version: ModelVersion) -> bool {
        let group = FileGroup::Version(version);
        self.in_group(group).next().is_some() && self.in_group(group).eq(other.in_group(group))
    }

    fn in_group(&self, group: FileGroup) -> impl Iterator<Item = &(Box<Path>, FileStamp)> {
        let files = self.0.iter();
        files.filter(move |(path, stamp)| FileGroup::of(path, *stamp) == group)
    }
}

/// A scan of one tree of files.
struct TreeWalk<'a> {
    root: &'a Path,
    found: &'a mut Vec<(Box<Path>, FileStamp)>,
    /// The result of the previous scan.
    known: &'a ModelFiles,
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
            self.found.push((relative.into(), stamp));
            return;
        }
        self.found.push((relative.into(), FileStamp::Directory));
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
        let known = self.known.0.iter();
        let known = known.filter(|(known, _)| known.starts_with(relative));
        self.found.extend(known.cloned());
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
        let versions = versions
            .iter()
            .map(|(number, bytes)| (format!("{number}/model.onnx"), *bytes));
        let labels = labels.map(|bytes| ("labels.txt".to_owned(), bytes));
        let files = [("config.pbtxt".to_owned(), config)]
            .into_iter()
            .chain(versions)
            .chain(labels);
        let stamped = files.map(|(path, bytes)| {
            let stamp = FileStamp::File {
                bytes,
                changed_s: 0,
                changed_ns: 0,
                inode: 1,
            };
            (Path::new(&path).into(), stamp)
        });
        ModelFiles::of(stamped.collect())
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
        for (number, expected) in [(1, true), (2, true), (3, false)] {
            assert_eq!(before.same_version(&before, version(number)), expected);
        }
        assert_eq!(before, read());
        write("1/model.onnx/deep/weights", "other text");
        let after = read();
        assert!(!before.same_version(&after, ModelVersion::ONE));
        write("configs/x.pbtxt", "longer");
        let configured = read();
        assert_ne!(configured, after);
        assert!(configured.same_version(&after, version(1)));
        write("3", "a file is no version");
        assert!(!read().same_version(&read(), version(3)));
        assert!(!read().same_others(&configured));
    }
}
