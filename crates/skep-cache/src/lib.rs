//! The disk tier below the tensor store: a directory of models in the form that a runtime loads fastest, by content.
//!
//! A backend *bakes* a model once: its runtime rewrites the graph, and the backend keeps the rewritten graph, each
//! large tensor and each packed weight. Later loads, in any process, start from these.
//!
//! ```text
//! <directory>/v1/lock                     held shared while publishing, exclusively while removing
//!                models/<key>/manifest    what a form consists of; its modification time is its last use
//!                models/<key>/graph
//!                models/<key>/seen        tensors whose digest was verified, by size and times
//!                tensors/ab/<digest>      a tensor's bytes, once for all forms that share it
//!                stamps/<hash of a path>  a model file's digest, by size and times
//!                making/<key>.lock        held by the process that makes this form
//!                failures/<key>           deaths of processes while making it
//!                turn                     held by the one process that bakes in the background
//!                tmp/bake-*               forms in the making, each directory locked by the process that publishes it
//! ```
//!
//! A [`FormKey`] covers everything that the form depends on; the backend decides what that is. A process that need not
//! be trusted makes the form in a staging directory. The process that publishes it computes the key itself and checks
//! every byte ([`Claim`]). A form exists once its directory is renamed into place.
//!
//! The manifest holds the digests of itself and of the graph, and the key; every [`Cache::look_up`] checks all three.
//! Tensors are checked when they are used, once per process and state of the file: by the store if it publishes them,
//! otherwise by [`Form::map`] and [`Form::map_seen`]. A damaged form is removed ([`Cache::forget`]) and baked again.
//!
//! [`Cache::collect`] keeps the directory within its budget: the most recently used forms stay. With a form go its lock
//! and the digests of its model's files. Each tenant has its own part of the directory ([`Cache::of_tenant`]).

mod collect;
mod directory;
mod error;
mod failures;
mod form;
mod key;
mod making;
mod manifest;
mod seen;
mod staging;
mod stamps;
mod tenants;

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

pub use collect::Collected;
pub use error::{CacheError, ErrorKind};
pub use failures::Deaths;
pub use form::{Form, Mapped};
pub use key::FormKey;
pub use making::{Begun, Claim, Making, Turn};
pub use manifest::{FormTensor, Role};

use skep_host::{lock, open_file, read_file, read_text};
use skep_store::Digest;

use crate::{
    manifest::Manifest,
    stamps::{FileFingerprint, RememberedFile},
};

/// The version of the layout, as the name of a subdirectory.
const LAYOUT: &str = "v1";

/// The first bytes of a manifest, which hold the lines about some dozens of model files.
const MANIFEST_HEAD_BYTES: u64 = 8 << 10;

/// The default budget of a cache directory: the forms of dozens of models.
pub const DEFAULT_BUDGET_BYTES: u64 = 32 << 30;

/// A cache directory. Any number of processes may use one.
#[derive(Debug, Clone)]
pub struct Cache {
    inner: Arc<CacheInner>,
}

#[derive(Debug)]
struct CacheInner {
    directory: PathBuf,
    /// The directory whose budget counts: for a tenant's part, the directory that contains it.
    home: PathBuf,
    root: PathBuf,
    budget_bytes: u64,
    is_reader: bool,
    /// The only form that a reader may read.
    only: Option<FormKey>,
    /// Whether a reader found damage, which it cannot remove.
    damaged: AtomicBool,
    /// Files whose digest this process has verified.
    verified: Mutex<HashSet<FileFingerprint>>,
    /// Tenants' parts, by tenant.
    parts: Mutex<BTreeMap<String, Cache>>,
}

/// The content of a model's files, by digest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// The content of each file, in order.
    files: Vec<FileContent>,
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileContent {
    pub(crate) digest: [u8; 32],
    pub(crate) bytes: u64,
}

impl Content {
    /// One digest for all files.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for file in &self.files {
            hasher.update(&file.digest);
        }
        *hasher.finalize().as_bytes()
    }
}

/// What a cache holds for a key.
#[derive(Debug)]
pub enum Found {
    /// A form.
    Form(Form),
    /// The model cannot be baked, with the reason.
    Unusable(String),
    /// Nothing.
    Nothing,
}

/// A tensor's line takes some 200 bytes.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// The largest message of protocol buffers.
const MAX_GRAPH_BYTES: u64 = 2 << 30;

impl Cache {
    /// Opens a cache directory, and creates it if necessary, for its owner alone (mode 0700).
    ///
    /// Anyone who can change its files decides what models answer. So an existing directory must belong to this
    /// process's user or to root, and no other user may write it, with two exceptions: a directory of root's may be
    /// writable for a group, and a sticky directory for everybody, since the subdirectories that a cache makes are
    /// checked in the same way. Parent directories are not checked.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if it cannot be created, [`ErrorKind::Unsafe`] if others may change it.
    pub fn open(directory: &Path, budget_bytes: u64) -> Result<Self, CacheError> {
        let cache = Self::over(directory, directory, budget_bytes, None);
        directory::open(cache.directory(), cache.root())?;
        // Leftovers that cannot be removed do no harm.
        let _ = staging::remove_left_over(&cache.path("tmp"), false);
        Ok(cache)
    }

    /// Opens one form of another process's cache directory, to read it. A reader makes and records nothing, and looks
    /// for no other form. The other process decides which files may be read: [`Form::files`].
    #[must_use]
    pub fn reader(directory: &Path, key: FormKey) -> Self {
        Self::over(directory, directory, 0, Some(key))
    }

    fn over(directory: &Path, home: &Path, budget_bytes: u64, only: Option<FormKey>) -> Self {
        Self {
            inner: Arc::new(CacheInner {
                directory: directory.to_owned(),
                home: home.to_owned(),
                root: directory.join(LAYOUT),
                budget_bytes,
                is_reader: only.is_some(),
                only,
                damaged: AtomicBool::new(false),
                verified: Mutex::default(),
                parts: Mutex::default(),
            }),
        }
    }

    /// The directory that it was opened with.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// The subdirectory of this layout.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The budget of the directory, in bytes.
    #[must_use]
    pub fn budget_bytes(&self) -> u64 {
        self.inner.budget_bytes
    }

    /// Whether this is a reader, which cannot make forms.
    #[must_use]
    pub fn is_reader(&self) -> bool {
        self.inner.is_reader
    }

    /// The only form that a reader reads, whichever model asks.
    #[must_use]
    pub fn only(&self) -> Option<&FormKey> {
        self.inner.only.as_ref()
    }

    /// Whether a reader found damage, which another process has to repair.
    #[must_use]
    pub fn found_damage(&self) -> bool {
        self.inner.damaged.load(Ordering::Relaxed)
    }

    fn path(&self, sub: &str) -> PathBuf {
        self.inner.root.join(sub)
    }

    fn form_path(&self, key: &FormKey) -> PathBuf {
        self.path("models").join(key.to_string())
    }

    fn home(&self) -> &Path {
        &self.inner.home
    }

    fn known_parts(&self) -> MutexGuard<'_, BTreeMap<String, Self>> {
        lock(&self.inner.parts)
    }

    fn verified(&self) -> MutexGuard<'_, HashSet<FileFingerprint>> {
        lock(&self.inner.verified)
    }

    /// Looks up a form by its key, and records the use. A damaged form is removed, and counts as absent.
    #[must_use]
    pub fn look_up(&self, key: &FormKey) -> Found {
        self.read(key).unwrap_or_else(|error| {
            tracing::warn!("a baked form is not used: {error}");
            self.forget(key);
            Found::Nothing
        })
    }

    /// Reads the form of a key; an error if it is damaged.
    fn read(&self, key: &FormKey) -> Result<Found, CacheError> {
        let directory = self.form_path(key);
        let path = directory.join("manifest");
        let text = match read_text(&path, MAX_MANIFEST_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Found::Nothing);
            }
            Err(error) => return Err(CacheError::io("read", &path, error)),
        };
        let manifest = Manifest::decode(&text).map_err(|why| CacheError::damaged(&path, why))?;
        if manifest.key != key.bytes() {
            let why = format!(
                "it was published as the form of key {}",
                Digest(manifest.key)
            );
            return Err(CacheError::damaged(&path, why));
        }
        if let Some(why) = manifest.unusable {
            return Ok(Found::Unusable(why));
        }
        let graph_path = directory.join("graph");
        let graph = read_file(&graph_path, MAX_GRAPH_BYTES);
        let graph = graph.map_err(|e| CacheError::io("read", &graph_path, e))?;
        if *blake3::hash(&graph).as_bytes() != manifest.graph {
            return Err(CacheError::damaged(
                &graph_path,
                "its bytes do not have the digest in the manifest",
            ));
        }
        let form = Form::new(self, *key, Bytes::from(graph), manifest);
        form.check_lengths()?;
        self.touch(&path);
        Ok(Found::Form(form))
    }

    /// Records a use. If that fails, the form only loses its place in the order of use.
    fn touch(&self, manifest: &Path) {
        if let Ok(file) = File::options().append(true).open(manifest) {
            let _ = file.set_modified(std::time::SystemTime::now());
        }
    }

    /// Removes a damaged form. Its tensors go with the next [`Cache::collect`].
    pub fn forget(&self, key: &FormKey) {
        if self.is_reader() {
            self.inner.damaged.store(true, Ordering::Relaxed);
            return;
        }
        // Renamed first, so that no process sees a part of it.
        let away = tempfile::Builder::new()
            .prefix("forgotten-")
            .tempdir_in(self.path("tmp"));
        if let Ok(away) = away {
            let _ = fs::rename(self.form_path(key), away.path().join("form"));
        }
    }

    /// The content of a model's files, in order. Files that have not changed since the last call are not read again.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if a file cannot be read.
    pub fn content(&self, files: &[PathBuf]) -> Result<Content, CacheError> {
        let stamps = self.path("stamps");
        let contents = files.iter().map(|file| stamps::content(&stamps, file));
        Ok(Content {
            files: contents.collect::<Result<_, _>>()?,
        })
    }

    /// As [`Cache::content`], but `None` if the files would have to be read and no form here is of files with these
    /// sizes.
    ///
    /// # Errors
    /// As [`Cache::content`].
    pub fn content_if_known(&self, files: &[PathBuf]) -> Result<Option<Content>, CacheError> {
        let stamps = self.path("stamps");
        let looks = files.iter().map(|file| stamps::look(&stamps, file));
        let looks: Vec<RememberedFile> = looks.collect::<Result<_, _>>()?;
        let is_known = looks
            .iter()
            .all(|look| matches!(look, RememberedFile::Known(_)));
        let sizes: Vec<u64> = looks.iter().map(RememberedFile::bytes).collect();
        if !is_known && !self.has_sizes(&sizes) {
            return Ok(None);
        }
        self.content(files).map(Some)
    }

    /// Whether there is a form of files with these sizes.
    fn has_sizes(&self, sizes: &[u64]) -> bool {
        let forms = fs::read_dir(self.path("models")).into_iter().flatten();
        let mut manifests = forms.flatten().filter_map(|form| {
            let file = open_file(&form.path().join("manifest")).ok()?;
            let mut head = Vec::new();
            file.take(MANIFEST_HEAD_BYTES).read_to_end(&mut head).ok()?;
            Some(Manifest::sizes(&String::from_utf8_lossy(&head)))
        });
        manifests.any(|of| of == sizes)
    }
}
