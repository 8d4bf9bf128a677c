//! A model in the form that a runtime loads fastest.
#![allow(unsafe_code, reason = "mapping files of the cache (invariant 5)")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use memmap2::{Mmap, UncheckedAdvice};
use skep_store::{Digest, Wanted};

use crate::{Cache, CacheError, Key, Part, manifest::Manifest, stamps::Stamp};

/// A tensor's file, mapped as long as anybody has its bytes.
#[derive(Debug, Clone)]
pub struct Mapped(Arc<Mmap>);

impl Mapped {
    /// The tensor's bytes.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes::from_owner(Shared(Arc::clone(&self.0)))
    }

    /// Lets go of the pages that were read, which are read again from the file where somebody needs them.
    pub fn give_back(&self) {
        // SAFETY: the mapping is read-only and of a file: what is read again is the same.
        let _ = unsafe { self.0.unchecked_advise(UncheckedAdvice::DontNeed) };
    }
}

/// A part of a mapping.
struct Shared(Arc<Mmap>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A form as the cache has it: the graph's bytes, and where the tensors are.
#[derive(Debug, Clone)]
pub struct Form {
    cache: Cache,
    key: Key,
    graph: Bytes,
    manifest: Arc<Manifest>,
}

impl Form {
    pub(crate) fn new(cache: &Cache, key: Key, graph: Bytes, manifest: Manifest) -> Self {
        Self {
            cache: cache.clone(),
            key,
            graph,
            manifest: manifest.into(),
        }
    }

    /// What it was found by.
    #[must_use]
    pub const fn key(&self) -> &Key {
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

    /// Its tensors: those of the graph in its order, packed ones in theirs.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.manifest.parts
    }

    /// What the backend noted when it made the form.
    #[must_use]
    pub fn note(&self, name: &str) -> Option<&str> {
        self.manifest.notes.get(name).map(String::as_str)
    }

    /// Removes it as damaged: the next load makes it anew.
    pub fn forget(&self) {
        self.cache.forget(&self.key);
    }

    /// Removes a tensor's file that turned out to be damaged, and the form with it.
    pub fn forget_tensor(&self, tensor: &Wanted) {
        if !self.cache.is_reader() {
            let _ = fs::remove_file(self.cache.tensor_path(&tensor.digest));
        }
        self.forget();
    }

    /// Reads a tensor's bytes, which the caller checks against its digest.
    ///
    /// # Errors
    /// When its file is gone, or shorter than `bytes`.
    pub fn read(&self, tensor: &Wanted, bytes: &mut [u8]) -> Result<(), CacheError> {
        let path = self.cache.tensor_path(&tensor.digest);
        File::open(&path)
            .and_then(|mut file| file.read_exact(bytes))
            .map_err(|error| CacheError::io("read", &path, error))
    }

    /// Maps the file of a tensor, which has at least a byte, read-only; its bytes are checked against the digest the first
    /// time that this process sees the file as it is now.
    ///
    /// # Errors
    /// When the file is gone, or damaged.
    pub fn map(&self, tensor: &Wanted) -> Result<Mapped, CacheError> {
        let path = self.cache.tensor_path(&tensor.digest);
        let fail = |error| CacheError::io("map", &path, error);
        let file = File::open(&path).map_err(fail)?;
        let stamp = Stamp::of(&file).map_err(fail)?;
        // SAFETY: files of the cache are replaced and removed, never rewritten, by those who use it, and belong to the
        // user alone; the mapping is read-only and lives as long as anybody has a slice of it.
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        let mapped = Mapped(Arc::new(map));
        let bytes = mapped.bytes();
        if bytes.len() as u64 != tensor.length {
            return Err(CacheError::damaged(&path, "it has another length"));
        }
        if !self.cache.verified().contains(&stamp) {
            if Digest::of(&tensor.description, &bytes) != tensor.digest {
                return Err(CacheError::damaged(
                    &path,
                    "its bytes do not have its digest",
                ));
            }
            self.cache.verified().insert(stamp);
        }
        Ok(mapped)
    }

    /// Looks at every byte of its tensors, and removes what is damaged, the form with it.
    ///
    /// # Errors
    /// The first damage.
    pub fn verify(&self) -> Result<(), CacheError> {
        let looked_at = self.parts().iter().map(|part| {
            let mapped = self.map(&part.tensor);
            mapped
                .map(drop)
                .inspect_err(|_| self.forget_tensor(&part.tensor))
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
