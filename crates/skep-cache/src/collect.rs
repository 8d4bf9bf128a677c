//! Holding the directory within its budget: the forms that were used longest ago go first.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{Cache, CacheError, manifest::Manifest};

/// What a cache holds, and what was removed from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Bytes of all graphs and tensors that stay.
    pub kept_bytes: u64,
    /// Forms that stay.
    pub kept_forms: usize,
    /// Bytes of what was removed.
    pub removed_bytes: u64,
    /// Forms that were removed.
    pub removed_forms: usize,
}

/// A form in the directory.
struct Entry {
    path: PathBuf,
    used: SystemTime,
    own_bytes: u64,
    tensors: Vec<(String, u64)>,
}

impl Cache {
    /// Removes the forms that were used longest ago until the rest fits the budget, and tensors that no form has. `None`
    /// while somebody makes a form: the next call will do.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn collect(&self) -> Result<Option<Collected>, CacheError> {
        self.collect_to(self.budget_bytes())
    }

    /// [`Cache::collect`] with another budget.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn collect_to(&self, budget_bytes: u64) -> Result<Option<Collected>, CacheError> {
        let mut is_taken = false;
        let lock = |file: &File| match file.try_lock() {
            Ok(()) => Ok(()),
            Err(fs::TryLockError::WouldBlock) => {
                is_taken = true;
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(fs::TryLockError::Error(error)) => Err(error),
        };
        let locked = self.lock_file("lock", lock);
        if is_taken {
            return Ok(None);
        }
        let _lock = locked?;
        let root = self.root();
        let run = || -> io::Result<Collected> {
            remove_abandoned(&root.join("tmp"))?;
            let entries = entries(&root.join("models"))?;
            let collected = evict(entries, budget_bytes);
            sweep(&root.join("tensors"), collected)
        };
        run()
            .map(Some)
            .map_err(|error| CacheError::io("clean up", root, error))
    }
}

/// The forms of a directory. One whose manifest cannot be read counts as used at the beginning of time, and has nothing.
fn entries(models: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(models)? {
        let path = entry?.path();
        let manifest = path.join("manifest");
        let known = fs::read_to_string(&manifest)
            .ok()
            .and_then(|text| Manifest::decode(&text).ok());
        let used = fs::metadata(&manifest).and_then(|metadata| metadata.modified());
        let size = |name| fs::metadata(path.join(name)).map_or(0, |metadata| metadata.len());
        entries.push(Entry {
            used: used
                .ok()
                .filter(|_| known.is_some())
                .unwrap_or(SystemTime::UNIX_EPOCH),
            own_bytes: size("graph") + size("manifest"),
            tensors: known
                .unwrap_or_default()
                .parts
                .iter()
                .map(|part| (part.tensor.digest.to_string(), part.tensor.length))
                .collect(),
            path,
        });
    }
    // Of equal times one order, whatever the directory's.
    entries.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
    Ok(entries)
}

/// Removes forms, those first that were used longest ago; what stays, and the tensors of that.
fn evict(entries: Vec<Entry>, budget_bytes: u64) -> (Collected, HashSet<OsString>) {
    // By tensor: how many forms have it, and its bytes.
    let mut users: HashMap<&str, (usize, u64)> = HashMap::new();
    let mut bytes: u64 = entries.iter().map(|entry| entry.own_bytes).sum();
    for entry in &entries {
        let own: BTreeMap<&str, u64> = entry.tensors.iter().map(|(d, b)| (&**d, *b)).collect();
        for (digest, length) in own {
            let user = users.entry(digest).or_insert((0, length));
            user.0 += 1;
            if user.0 == 1 {
                bytes += length;
            }
        }
    }
    let mut collected = Collected::default();
    for entry in &entries {
        // One that cannot be read is removed in any case.
        if bytes <= budget_bytes && entry.used > SystemTime::UNIX_EPOCH {
            collected.kept_forms += 1;
            continue;
        }
        if fs::remove_dir_all(&entry.path).is_err() {
            collected.kept_forms += 1;
            continue;
        }
        collected.removed_forms += 1;
        bytes -= entry.own_bytes;
        let own: BTreeMap<&str, u64> = entry.tensors.iter().map(|(d, b)| (&**d, *b)).collect();
        for (digest, length) in own {
            if let Some(user) = users.get_mut(digest) {
                user.0 -= 1;
                if user.0 == 0 {
                    bytes -= length;
                }
            }
        }
    }
    collected.kept_bytes = bytes;
    let kept = users.iter().filter(|(_, user)| user.0 > 0);
    let kept = kept.map(|(digest, _)| OsString::from(digest)).collect();
    (collected, kept)
}

/// Removes the tensors that no form has.
fn sweep(
    tensors: &Path,
    (mut collected, kept): (Collected, HashSet<OsString>),
) -> io::Result<Collected> {
    for directory in fs::read_dir(tensors)? {
        for file in fs::read_dir(directory?.path())? {
            let file = file?;
            if !kept.contains(&file.file_name()) {
                let length = file.metadata().map_or(0, |metadata| metadata.len());
                if fs::remove_file(file.path()).is_ok() {
                    collected.removed_bytes += length;
                }
            }
        }
    }
    Ok(collected)
}

/// Removes what processes began to make that are gone: whoever makes something holds the lock that we have alone.
fn remove_abandoned(tmp: &Path) -> io::Result<()> {
    for entry in fs::read_dir(tmp)? {
        let path = entry?.path();
        // It may be a file or a directory, and the directory of a form that is being forgotten goes by itself.
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
    Ok(())
}
