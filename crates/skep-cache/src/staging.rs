//! Staging directories, and the checks before a form is published.
//!
//! ```text
//! <directory>/manifest          without the key, which the publisher computes
//!             graph
//!             tensors/<digest>
//!             scratch/          temporary files; removed when the form is finished
//! ```
//!
//! The maker may be a process that is not trusted. So a form is published only after every name was checked and every
//! byte hashed. The process that publishes holds a lock on the directory; a directory without a lock is a leftover.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, Metadata},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{fs::OFlags, process::geteuid};
use skep_store::{Description, Digest, MAX_DIMS, MAX_LAYOUT_BYTES, Wanted};

use crate::{
    CacheError,
    directory::{self, is_at},
    manifest::Manifest,
};

pub(crate) const MANIFEST: &str = "manifest";
pub(crate) const GRAPH: &str = "graph";
pub(crate) const TENSORS: &str = "tensors";
pub(crate) const SCRATCH: &str = "scratch";

/// The prefix of the names of staging directories.
const PREFIX: &str = "bake-";

/// A manifest has some 200 bytes per tensor.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// The largest message of protocol buffers.
const MAX_GRAPH_BYTES: u64 = 2 << 30;

/// The longest reason why a model cannot be baked.
const MAX_REASON_BYTES: usize = 4 << 10;

/// Attempts to create a directory before another process removes it unlocked.
const ATTEMPTS: usize = 8;

/// A staging directory, locked by this process, and removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    _lock: File,
}

impl Staging {
    /// Creates one in `tmp`.
    pub(crate) fn new(tmp: &Path) -> Result<Self, CacheError> {
        let fail = |error| CacheError::io("write to", tmp, error);
        for _ in 0..ATTEMPTS {
            let made = tempfile::Builder::new().prefix(PREFIX).tempdir_in(tmp);
            let path = made.map_err(fail)?.keep();
            let lock = File::open(&path).map_err(fail)?;
            // Until it is locked it looks like a leftover.
            if lock.try_lock().is_ok() && is_at(&lock, &path).map_err(fail)? {
                let staging = Self { path, _lock: lock };
                for inner in [TENSORS, SCRATCH] {
                    directory::make(&staging.path.join(inner)).map_err(fail)?;
                }
                return Ok(staging);
            }
        }
        Err(fail(io::Error::other(
            "each new directory was removed at once",
        )))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A leftover is removed by the next process that opens the cache.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes leftovers of dead processes: all staging directories without a lock, and everything else if `all` is set.
pub(crate) fn remove_left_over(tmp: &Path, all: bool) -> io::Result<()> {
    for entry in fs::read_dir(tmp)? {
        let entry = entry?;
        let path = entry.path();
        let is_staging = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if is_staging {
            // Locked until it is gone, so that no process starts to use it.
            if let Ok(lock) = File::open(&path)
                && lock.try_lock().is_ok()
            {
                let _ = fs::remove_dir_all(&path);
            }
        } else if all {
            // A file, or a directory. The directory of a form that is being removed may vanish meanwhile.
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    }
    Ok(())
}

/// A verified form in a staging directory.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) manifest: Manifest,
    pub(crate) graph: Vec<u8>,
}

/// Verifies a staging directory whose maker has ended.
///
/// # Errors
/// [`CacheError::Refused`] for anything but a complete form, or the reason why there cannot be one;
/// [`CacheError::TooLarge`] above `budget_bytes`.
pub(crate) fn check(directory: &Path, budget_bytes: u64) -> Result<Staged, CacheError> {
    let refuse = |why: String| CacheError::refused(directory, why);
    let text = read(&directory.join(MANIFEST), MAX_MANIFEST_BYTES).map_err(refuse)?;
    let text = String::from_utf8(text).map_err(|_| refuse("its manifest is not text".into()))?;
    let manifest = Manifest::decode(&text).map_err(|why| refuse(format!("its manifest: {why}")))?;
    if let Some(why) = &manifest.unusable {
        if why.len() > MAX_REASON_BYTES {
            return Err(refuse("its reason why there is no form is too long".into()));
        }
        let graph = Vec::new();
        return Ok(Staged { manifest, graph });
    }
    let names = names(directory).map_err(refuse)?;
    let expected = [MANIFEST, GRAPH, TENSORS].map(str::to_owned);
    if names != BTreeSet::from(expected) {
        return Err(refuse(format!("it holds {names:?}")));
    }
    let graph = read(&directory.join(GRAPH), MAX_GRAPH_BYTES).map_err(refuse)?;
    if *blake3::hash(&graph).as_bytes() != manifest.graph {
        return Err(refuse("its graph is not the one of its manifest".into()));
    }
    let tensors = check_tensors(directory, &manifest).map_err(refuse)?;
    let bytes = tensors.values().sum::<u64>() + graph.len() as u64;
    if bytes > budget_bytes {
        return Err(CacheError::TooLarge {
            bytes,
            budget_bytes,
        });
    }
    Ok(Staged { manifest, graph })
}

/// Verifies the tensors, and returns their lengths.
fn check_tensors(directory: &Path, manifest: &Manifest) -> Result<BTreeMap<Digest, u64>, String> {
    let directory = directory.join(TENSORS);
    let mut checked = BTreeMap::new();
    for part in &manifest.parts {
        let Wanted {
            digest,
            description,
            length,
        } = &part.tensor;
        check_description(description, *length)?;
        if checked.insert(*digest, *length).is_some() {
            // The digest covers the description and the length.
            continue;
        }
        let file = open(&directory.join(digest.to_string()))?;
        let got = file.metadata().map_err(|e| e.to_string())?.len();
        if got != *length {
            return Err(format!(
                "tensor {digest} has {got} bytes, expected {length}"
            ));
        }
        let found = Digest::of_file(description, &file, *length).map_err(|e| e.to_string())?;
        if found != *digest {
            return Err(format!(
                "the bytes of tensor {digest} do not have its digest"
            ));
        }
    }
    let expected: BTreeSet<String> = checked.keys().map(Digest::to_string).collect();
    if names(&directory)? != expected {
        return Err("it holds files that its manifest does not name".to_owned());
    }
    Ok(checked)
}

fn check_description(description: &Description, length: u64) -> Result<(), String> {
    let Description {
        datatype,
        dims,
        layout,
    } = description;
    if dims.len() > MAX_DIMS || layout.len() > MAX_LAYOUT_BYTES {
        return Err("the description of a tensor is too long".to_owned());
    }
    let size = datatype.element_size().map(|size| size as u64);
    let bytes = dims.iter().try_fold(size.unwrap_or(0), |bytes, &extent| {
        bytes.checked_mul(extent)
    });
    if size.is_none() || bytes != Some(length) || length == 0 {
        return Err(format!("a tensor {description} has {length} bytes"));
    }
    Ok(())
}

/// The names in a directory. It must not be a link to one.
fn names(directory: &Path) -> Result<BTreeSet<String>, String> {
    let metadata = fs::symlink_metadata(directory).map_err(|e| at(directory, &e))?;
    if !metadata.is_dir() || !is_own(&metadata) {
        return Err(format!(
            "`{}` is not a directory of this user",
            directory.display()
        ));
    }
    let entries = fs::read_dir(directory).map_err(|e| at(directory, &e))?;
    entries
        .map(|entry| {
            let name = entry.map_err(|e| at(directory, &e))?.file_name();
            name.into_string()
                .map_err(|name| format!("a file is called {name:?}"))
        })
        .collect()
}

/// An error with its path.
fn at(path: &Path, error: &io::Error) -> String {
    format!("`{}`: {error}", path.display())
}

fn is_own(metadata: &Metadata) -> bool {
    metadata.uid() == geteuid().as_raw()
}

/// Opens a regular file that has only this name.
fn open(path: &Path) -> Result<File, String> {
    // Without following links, and without waiting for a pipe's writer.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let mut options = File::options();
    options.read(true).custom_flags(flags.cast_signed());
    let file = options.open(path).map_err(|e| at(path, &e))?;
    let metadata = file.metadata().map_err(|e| at(path, &e))?;
    if !metadata.is_file() || metadata.nlink() != 1 || !is_own(&metadata) {
        return Err(format!(
            "`{}` is not a regular file of this user with one name",
            path.display()
        ));
    }
    Ok(file)
}

fn read(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, String> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    let read = file.take(limit_bytes + 1).read_to_end(&mut bytes);
    read.map_err(|error| at(path, &error))?;
    if bytes.len() as u64 > limit_bytes {
        let path = path.display();
        return Err(format!("`{path}` has more than {limit_bytes} bytes"));
    }
    Ok(bytes)
}
