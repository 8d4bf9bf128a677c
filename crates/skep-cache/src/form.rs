//! A model's baked form.
#![allow(unsafe_code, reason = "mapping files of the cache (invariant 5)")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _},
    os::fd::BorrowedFd,
    path::PathBuf,
    ptr::NonNull,
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use memmap2::{Mmap, UncheckedAdvice};
use skep_host::open_file;
use skep_store::{Digest, Wanted};

use crate::{
    Cache, CacheError, FormKey, FormTensor, Role,
    manifest::Manifest,
    seen::{self, SeenTensors},
    stamps::FileFingerprint,
};

/// A tensor's file, mapped as long as its bytes are in use.
#[derive(Debug, Clone)]
pub struct Mapped {
    map: Arc<Mmap>,
    stamp: FileFingerprint,
}

impl Mapped {
    /// The tensor's bytes.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes::from_owner(MappedBytes(Arc::clone(&self.map)))
    }

    /// Maps another file over the tensor's bytes, read-only: they keep their address, and belong to that file from now
    /// on. Concurrent readers see either the old or the new bytes. `offset` is a multiple of the page size.
    ///
    /// # Errors
    /// The system's, such as too many mappings; the bytes are then unchanged.
    ///
    /// # Safety
    /// The file has the tensor's bytes at `offset`, and they do not change while bytes of this tensor are in use.
    pub unsafe fn replace(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        let start = NonNull::from(&self.map[..]).cast();
        // SAFETY: the range is this read-only mapping, which lives as long as its bytes are in use; the caller promises
        // the rest.
        unsafe { skep_host::replace_pages(start, self.map.len(), file, offset) }
    }

    /// Drops the pages that were read. They are read from the file again when they are needed.
    pub fn give_back(&self) {
        // SAFETY: the mapping is a read-only one of a file: the same bytes are read again.
        let _ = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
    }
}

/// The owner of the bytes of a mapping.
struct MappedBytes(Arc<Mmap>);

impl AsRef<[u8]> for MappedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A form in the cache: the graph's bytes, and the files of its tensors.
#[derive(Debug, Clone)]
pub struct Form {
    cache: Cache,
    key: FormKey,
    graph: Bytes,
    manifest: Arc<Manifest>,
}

impl Form {
    pub(crate) fn new(cache: &Cache, key: FormKey, graph: Bytes, manifest: Manifest) -> Self {
        Self {
            cache: cache.clone(),
            key,
            graph,
            manifest: manifest.into(),
        }
    }

    /// Its key.
    #[must_use]
    pub const fn key(&self) -> &FormKey {
        &self.key
    }

    /// The graph, in the runtime's own format.
    #[must_use]
    pub const fn graph(&self) -> &Bytes {
        &self.graph
    }

    /// The size of its graph and tensors; equal tensors count once.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let tensors = self.parts().iter().map(|part| &part.tensor);
        let tensors: BTreeMap<Digest, u64> = tensors.map(|t| (t.digest, t.length)).collect();
        self.graph.len() as u64 + tensors.values().sum::<u64>()
    }

    /// The graph's file.
    #[must_use]
    pub fn graph_path(&self) -> PathBuf {
        self.cache.form_path(&self.key).join("graph")
    }

    /// The files that a load reads: manifest, graph, and each tensor.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let directory = self.cache.form_path(&self.key);
        let tensors: BTreeSet<Digest> =
            self.parts().iter().map(|part| part.tensor.digest).collect();
        let own = ["manifest", "graph"].map(|name| directory.join(name));
        let tensors = tensors.iter().map(|digest| self.cache.tensor_path(digest));
        own.into_iter().chain(tensors).collect()
    }

    /// Its tensors: first those of the graph, then packed ones, each in their order.
    #[must_use]
    pub fn parts(&self) -> &[FormTensor] {
        &self.manifest.parts
    }

    /// The tensors that runs use, by their digests, each with its bytes; not those that are read for packing alone.
    #[must_use]
    pub fn used_tensors(&self) -> Vec<(Digest, u64)> {
        let used = self.parts().iter().filter(|part| part.role != Role::Source);
        used.map(|part| (part.tensor.digest, part.tensor.length))
            .collect()
    }

    /// A note that the backend stored with the form.
    #[must_use]
    pub fn note(&self, name: &str) -> Option<&str> {
        self.manifest.notes.get(name).map(String::as_str)
    }

    pub(crate) fn tensor_path(&self, tensor: &Wanted) -> PathBuf {
        self.cache.tensor_path(&tensor.digest)
    }

    /// Removes the damaged form. The next load makes it again.
    pub fn forget(&self) {
        self.cache.forget(&self.key);
    }

    /// Removes a tensor's damaged file, and the form.
    pub fn forget_tensor(&self, tensor: &Wanted) {
        if !self.cache.is_reader() {
            let _ = fs::remove_file(self.tensor_path(tensor));
        }
        self.forget();
    }

    /// Forgets which tensors were verified: the next load verifies them again.
    pub fn distrust(&self) {
        if !self.cache.is_reader() {
            let _ = fs::remove_file(self.cache.form_path(&self.key).join(seen::NAME));
        }
        self.cache.verified().clear();
    }

    /// Reads a tensor's bytes. The caller checks their digest.
    ///
    /// # Errors
    /// If its file is missing, or shorter than `bytes`.
    pub fn read(&self, tensor: &Wanted, bytes: &mut [u8]) -> Result<(), CacheError> {
        let path = self.tensor_path(tensor);
        open_file(&path)
            .and_then(|mut file| file.read_exact(bytes))
            .map_err(|error| CacheError::io("read", &path, error))
    }

    /// Maps a tensor's file read-only, without verifying it: for tensors that are only input to something that is
    /// checked. The tensor has at least a byte.
    ///
    /// # Errors
    /// If the file is missing, or has another length.
    pub fn map_unseen(&self, tensor: &Wanted) -> Result<Mapped, CacheError> {
        self.open(tensor)
    }

    /// Maps a tensor's file read-only. Verifies its digest the first time that this process sees this state of the
    /// file. The tensor has at least a byte.
    ///
    /// # Errors
    /// If the file is missing or damaged.
    pub fn map(&self, tensor: &Wanted) -> Result<Mapped, CacheError> {
        let mapped = self.open(tensor)?;
        self.check_once(tensor, &mapped)?;
        Ok(mapped)
    }

    /// Maps tensors' files as [`Form::map`] does, but skips the digest of a file that any process has verified and
    /// whose size and times have not changed since: see `seen.rs`.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn map_seen(&self, tensors: &[&Wanted]) -> Result<Vec<Mapped>, CacheError> {
        self.map_seen_at(SystemTime::now(), tensors)
    }

    pub(crate) fn map_seen_at(
        &self,
        now: SystemTime,
        tensors: &[&Wanted],
    ) -> Result<Vec<Mapped>, CacheError> {
        let path = self.cache.form_path(&self.key).join(seen::NAME);
        let seen = SeenTensors::read(&path);
        // Entries of other tensors stay: these may be in the store now, and be mapped the next time.
        let mut now_seen = seen.clone();
        let mut all = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let mapped = self.open(tensor)?;
            if !seen.holds(&tensor.digest, &mapped.stamp) {
                self.check_once(tensor, &mapped)?;
            }
            if mapped.stamp.is_settled(now) {
                now_seen.add(tensor.digest, &mapped.stamp);
            } else {
                now_seen.remove(&tensor.digest);
            }
            all.push(mapped);
        }
        if now_seen != seen && !self.cache.is_reader() {
            // Without the record, the next load verifies again.
            let _ = now_seen.write(&path, &self.cache.path("tmp"));
        }
        Ok(all)
    }

    /// Opens the file that was mapped.
    ///
    /// # Errors
    /// If it is missing, or was replaced.
    pub fn open_mapped(&self, tensor: &Wanted, mapped: &Mapped) -> Result<File, CacheError> {
        let path = self.tensor_path(tensor);
        let fail = |error| CacheError::io("map", &path, error);
        let file = open_file(&path).map_err(fail)?;
        if FileFingerprint::of(&file).map_err(fail)? != mapped.stamp {
            return Err(fail(io::Error::other("it was replaced a moment ago")));
        }
        Ok(file)
    }

    fn open(&self, tensor: &Wanted) -> Result<Mapped, CacheError> {
        let path = self.tensor_path(tensor);
        let fail = |error| CacheError::io("map", &path, error);
        let file = open_file(&path).map_err(fail)?;
        let stamp = FileFingerprint::of(&file).map_err(fail)?;
        // SAFETY: users of the cache replace and remove files, and never rewrite them, and only this user can write
        // them; the mapping is read-only, and lives as long as its bytes are in use.
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        if map.len() as u64 != tensor.length {
            return Err(CacheError::damaged(&path, "it has another length"));
        }
        Ok(Mapped {
            map: Arc::new(map),
            stamp,
        })
    }

    /// Verifies a tensor, unless this process has verified this state of the file.
    fn check_once(&self, tensor: &Wanted, mapped: &Mapped) -> Result<(), CacheError> {
        if !self.cache.verified().contains(&mapped.stamp) {
            self.check(tensor, mapped)?;
            self.cache.verified().insert(mapped.stamp);
        }
        Ok(())
    }

    /// Verifies a tensor's digest.
    fn check(&self, tensor: &Wanted, mapped: &Mapped) -> Result<(), CacheError> {
        if Digest::of(&tensor.description, &mapped.map) == tensor.digest {
            return Ok(());
        }
        let path = self.tensor_path(tensor);
        Err(CacheError::damaged(
            &path,
            "its bytes do not have its digest",
        ))
    }

    /// Verifies every tensor, even if it was verified before. Removes damaged ones, and then the form.
    ///
    /// # Errors
    /// The first damage.
    pub fn verify(&self) -> Result<(), CacheError> {
        let looked_at = self.parts().iter().map(|part| {
            let opened = self.open(&part.tensor);
            opened
                .and_then(|mapped| self.check(&part.tensor, &mapped))
                .inspect_err(|error| {
                    if error.is_damage() {
                        self.forget_tensor(&part.tensor);
                    }
                })
        });
        // Goes on after the first error.
        looked_at.fold(Ok(()), Result::and)
    }

    /// Checks that all tensors exist and have their lengths.
    pub(crate) fn check_lengths(&self) -> Result<(), CacheError> {
        for part in self.parts() {
            let path = self.cache.tensor_path(&part.tensor.digest);
            let metadata = fs::metadata(&path).map_err(|e| CacheError::io("read", &path, e))?;
            if metadata.len() != part.tensor.length {
                let _ = fs::remove_file(&path);
                let (got, expected) = (metadata.len(), part.tensor.length);
                let why = format!("it has {got} bytes, expected {expected}");
                return Err(CacheError::damaged(&path, why));
            }
        }
        Ok(())
    }
}

impl Cache {
    pub(crate) fn tensor_path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.path("tensors").join(&name[..2]).join(&name)
    }
}
