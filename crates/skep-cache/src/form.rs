//! A model in the form that a runtime loads fastest.
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
    Cache, CacheError, FormKey, FormTensor,
    manifest::Manifest,
    seen::{self, SeenTensors},
    stamps::FileStamp,
};

/// A tensor's file, mapped as long as anybody has its bytes.
#[derive(Debug, Clone)]
pub struct Mapped {
    map: Arc<Mmap>,
    stamp: FileStamp,
}

impl Mapped {
    /// The tensor's bytes.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes::from_owner(MappedBytes(Arc::clone(&self.map)))
    }

    /// Maps pages of another file over the tensor's, read-only: its bytes stay where they are, and are that file's from
    /// now on. Whoever reads them meanwhile reads the ones or the others. `offset` is a multiple of the page size.
    ///
    /// # Errors
    /// The system's, such as too many mappings; the bytes are then those that they were.
    ///
    /// # Safety
    /// The file has the tensor's bytes from there on, and nobody changes them while anybody has bytes of this tensor.
    pub unsafe fn replace(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        let start = NonNull::from(&self.map[..]).cast();
        // SAFETY: the range is this mapping's own, which lives as long as anybody has bytes of it and which nobody
        // writes; the caller promises the rest.
        unsafe { skep_host::replace_pages(start, self.map.len(), file, offset) }
    }

    /// Lets go of the pages that were read, which are read again from the file where somebody needs them.
    pub fn give_back(&self) {
        // SAFETY: the mapping is read-only and of a file: what is read again is the same.
        let _ = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
    }
}

/// A part of a mapping.
struct MappedBytes(Arc<Mmap>);

impl AsRef<[u8]> for MappedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A form as the cache has it: the graph's bytes, and where the tensors are.
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

    /// What it was found by.
    #[must_use]
    pub const fn key(&self) -> &FormKey {
        &self.key
    }

    /// The graph, in the runtime's own format.
    #[must_use]
    pub const fn graph(&self) -> &Bytes {
        &self.graph
    }

    /// Of its graph and tensors, equal ones once.
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

    /// The files that a load of it reads: manifest, graph, and each of its tensors.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let directory = self.cache.form_path(&self.key);
        let tensors: BTreeSet<Digest> =
            self.parts().iter().map(|part| part.tensor.digest).collect();
        let own = ["manifest", "graph"].map(|name| directory.join(name));
        let tensors = tensors.iter().map(|digest| self.cache.tensor_path(digest));
        own.into_iter().chain(tensors).collect()
    }

    /// Its tensors: those of the graph in its order, packed ones in theirs.
    #[must_use]
    pub fn parts(&self) -> &[FormTensor] {
        &self.manifest.parts
    }

    /// What the backend noted when it made the form.
    #[must_use]
    pub fn note(&self, name: &str) -> Option<&str> {
        self.manifest.notes.get(name).map(String::as_str)
    }

    pub(crate) fn tensor_path(&self, tensor: &Wanted) -> PathBuf {
        self.cache.tensor_path(&tensor.digest)
    }

    /// Removes it as damaged: the next load makes it again.
    pub fn forget(&self) {
        self.cache.forget(&self.key);
    }

    /// Removes a tensor's file that turned out to be damaged, and the form with it.
    pub fn forget_tensor(&self, tensor: &Wanted) {
        if !self.cache.is_reader() {
            let _ = fs::remove_file(self.tensor_path(tensor));
        }
        self.forget();
    }

    /// Forgets that tensors were found whole: whoever maps them the next time looks at them.
    pub fn distrust(&self) {
        if !self.cache.is_reader() {
            let _ = fs::remove_file(self.cache.form_path(&self.key).join(seen::NAME));
        }
        self.cache.verified().clear();
    }

    /// Reads a tensor's bytes, which the caller checks against its digest.
    ///
    /// # Errors
    /// When its file is gone, or shorter than `bytes`.
    pub fn read(&self, tensor: &Wanted, bytes: &mut [u8]) -> Result<(), CacheError> {
        let path = self.tensor_path(tensor);
        open_file(&path)
            .and_then(|mut file| file.read_exact(bytes))
            .map_err(|error| CacheError::io("read", &path, error))
    }

    /// Maps the file of a tensor, which has at least a byte, read-only. Nobody looks at its bytes: for those that are
    /// only read on the way to something that is checked.
    ///
    /// # Errors
    /// When the file is gone, or has another length.
    pub fn map_unseen(&self, tensor: &Wanted) -> Result<Mapped, CacheError> {
        self.open(tensor)
    }

    /// Maps the file of a tensor, which has at least a byte, read-only; its bytes are checked against the digest the
    /// first time that this process sees the file as it is now.
    ///
    /// # Errors
    /// When the file is gone, or damaged.
    pub fn map(&self, tensor: &Wanted) -> Result<Mapped, CacheError> {
        let mapped = self.open(tensor)?;
        self.check_once(tensor, &mapped)?;
        Ok(mapped)
    }

    /// Maps the files of tensors as [`Form::map`] does, but for one that any process found whole, and that is as it was
    /// then by size and times, believes that: see [`SeenTensors`].
    ///
    /// # Errors
    /// When a file is gone, or damaged.
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
        // What is remembered of the others stays: they may be in the store already, and are asked for the next time.
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
            // What cannot be remembered is looked at again.
            let _ = now_seen.write(&path, &self.cache.path("tmp"));
        }
        Ok(all)
    }

    /// The file that was mapped.
    ///
    /// # Errors
    /// When it is gone, or another one.
    pub fn open_mapped(&self, tensor: &Wanted, mapped: &Mapped) -> Result<File, CacheError> {
        let path = self.tensor_path(tensor);
        let fail = |error| CacheError::io("map", &path, error);
        let file = open_file(&path).map_err(fail)?;
        if FileStamp::of(&file).map_err(fail)? != mapped.stamp {
            return Err(fail(io::Error::other("it was replaced a moment ago")));
        }
        Ok(file)
    }

    fn open(&self, tensor: &Wanted) -> Result<Mapped, CacheError> {
        let path = self.tensor_path(tensor);
        let fail = |error| CacheError::io("map", &path, error);
        let file = open_file(&path).map_err(fail)?;
        let stamp = FileStamp::of(&file).map_err(fail)?;
        // SAFETY: files of the cache are replaced and removed, never rewritten, by those who use it, and belong to the
        // user alone; the mapping is read-only and lives as long as anybody has a slice of it.
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        if map.len() as u64 != tensor.length {
            return Err(CacheError::damaged(&path, "it has another length"));
        }
        Ok(Mapped {
            map: Arc::new(map),
            stamp,
        })
    }

    /// Looks at a tensor's bytes, unless this process has looked at the file as it is now.
    fn check_once(&self, tensor: &Wanted, mapped: &Mapped) -> Result<(), CacheError> {
        if !self.cache.verified().contains(&mapped.stamp) {
            self.check(tensor, mapped)?;
            self.cache.verified().insert(mapped.stamp);
        }
        Ok(())
    }

    /// Looks at a tensor's bytes.
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

    /// Looks at every byte of its tensors, whoever did before, and removes what is damaged, the form with it.
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
        // All of them, whatever is wrong with one.
        looked_at.fold(Ok(()), Result::and)
    }

    /// Whether all tensors are there, with their lengths.
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
