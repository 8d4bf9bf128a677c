//! Making a form: one at a time for each key, seen by others when it is whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use skep_store::{Description, Digest, Wanted};
use tempfile::{NamedTempFile, TempDir};

use crate::{
    Cache, CacheError, Content, Form, Found, Key, Part, Role, directory, manifest::Manifest,
};

/// What is read at a time of a file that may have the right bytes already: enough that calls of the system cost nothing.
const COMPARED_BYTES: usize = 1 << 20;

/// Who makes a form.
#[derive(Debug)]
pub enum Begun {
    /// The caller.
    Making(Making),
    /// Another one did, in the meantime.
    Found(Found),
}

/// A form that is being made. Dropped without [`Making::finish`], it leaves nothing but tensors that the next
/// [`Cache::collect`] removes.
#[derive(Debug)]
pub struct Making {
    cache: Cache,
    key: Key,
    directory: TempDir,
    manifest: Manifest,
    /// Of the parts so far, once each.
    tensors: BTreeSet<Digest>,
    bytes: u64,
    /// Keeps tensors that no manifest names yet from being removed.
    _shared: File,
    /// Of this key: others wait for it. Let go last.
    _alone: File,
}

impl Cache {
    /// Begins to make a form of files of this content. Blocks while another one makes the same.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) when nothing can be written.
    pub fn begin(&self, key: &Key, content: Content) -> Result<Begun, CacheError> {
        let alone = self.lock_file(&format!("making/{key}.lock"), File::lock)?;
        match self.look_up(key) {
            Found::Nothing => {}
            found => return Ok(Begun::Found(found)),
        }
        let shared = self.lock_file("lock", File::lock_shared)?;
        let tmp = self.path("tmp");
        let directory = tempfile::Builder::new()
            .prefix("making-")
            .tempdir_in(&tmp)
            .map_err(|e| CacheError::io("write to", &tmp, e))?;
        Ok(Begun::Making(Making {
            cache: self.clone(),
            key: *key,
            directory,
            manifest: Manifest {
                files: content.files,
                ..Manifest::default()
            },
            tensors: BTreeSet::new(),
            bytes: 0,
            _shared: shared,
            _alone: alone,
        }))
    }

    /// Opens a file of the directory and locks it.
    pub(crate) fn lock_file(
        &self,
        name: &str,
        mut lock: impl FnMut(&File) -> io::Result<()>,
    ) -> Result<File, CacheError> {
        let path = self.path(name);
        let mut locked = || -> io::Result<File> {
            loop {
                let file = File::options()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(&path)?;
                lock(&file)?;
                // While this process waited the file may have been removed: whoever comes now locks another one.
                if is_at(&file, &path)? {
                    return Ok(file);
                }
            }
        };
        locked().map_err(|error| CacheError::io("lock", &path, error))
    }
}

/// Whether a file is still the one of its name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a file has these bytes and no others.
fn has(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != bytes.len() as u64 {
        return Ok(false);
    }
    let mut buffer = vec![0; COMPARED_BYTES.min(bytes.len())];
    for part in bytes.chunks(COMPARED_BYTES) {
        let there = &mut buffer[..part.len()];
        file.read_exact(there)?;
        if there != part {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Making {
    /// A directory for what the runtime writes on the way; it is removed with this.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Adds a tensor, and says what it is called; its bytes are written unless the cache has them.
    ///
    /// # Errors
    /// When they cannot be written, or the form outgrows the cache's budget.
    pub fn add(
        &mut self,
        role: Role,
        name: &str,
        description: Description,
        bytes: &[u8],
    ) -> Result<Wanted, CacheError> {
        let tensor = Wanted::of(description, bytes);
        if self.tensors.insert(tensor.digest) {
            self.bytes += tensor.length;
            self.check_budget()?;
            self.write(&tensor.digest, bytes)?;
        }
        self.manifest.parts.push(Part {
            role,
            name: name.to_owned(),
            tensor: tensor.clone(),
        });
        Ok(tensor)
    }

    /// Opens the file of a tensor that was added.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(&self, tensor: &Wanted) -> Result<File, CacheError> {
        let path = self.cache.tensor_path(&tensor.digest);
        File::open(&path).map_err(|error| CacheError::io("read", &path, error))
    }

    /// What the form will be found by.
    #[must_use]
    pub const fn key(&self) -> &Key {
        &self.key
    }

    fn check_budget(&self) -> Result<(), CacheError> {
        let budget_bytes = self.cache.budget_bytes();
        if self.bytes > budget_bytes {
            let bytes = self.bytes;
            return Err(CacheError::TooLarge {
                bytes,
                budget_bytes,
            });
        }
        Ok(())
    }

    fn write(&self, digest: &Digest, bytes: &[u8]) -> Result<(), CacheError> {
        let path = self.cache.tensor_path(digest);
        // One that is there may be damaged, and is then replaced.
        if has(&path, bytes).unwrap_or(false) {
            return Ok(());
        }
        let written = || -> io::Result<()> {
            if let Some(parent) = path.parent() {
                directory::make(parent)?;
            }
            let mut file = NamedTempFile::new_in(self.directory.path())?;
            file.write_all(bytes)?;
            file.persist(&path)?;
            Ok(())
        };
        written().map_err(|error| CacheError::io("write", &path, error))
    }

    /// Puts the form in its place: the graph's bytes, and what the backend wants to know again.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(
        mut self,
        graph: &[u8],
        notes: BTreeMap<String, String>,
    ) -> Result<Form, CacheError> {
        self.bytes += graph.len() as u64;
        self.check_budget()?;
        self.manifest.graph = *blake3::hash(graph).as_bytes();
        self.manifest.notes = notes;
        self.publish(Some(graph))?;
        let graph = bytes::Bytes::copy_from_slice(graph);
        Ok(Form::new(&self.cache, self.key, graph, self.manifest))
    }

    /// Notes that there is no such form, so that nobody tries again.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn unusable(mut self, why: &str) -> Result<(), CacheError> {
        self.manifest = Manifest {
            files: self.manifest.files,
            unusable: Some(why.to_owned()),
            ..Manifest::default()
        };
        self.publish(None)
    }

    fn publish(&self, graph: Option<&[u8]>) -> Result<(), CacheError> {
        let form = self.directory.path().join("form");
        let place = self.cache.form_path(&self.key);
        let published = || -> io::Result<()> {
            fs::create_dir(&form)?;
            if let Some(graph) = graph {
                fs::write(form.join("graph"), graph)?;
            }
            fs::write(form.join("manifest"), self.manifest.encode())?;
            if place.exists() {
                // It is no form: it may have lost its manifest.
                self.cache.forget(&self.key);
            }
            fs::rename(&form, &place)
        };
        published().map_err(|error| CacheError::io("write", &place, error))
    }
}
