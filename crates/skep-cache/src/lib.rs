//! The disk tier under the tensor store: models in the form that a runtime loads fastest, in a directory, by content.
//!
//! A backend *bakes* a model once: it lets its runtime rewrite the graph, and keeps the rewritten graph, each large
//! tensor and each packed weight. Later loads, of any process, begin with these.
//!
//! ```text
//! <directory>/v1/lock                     held shared while something is made, exclusively while something is removed
//!                models/<key>/manifest    what a form consists of; its time of change is its last use
//!                models/<key>/graph
//!                models/<key>/seen        tensors that were found whole, remembered by size and times
//!                tensors/ab/<digest>      a tensor's bytes, once for all forms that have it
//!                stamps/<hash of a path>  a model file's content, remembered by size and times
//!                making/<key>.lock        held by the process that makes this form
//!                failures/<key>           deaths of processes that made it
//!                turn                     held by the one process that bakes behind the scenes
//!                tmp/bake-*               what is being made, each directory held by the process that publishes it
//! ```
//!
//! A [`FormKey`] is made of everything that the result depends on; which parts these are is the backend's to say. A
//! form is made in a directory of its own, by a process that need not be trusted, and published by one that looks at
//! every byte of it and computed the key itself ([`Claim`]). It is there when its manifest is: that is renamed into
//! place last. Manifest and graph carry their digests, the manifest its key, and all three are checked at every
//! [`Cache::look_up`]; tensors are checked by whoever takes them, the store for those that it publishes and
//! [`Form::map`] and [`Form::map_seen`] for the others, once a process and state of the file. What is damaged is
//! removed ([`Cache::forget`]) and baked again. [`Cache::collect`] holds the directory within its budget; the forms
//! that were used last stay, and with a form go its lock and what is remembered of its model's files. A tenant has a
//! directory of its own in this one ([`Cache::of_tenant`]).

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
    stamps::{FileStamp, RememberedFile},
};

/// The layout of the directory; another one has another name.
const LAYOUT: &str = "v1";

/// The lines about a model's files are in the first bytes of a manifest: room for some dozens.
const MANIFEST_HEAD_BYTES: u64 = 8 << 10;

/// What a cache directory may hold unless its user says otherwise: the forms of dozens of models.
pub const DEFAULT_BUDGET_BYTES: u64 = 32 << 30;

/// A cache directory. Any number of processes may use one.
#[derive(Debug, Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    /// Whose budget counts: of a tenant's part the directory that it is a part of.
    home: PathBuf,
    root: PathBuf,
    budget_bytes: u64,
    is_reader: bool,
    /// The one form that a reader may look at.
    only: Option<FormKey>,
    /// Whether something was damaged and could not be removed.
    damaged: AtomicBool,
    /// Files whose bytes were found to be what their names say.
    verified: Mutex<HashSet<FileStamp>>,
    /// Tenants' parts, by their names.
    parts: Mutex<BTreeMap<String, Cache>>,
}

/// What a model's files hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Of each, in their order.
    files: Vec<FileContent>,
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileContent {
    pub(crate) digest: [u8; 32],
    pub(crate) bytes: u64,
}

impl Content {
    /// One for all of them.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for file in &self.files {
            hasher.update(&file.digest);
        }
        *hasher.finalize().as_bytes()
    }
}

/// What a cache has under a key.
#[derive(Debug)]
pub enum Found {
    /// A form.
    Form(Form),
    /// Somebody tried and found that there is no such form; why.
    Unusable(String),
    /// Nothing.
    Nothing,
}

/// A line of a tensor takes some 200 bytes.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// What protocol buffers bound a message to.
const MAX_GRAPH_BYTES: u64 = 2 << 30;

impl Cache {
    /// Opens a cache directory, and makes it if it is not there: for its owner alone (mode 0700).
    ///
    /// Whoever can change what is in it decides what models answer. So one that is there must belong to this process's
    /// user or to root, and nobody else may write it; except that root may have given a group the right, and that a
    /// sticky one may be anybody's to write, since what a cache makes in it is looked at in the same way. What is above
    /// the directory is not looked at.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when it cannot be made, [`ErrorKind::Unsafe`] when others may change it.
    pub fn open(directory: &Path, budget_bytes: u64) -> Result<Self, CacheError> {
        let cache = Self::over(directory, directory, budget_bytes, None);
        directory::open(cache.directory(), cache.root())?;
        // That something could not be removed is no reason not to serve.
        let _ = staging::remove_left_over(&cache.path("tmp"), false);
        Ok(cache)
    }

    /// One form of a cache directory that another process opened, for reading alone: nothing is made, nothing is noted,
    /// and no other form is looked for. The other process says which files may be read: [`Form::files`].
    #[must_use]
    pub fn reader(directory: &Path, key: FormKey) -> Self {
        Self::over(directory, directory, 0, Some(key))
    }

    fn over(directory: &Path, home: &Path, budget_bytes: u64, only: Option<FormKey>) -> Self {
        Self {
            inner: Arc::new(Inner {
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

    /// What it was opened with.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// The directory of this layout.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// What the directory may hold.
    #[must_use]
    pub fn budget_bytes(&self) -> u64 {
        self.inner.budget_bytes
    }

    /// Whether it is there for reading alone: no form can be made.
    #[must_use]
    pub fn is_reader(&self) -> bool {
        self.inner.is_reader
    }

    /// The one form that this is there to read, whatever model asks.
    #[must_use]
    pub fn only(&self) -> Option<&FormKey> {
        self.inner.only.as_ref()
    }

    /// Whether a reader found something damaged, which somebody else has to mend.
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

    fn verified(&self) -> MutexGuard<'_, HashSet<FileStamp>> {
        lock(&self.inner.verified)
    }

    /// The form under a key, and notes that it was used. One that is damaged is removed, and counts as absent.
    #[must_use]
    pub fn look_up(&self, key: &FormKey) -> Found {
        self.read(key).unwrap_or_else(|error| {
            tracing::warn!("a baked form is not used: {error}");
            self.forget(key);
            Found::Nothing
        })
    }

    /// The form under a key; an error if it is damaged.
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
                "its bytes are not those that were written",
            ));
        }
        let form = Form::new(self, *key, Bytes::from(graph), manifest);
        form.check_lengths()?;
        self.touch(&path);
        Ok(Found::Form(form))
    }

    /// Notes a form's use. That it cannot be noted costs nothing but its place among the others.
    fn touch(&self, manifest: &Path) {
        if let Ok(file) = File::options().append(true).open(manifest) {
            let _ = file.set_modified(std::time::SystemTime::now());
        }
    }

    /// Removes a form, as one that turned out to be damaged; its tensors go with the next [`Cache::collect`].
    pub fn forget(&self, key: &FormKey) {
        if self.is_reader() {
            self.inner.damaged.store(true, Ordering::Relaxed);
            return;
        }
        // Renamed away first, so that nobody sees a part of it.
        let away = tempfile::Builder::new()
            .prefix("forgotten-")
            .tempdir_in(self.path("tmp"));
        if let Ok(away) = away {
            let _ = fs::rename(self.form_path(key), away.path().join("form"));
        }
    }

    /// The content of a model's files, in their order. Files that have not changed since they were last read are not
    /// read again.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when a file cannot be read.
    pub fn content(&self, files: &[PathBuf]) -> Result<Content, CacheError> {
        let stamps = self.path("stamps");
        let contents = files.iter().map(|file| stamps::content(&stamps, file));
        Ok(Content {
            files: contents.collect::<Result<_, _>>()?,
        })
    }

    /// [`Cache::content`], but `None` where files would have to be read whose form cannot be here: none that is has
    /// files of the same sizes.
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

    /// Whether there is a form of files of these sizes.
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
