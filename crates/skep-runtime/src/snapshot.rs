//! What lies in a model's directory at one moment, and what changed between two moments.
//!
//! Files are told apart by size, time of change and inode, so that a file replaced by renaming another over it counts as
//! changed whatever its time. Reading is here; what follows from a difference is decided by pure functions.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use skep_types::ModelVersion;

use crate::repository::{CONFIG_FILE, CUSTOM_CONFIG_DIRECTORY, ModelId};

/// Directories within directories that are looked into: no model nests its files this deep, and a link that leads back
/// to its own parent ends here.
const MAX_DEPTH: usize = 16;

/// What tells a file from its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stamp {
    /// Only that it is there: what it holds has stamps of its own.
    Directory,
    File {
        bytes: u64,
        changed_s: i64,
        changed_ns: i64,
        inode: u64,
    },
}

/// Files and directories by their path in the model's directory.
type Tree = BTreeMap<PathBuf, Stamp>;

/// The files of one model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ModelFiles {
    /// `config.pbtxt` and what is in `configs`.
    configuration: Tree,
    versions: BTreeMap<ModelVersion, Tree>,
    /// Labels, warm-up data and whatever else lies beside them.
    others: Tree,
}

impl ModelFiles {
    /// Looks at everything in `directory`.
    pub(crate) fn read(directory: &Path) -> io::Result<Self> {
        let mut files = Self::default();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_directory = entry.path().is_dir();
            let version = name
                .to_str()
                .filter(|_| is_directory)
                .and_then(|name| ModelVersion::parse(name).ok());
            let tree = match version {
                Some(version) => files.versions.entry(version).or_default(),
                None if name == CONFIG_FILE || name == CUSTOM_CONFIG_DIRECTORY => {
                    &mut files.configuration
                }
                None => &mut files.others,
            };
            walk(directory, &entry.path(), tree, 0);
        }
        Ok(files)
    }

    /// Whether what all versions share, the configuration apart, is the same.
    pub(crate) fn same_others(&self, other: &Self) -> bool {
        self.others == other.others
    }

    /// Whether both have the version with the same files.
    pub(crate) fn same_version(&self, other: &Self, version: ModelVersion) -> bool {
        let tree = self.versions.get(&version);
        tree.is_some() && tree == other.versions.get(&version)
    }
}

/// Notes `path` and what is in it. What cannot be read (any more) is as if it were not there: the load will say so.
fn walk(root: &Path, path: &Path, tree: &mut Tree, depth: usize) {
    let (Ok(metadata), Ok(relative)) = (fs::metadata(path), path.strip_prefix(root)) else {
        return;
    };
    if !metadata.is_dir() {
        let stamp = Stamp::File {
            bytes: metadata.len(),
            changed_s: metadata.mtime(),
            changed_ns: metadata.mtime_nsec(),
            inode: metadata.ino(),
        };
        tree.insert(relative.to_owned(), stamp);
        return;
    }
    tree.insert(relative.to_owned(), Stamp::Directory);
    if depth < MAX_DEPTH {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            walk(root, &entry.path(), tree, depth + 1);
        }
    }
}

/// The models of a repository, each with the directories that claim its name and what is in them.
pub(crate) type RepositoryFiles = BTreeMap<ModelId, Vec<(PathBuf, ModelFiles)>>;

/// What a poll has to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// New models, and those of which anything changed.
    pub(crate) load: Vec<ModelId>,
    /// Models whose directory is gone.
    pub(crate) unload: Vec<ModelId>,
}

/// What happened between two looks at a repository.
pub(crate) fn changes(before: &RepositoryFiles, after: &RepositoryFiles) -> Changes {
    let load = after
        .iter()
        .filter(|(id, files)| before.get(id) != Some(files));
    let unload = before.keys().filter(|id| !after.contains_key(id));
    Changes {
        load: load.map(|(id, _)| id.clone()).collect(),
        unload: unload.cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use skep_types::ModelName;
    use tempfile::TempDir;

    use super::*;

    fn id(name: &str) -> ModelId {
        ModelId {
            namespace: None,
            name: ModelName::new(name).expect("name"),
        }
    }

    fn file(bytes: u64, inode: u64) -> Stamp {
        Stamp::File {
            bytes,
            changed_s: 0,
            changed_ns: 0,
            inode,
        }
    }

    fn tree(files: &[(&str, Stamp)]) -> Tree {
        files
            .iter()
            .map(|(path, stamp)| (PathBuf::from(path), *stamp))
            .collect()
    }

    fn model(config: u64, versions: &[(u64, Stamp)], others: &[(&str, Stamp)]) -> ModelFiles {
        ModelFiles {
            configuration: tree(&[("config.pbtxt", file(config, 1))]),
            versions: versions
                .iter()
                .map(|(version, stamp)| {
                    let version = ModelVersion::new(*version).expect("version");
                    (version, tree(&[("model.onnx", *stamp)]))
                })
                .collect(),
            others: tree(others),
        }
    }

    fn repository(models: &[(&str, &ModelFiles)]) -> RepositoryFiles {
        let mut files = RepositoryFiles::new();
        for (name, model) in models {
            let places = files.entry(id(name)).or_default();
            let place = PathBuf::from(format!("/{}/{name}", places.len()));
            places.push((place, (*model).clone()));
        }
        files
    }

    #[test]
    fn whatever_changes_loads_its_model_and_no_other() {
        let labels = ("labels.txt", file(3, 9));
        let base = model(1, &[(1, file(8, 2))], &[labels]);
        let before = repository(&[("a", &base), ("b", &base)]);
        let load = |names: &[&str]| Changes {
            load: names.iter().map(|name| id(name)).collect(),
            unload: vec![],
        };
        assert_eq!(changes(&before, &before), load(&[]));
        for (what, changed) in [
            ("configuration", model(2, &[(1, file(8, 2))], &[labels])),
            ("size", model(1, &[(1, file(9, 2))], &[labels])),
            (
                "another file renamed over it",
                model(1, &[(1, file(8, 3))], &[labels]),
            ),
            (
                "a new version",
                model(1, &[(1, file(8, 2)), (2, file(8, 4))], &[labels]),
            ),
            ("a version less", model(1, &[], &[labels])),
            ("labels gone", model(1, &[(1, file(8, 2))], &[])),
        ] {
            let after = repository(&[("a", &base), ("b", &changed)]);
            assert_eq!(changes(&before, &after), load(&["b"]), "{what}");
        }
        let second_claim = repository(&[("a", &base), ("b", &base), ("b", &base)]);
        assert_eq!(changes(&before, &second_claim), load(&["b"]));
        assert_eq!(changes(&RepositoryFiles::new(), &before), load(&["a", "b"]));
        assert_eq!(
            changes(&before, &repository(&[("b", &base)])),
            Changes {
                load: vec![],
                unload: vec![id("a")]
            }
        );
    }

    #[test]
    fn a_version_is_compared_by_its_own_files() {
        let version = |number| ModelVersion::new(number).expect("version");
        let before = model(1, &[(1, file(8, 2)), (2, file(8, 3))], &[]);
        let after = model(2, &[(1, file(8, 2)), (2, file(9, 3)), (3, file(1, 4))], &[]);
        assert!(before.same_others(&after));
        assert!(before.same_version(&after, version(1)));
        for changed in [2, 3, 4] {
            assert!(!before.same_version(&after, version(changed)), "{changed}");
        }
        assert!(!before.same_others(&model(1, &[], &[("labels.txt", file(1, 1))])));
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
