//! Everything in the repositories at one moment, and what changed between two moments.
//!
//! An entry that cannot be read is not gone: a scan takes over what the previous one found there, so that a network
//! file system that fails for a moment unloads nothing.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use skep_types::ModelName;

use crate::repository::{
    entries::{is_absent, model_names, subdirectories},
    model_files::{ModelFiles, UnreadPaths},
    roots::{ModelId, Repository},
};

/// The models of a repository, each with the directories that claim its name and their files.
pub(crate) type RepositoryFiles = BTreeMap<ModelId, Vec<(PathBuf, ModelFiles)>>;

/// Everything that lies in the repositories at one moment.
#[derive(Debug, Default)]
pub(crate) struct RepositoryScan {
    pub(crate) files: RepositoryFiles,
    /// What could not be read. `files` holds what the previous scan found there.
    pub(crate) unread: UnreadPaths,
    /// The file system of each repository when it last had models.
    devices: BTreeMap<PathBuf, u64>,
}

/// Everything in one repository.
#[derive(Default)]
struct RootScan {
    models: Vec<(ModelName, PathBuf, ModelFiles)>,
    unread: UnreadPaths,
    device: u64,
}

impl RepositoryScan {
    /// Scans the repositories again.
    pub(crate) fn rescan(&self, repository: &Repository) -> Self {
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

    /// Scans one repository.
    ///
    /// # Errors
    /// Why its models cannot be told.
    fn read_root(&self, repository: &Repository, root: &Path) -> Result<RootScan, String> {
        let began = identity(root)?;
        let directories = subdirectories(root).map_err(|error| error.to_string())?;
        let names = model_names(root, &directories);
        let before = self.devices.get(root);
        if names.is_empty() && before.is_some_and(|device| *device != began.0) {
            let why = "it is empty, and on another file system than before: its mount may be gone";
            return Err(why.to_owned());
        }
        let mut scan = RootScan {
            device: began.0,
            ..RootScan::default()
        };
        for name in names {
            let path = root.join(name.as_str());
            let known = self.found_in(&repository.id(root, name.clone()), &path);
            let files = match ModelFiles::read_again(&path, &known, &mut scan.unread) {
                Ok(files) => files,
                // It was removed since the root was read.
                Err(error) if is_absent(&error) => continue,
                Err(error) => {
                    scan.unread.insert(path.clone(), error.to_string());
                    known
                }
            };
            scan.models.push((name, path, files));
        }
        // If the root was replaced, missing entries may be missing only in the old one.
        if identity(root)? == began {
            Ok(scan)
        } else {
            Err("it was replaced while it was read".to_owned())
        }
    }

    /// What this scan found in a model's directory.
    fn found_in(&self, id: &ModelId, path: &Path) -> ModelFiles {
        let mut places = self.files.get(id).into_iter().flatten();
        let known = places.find(|(place, _)| place == path);
        known.map(|(_, files)| files.clone()).unwrap_or_default()
    }

    /// Takes over everything that the previous scan found in a repository.
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

/// What tells a directory from a replacement under the same path.
fn identity(directory: &Path) -> Result<(u64, u64), String> {
    let found = fs::metadata(directory).map_err(|error| error.to_string())?;
    Ok((found.dev(), found.ino()))
}

/// What a poll has to load and unload.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RepositoryChanges {
    /// New models, and those whose files changed.
    pub(crate) load: Vec<ModelId>,
    /// Models whose directory is gone.
    pub(crate) unload: Vec<ModelId>,
}

/// What changed between two scans.
pub(crate) fn changes(before: &RepositoryFiles, after: &RepositoryFiles) -> RepositoryChanges {
    let load = after
        .iter()
        .filter(|(id, files)| before.get(id) != Some(files));
    let unload = before.keys().filter(|id| !after.contains_key(id));
    RepositoryChanges {
        load: load.map(|(id, _)| id.clone()).collect(),
        unload: unload.cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::repository::model_files::FileStamp;

    fn id(name: &str) -> ModelId {
        ModelId {
            namespace: None,
            name: ModelName::new(name).expect("name"),
        }
    }

    fn file(bytes: u64, inode: u64) -> FileStamp {
        FileStamp::File {
            bytes,
            changed_s: 0,
            changed_ns: 0,
            inode,
        }
    }

    fn model(
        config: u64,
        versions: &[(u64, FileStamp)],
        others: &[(&str, FileStamp)],
    ) -> ModelFiles {
        let versions = versions
            .iter()
            .map(|(version, stamp)| (format!("{version}/model.onnx"), *stamp));
        let others = others
            .iter()
            .map(|(path, stamp)| ((*path).to_owned(), *stamp));
        let config = [("config.pbtxt".to_owned(), file(config, 1))];
        let files = config.into_iter().chain(versions).chain(others);
        ModelFiles::of(
            files
                .map(|(path, stamp)| (Path::new(&path).into(), stamp))
                .collect(),
        )
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

    fn load(names: &[&str]) -> RepositoryChanges {
        RepositoryChanges {
            load: names.iter().map(|name| id(name)).collect(),
            unload: vec![],
        }
    }

    #[test]
    fn any_change_loads_its_model_and_no_other() {
        let labels = ("labels.txt", file(3, 9));
        let base = model(1, &[(1, file(8, 2))], &[labels]);
        let before = repository(&[("a", &base), ("b", &base)]);
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
            RepositoryChanges {
                load: vec![],
                unload: vec![id("a")]
            }
        );
    }

    #[test]
    fn a_root_given_twice_stays_known_once_when_it_is_removed() {
        let top = TempDir::new().expect("directory");
        let root = top.path().join("a");
        fs::create_dir_all(root.join("m/1")).expect("version");
        let roots = vec![root.clone(), root.join("."), root.clone()];
        let repository = Repository::open(roots).expect("opens");
        let first = RepositoryScan::default().rescan(&repository);
        fs::rename(&root, top.path().join("b")).expect("renamed");
        let mut last = first.rescan(&repository);
        last = last.rescan(&repository);
        assert_eq!(
            changes(&first.files, &last.files),
            RepositoryChanges::default()
        );
        let places: Vec<usize> = last.files.values().map(Vec::len).collect();
        assert_eq!(places, [1]);
        assert!(last.unread.contains_key(&root));
    }
}
