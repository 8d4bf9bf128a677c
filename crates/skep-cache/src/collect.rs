//! Keeps the directory within its budget: the least recently used forms go first.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use skep_host::read_text;

use crate::{
    Cache, CacheError, FileContent, MAX_MANIFEST_BYTES, failures, manifest::Manifest, staging,
    stamps,
};

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
struct FormEntry {
    path: PathBuf,
    used: SystemTime,
    own_bytes: u64,
    files: Vec<FileContent>,
    tensors: Vec<(OsString, u64)>,
}

/// The files that the remaining forms need.
#[derive(Debug, Default)]
struct KeptFiles {
    tensors: HashSet<OsString>,
    files: HashSet<[u8; 32]>,
}

impl Cache {
    /// Removes the least recently used forms of all tenants until the rest fits the budget. Also removes tensors, locks
    /// and remembered digests that no form needs. `None` while a form is being published: the next call collects.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn collect(&self) -> Result<Option<Collected>, CacheError> {
        self.collect_to(self.budget_bytes())
    }

    /// [`Cache::collect`] with another budget.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn collect_to(&self, budget_bytes: u64) -> Result<Option<Collected>, CacheError> {
        let fail = |error| CacheError::io("clean up", self.root(), error);
        let parts = self.all_parts().map_err(fail)?;
        let mut locks = Vec::with_capacity(parts.len());
        for part in &parts {
            match part.try_lock_file("lock", File::try_lock)? {
                Some(lock) => locks.push(lock),
                None => return Ok(None),
            }
        }
        collect_parts(&parts, budget_bytes).map(Some).map_err(fail)
    }
}

/// Collects parts whose locks the caller holds.
fn collect_parts(parts: &[Cache], budget_bytes: u64) -> io::Result<Collected> {
    let mut all = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        // A process that publishes holds the lock, which this one now holds exclusively.
        staging::remove_left_over(&part.root().join("tmp"), true)?;
        all.extend(entries(index, &part.root().join("models"))?);
    }
    // For equal times, an order that does not depend on the directory's.
    all.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
    let (mut collected, kept) = evict(all, budget_bytes);
    for (index, part) in parts.iter().enumerate() {
        let root = part.root();
        collected.removed_bytes += sweep(index, &root.join("tensors"), &kept.tensors)?;
        stamps::forget_others(&root.join("stamps"), &kept.files)?;
        remove_locks(&root.join("making"), &root.join("models"))?;
        failures::forget_old(&root.join("failures"), SystemTime::now())?;
    }
    Ok(collected)
}

/// Names a tensor's file with its part. Parts share nothing, not even equal tensors.
fn in_part(part: usize, name: &str) -> OsString {
    OsString::from(format!("{part}/{name}"))
}

/// The forms of a part. A form with an unreadable manifest has no tensors, and its last use is the beginning of time.
fn entries(part: usize, models: &Path) -> io::Result<Vec<FormEntry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(models)? {
        let path = entry?.path();
        let manifest = path.join("manifest");
        let known = read_text(&manifest, MAX_MANIFEST_BYTES)
            .ok()
            .and_then(|text| Manifest::decode(&text).ok());
        let used = fs::metadata(&manifest).and_then(|metadata| metadata.modified());
        let size = |name| fs::metadata(path.join(name)).map_or(0, |metadata| metadata.len());
        let has_manifest = known.is_some();
        let Manifest { files, parts, .. } = known.unwrap_or_default();
        entries.push(FormEntry {
            used: used
                .ok()
                .filter(|_| has_manifest)
                .unwrap_or(SystemTime::UNIX_EPOCH),
            own_bytes: size("graph") + size("manifest"),
            files,
            tensors: parts
                .iter()
                .map(|of_form| {
                    let tensor = &of_form.tensor;
                    (in_part(part, &tensor.digest.to_string()), tensor.length)
                })
                .collect(),
            path,
        });
    }
    Ok(entries)
}

/// Removes the least recently used forms. Returns what was removed, and the files that the rest needs.
fn evict(entries: Vec<FormEntry>, budget_bytes: u64) -> (Collected, KeptFiles) {
    // For each tensor, the number of forms that have it, and its bytes.
    let mut users: HashMap<&OsStr, (usize, u64)> = HashMap::new();
    let mut bytes: u64 = entries.iter().map(|entry| entry.own_bytes).sum();
    for entry in &entries {
        let own: BTreeMap<&OsStr, u64> = entry.tensors.iter().map(|(d, b)| (&**d, *b)).collect();
        for (digest, length) in own {
            let user = users.entry(digest).or_insert((0, length));
            user.0 += 1;
            if user.0 == 1 {
                bytes += length;
            }
        }
    }
    let mut collected = Collected::default();
    let mut kept = KeptFiles::default();
    for entry in &entries {
        // An unreadable form is always removed.
        let stays = bytes <= budget_bytes && entry.used > SystemTime::UNIX_EPOCH;
        if stays || fs::remove_dir_all(&entry.path).is_err() {
            collected.kept_forms += 1;
            kept.files
                .extend(entry.files.iter().map(|file| file.digest));
            continue;
        }
        collected.removed_forms += 1;
        bytes -= entry.own_bytes;
        let own: BTreeMap<&OsStr, u64> = entry.tensors.iter().map(|(d, b)| (&**d, *b)).collect();
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

/// Removes the tensors of a part that no form has. Returns their bytes.
fn sweep(part: usize, tensors: &Path, kept: &HashSet<OsString>) -> io::Result<u64> {
    let mut removed_bytes = 0;
    for directory in fs::read_dir(tensors)? {
        for file in fs::read_dir(directory?.path())? {
            let file = file?;
            let name = in_part(part, &file.file_name().to_string_lossy());
            if !kept.contains(&name) {
                let length = file.metadata().map_or(0, |metadata| metadata.len());
                if fs::remove_file(file.path()).is_ok() {
                    removed_bytes += length;
                }
            }
        }
    }
    Ok(removed_bytes)
}

/// Removes the locks of forms that neither exist nor are being made.
fn remove_locks(making: &Path, models: &Path) -> io::Result<()> {
    for entry in fs::read_dir(making)? {
        let path = entry?.path();
        let has_form = path
            .file_stem()
            .is_some_and(|key| models.join(key).exists());
        let free = |file: File| file.try_lock().is_ok().then_some(file);
        let opened = || File::options().write(true).open(&path).ok();
        // Removed while it is locked: a process that has it open gets the lock afterwards, and sees that the file no
        // longer has its name.
        if !has_form && let Some(_locked) = opened().and_then(free) {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}
