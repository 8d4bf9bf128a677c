//! Holding the directory within its budget: the forms that were used longest ago go first.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{Cache, CacheError, FileContent, failures, manifest::Manifest, staging, stamps};

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
    files: Vec<FileContent>,
    tensors: Vec<(String, u64)>,
}

/// What the forms that stay need.
#[derive(Debug, Default)]
struct Kept {
    tensors: HashSet<OsString>,
    files: HashSet<[u8; 32]>,
}

impl Cache {
    /// Removes the forms that were used longest ago until the rest fits the budget, and what no form has: tensors, locks,
    /// and what is remembered of model files. `None` while somebody publishes a form: the next call will do.
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
        let Some(_lock) = self.try_lock_file("lock", File::try_lock)? else {
            return Ok(None);
        };
        let root = self.root();
        let run = || -> io::Result<Collected> {
            // Whoever publishes something holds the lock that we have alone.
            staging::remove_left_over(&root.join("tmp"), true)?;
            let entries = entries(&root.join("models"))?;
            let (mut collected, kept) = evict(entries, budget_bytes);
            collected.removed_bytes = sweep(&root.join("tensors"), &kept.tensors)?;
            stamps::forget_others(&root.join("stamps"), &kept.files)?;
            remove_locks(&root.join("making"), &root.join("models"))?;
            failures::forget_old(&root.join("failures"), SystemTime::now())?;
            Ok(collected)
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
        let has_manifest = known.is_some();
        let Manifest { files, parts, .. } = known.unwrap_or_default();
        entries.push(Entry {
            used: used
                .ok()
                .filter(|_| has_manifest)
                .unwrap_or(SystemTime::UNIX_EPOCH),
            own_bytes: size("graph") + size("manifest"),
            files,
            tensors: parts
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
fn evict(entries: Vec<Entry>, budget_bytes: u64) -> (Collected, Kept) {
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
    let mut kept = Kept::default();
    for entry in &entries {
        // One that cannot be read is removed in any case.
        let stays = bytes <= budget_bytes && entry.used > SystemTime::UNIX_EPOCH;
        if stays || fs::remove_dir_all(&entry.path).is_err() {
            collected.kept_forms += 1;
            kept.files
                .extend(entry.files.iter().map(|file| file.digest));
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
    let tensors = users.iter().filter(|(_, user)| user.0 > 0);
    kept.tensors = tensors.map(|(digest, _)| OsString::from(digest)).collect();
    (collected, kept)
}

/// Removes the tensors that no form has. Their bytes.
fn sweep(tensors: &Path, kept: &HashSet<OsString>) -> io::Result<u64> {
    let mut removed_bytes = 0;
    for directory in fs::read_dir(tensors)? {
        for file in fs::read_dir(directory?.path())? {
            let file = file?;
            if !kept.contains(&file.file_name()) {
                let length = file.metadata().map_or(0, |metadata| metadata.len());
                if fs::remove_file(file.path()).is_ok() {
                    removed_bytes += length;
                }
            }
        }
    }
    Ok(removed_bytes)
}

/// Removes the locks of forms that are neither there nor being made.
fn remove_locks(making: &Path, models: &Path) -> io::Result<()> {
    for entry in fs::read_dir(making)? {
        let path = entry?.path();
        let has_form = path
            .file_stem()
            .is_some_and(|key| models.join(key).exists());
        let free = |file: File| file.try_lock().is_ok().then_some(file);
        let opened = || File::options().write(true).open(&path).ok();
        // Removed while it is locked: whoever has opened it gets the lock after that, and sees that it is not the file of
        // its name any more.
        if !has_form && let Some(_locked) = opened().and_then(free) {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}
