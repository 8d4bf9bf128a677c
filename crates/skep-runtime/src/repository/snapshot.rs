//! What lies in a model's directory at one moment, and what changed between two moments.
//!
//! Files are told apart by size, time of change and inode, so that a file replaced by renaming another over it counts as
//! changed whatever its time. Reading is here; what follows from a difference is decided by pure functions.
//!
//! What cannot be read is not gone: a look takes over what the one before knew of it, so that a network file system that
//! fails for a moment unloads nothing.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use skep_types::{ModelName, ModelVersion};

use crate::repository::{
    CONFIG_FILE, CUSTOM_CONFIG_DIRECTORY, ModelId, Repository, is_absent, is_directory,
    model_names, subdirectories,
};

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
    /// Looks at everything in `directory`. What cannot be read in it is as if it were not there: the load will say so.
    pub(crate) fn read(directory: &Path) -> io::Result<Self> {
        Self::read_again(directory, &Self::default(), &mut UnreadModels::new())
    }

    /// Looks at everything in `directory` again. What cannot be read in it is as `known`, and is put into `unread`.
    fn read_again(directory: &Path, known: &Self, unread: &mut UnreadModels) -> io::Result<Self> {
        let mut files = Self::default();
        let nothing = Tree::new();
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
            Walk {
                root: directory,
                tree,
                known,
                unread,
            }
            .enter(&entry.path(), 0);
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

/// One way down a tree.
struct Walk<'a> {
    root: &'a Path,
    tree: &'a mut Tree,
    /// What the look before found.
    known: &'a Tree,
    unread: &'a mut UnreadModels,
}

impl Walk<'_> {
    /// Notes `path` and what is in it.
    fn enter(&mut self, path: &Path, depth: usize) {
        let Ok(relative) = path.strip_prefix(self.root) else {
            return;
        };
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return self.keep(path, relative, &error),
        };
        if !metadata.is_dir() {
            let stamp = Stamp::File {
                bytes: metadata.len(),
                changed_s: metadata.mtime(),
                changed_ns: metadata.mtime_nsec(),
                inode: metadata.ino(),
            };
            self.tree.insert(relative.to_owned(), stamp);
            return;
        }
        self.tree.insert(relative.to_owned(), Stamp::Directory);
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

    /// Takes over what was known of a path that cannot be read.
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

/// What could not be read, and why.
pub(crate) type UnreadModels = BTreeMap<PathBuf, String>;

/// Everything that lies in the repositories at one moment.
#[derive(Debug, Default)]
pub(crate) struct RepositoryScan {
    pub(crate) files: RepositoryFiles,
    /// What could not be read; of it `files` holds what the look before knew.
    pub(crate) unread: UnreadModels,
    /// The file system that a repository was on when it last had models.
    devices: BTreeMap<PathBuf, u64>,
}

/// What lies in one repository.
#[derive(Default)]
struct RootLook {
    models: Vec<(ModelName, PathBuf, ModelFiles)>,
    unread: UnreadModels,
    device: u64,
}

impl RepositoryScan {
    /// Looks at the repositories again.
    pub(crate) fn again(&self, repository: &Repository) -> Self {
        let mut next = Self::default();
        for root in repository.roots() {
            match self.read_root(repository, root) {
                Ok(found) => {
                    if !found.models.is_empty() {
                        next.devices.insert(root.clone(), found.device);
                    }
                    next.unread.extend(found.unread);
                    for (name, path, files) in found.models {
                        let places = next.files.entry(repository.id(root, name)).or_default();
                        places.push((path, files));
                    }
                }
                Err(why) => {
                    next.unread.insert(root.clone(), why);
                    next.keep_all_of(root, self);
                }
            }
        }
        next
    }

    /// The models of one repository; or why they cannot be told.
    fn read_root(&self, repository: &Repository, root: &Path) -> Result<RootLook, String> {
        let identity = || {
            let found = fs::metadata(root).map_err(|error| error.to_string())?;
            Ok::<_, String>((found.dev(), found.ino()))
        };
        let began = identity()?;
        let directories = subdirectories(root).map_err(|error| error.to_string())?;
        let names = model_names(root, &directories);
        let before = self.devices.get(root);
        if names.is_empty() && before.is_some_and(|device| *device != began.0) {
            let why = "it is empty, and on another file system than before: its mount may be gone";
            return Err(why.to_owned());
        }
        let mut look = RootLook {
            device: began.0,
            ..RootLook::default()
        };
        for name in names {
            let path = root.join(name.as_str());
            let known = self.known(&repository.id(root, name.clone()), &path);
            let files = match ModelFiles::read_again(&path, &known, &mut look.unread) {
                Ok(files) => files,
                // It went between the look at the root and this one.
                Err(error) if is_absent(&error) => continue,
                Err(error) => {
                    look.unread.insert(path.clone(), error.to_string());
                    known
                }
            };
            look.models.push((name, path, files));
        }
        // What was found missing may have gone with the root.
        if identity()? == began {
            Ok(look)
        } else {
            Err("it was replaced while it was read".to_owned())
        }
    }

    /// What the look found in a model's directory.
    fn known(&self, id: &ModelId, path: &Path) -> ModelFiles {
        let mut places = self.files.get(id).into_iter().flatten();
        let known = places.find(|(place, _)| place == path);
        known.map(|(_, files)| files.clone()).unwrap_or_default()
    }

    /// Takes over what was known of a repository.
    fn keep_all_of(&mut self, root: &Path, before: &Self) {
        if let Some(device) = before.devices.get(root) {
            self.devices.insert(root.to_owned(), *device);
        }
        let unread = before
            .unread
            .iter()
            .filter(|(path, _)| path.starts_with(root));
        for (path, why) in unread {
            self.unread
                .entry(path.clone())
                .or_insert_with(|| why.clone());
        }
        for (id, places) in &before.files {
            let of_root = places
                .iter()
                .filter(|(path, _)| path.parent() == Some(root));
            for place in of_root {
                self.files
                    .entry(id.clone())
                    .or_default()
                    .push(place.clone());
            }
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

    #[test]
    fn a_root_given_twice_that_goes_stays_known_once() {
        let top = TempDir::new().expect("directory");
        let root = top.path().join("a");
        fs::create_dir_all(root.join("m/1")).expect("version");
        let roots = vec![root.clone(), root.join("."), root.clone()];
        let repository = Repository::open(roots).expect("opens");
        let first = RepositoryScan::default().again(&repository);
        fs::rename(&root, top.path().join("b")).expect("renamed");
        let mut last = first.again(&repository);
        last = last.again(&repository);
        assert_eq!(changes(&first.files, &last.files), Changes::default());
        let places: Vec<usize> = last.files.values().map(Vec::len).collect();
        assert_eq!(places, [1]);
        assert!(last.unread.contains_key(&root));
    }
}
