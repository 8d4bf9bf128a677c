//! Makes forms. The maker, which may be another process, works in a staging directory; a process that does not trust it
//! publishes the form.
//!
//! ```text
//! Cache::begin(key, content) -> Claim     this process alone makes the form of this key
//!   Making::new(claim.directory())        in this process, or in one that can reach nothing else
//!     add, add_file, finish
//!   claim.publish()                       checks every byte, and moves the form into place
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use skep_host::open_file;
use skep_store::{Description, Digest, Wanted};

use crate::{
    Cache, CacheError, Content, Form, FormKey, FormTensor, Found, Role, directory,
    manifest::Manifest,
    staging::{self, GRAPH, MANIFEST, SCRATCH, Staged, Staging, TENSORS},
};

/// How long publishing waits for another process that collects, which takes milliseconds.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The pause between two attempts.
const LOOK: Duration = Duration::from_millis(5);

/// The outcome of an attempt to make a form.
#[derive(Debug)]
pub enum Begun {
    /// The caller makes it.
    Claimed(Claim),
    /// Another process has made it meanwhile.
    Found(Found),
    /// Another process is making it.
    Busy,
}

/// The right to make the form of a key, and a staging directory for it. Removes the directory if it is dropped without
/// [`Claim::publish`].
#[derive(Debug)]
pub struct Claim {
    cache: Cache,
    key: FormKey,
    content: Content,
    staging: Staging,
    /// The lock of this key, for which others wait. Released last.
    _alone: File,
}

/// The turn of the one process on a node that bakes in the background.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held, never read")] File);

impl Cache {
    /// Begins to make the form of a key, for files of this content. Blocks while another process makes it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the directory cannot be written.
    pub fn begin(&self, key: &FormKey, content: Content) -> Result<Begun, CacheError> {
        let alone = self.lock_file(&format!("making/{key}.lock"), File::lock)?;
        self.claim(key, content, alone)
    }

    /// As [`Cache::begin`], but does not wait for another process: [`Begun::Busy`].
    ///
    /// # Errors
    /// As [`Cache::begin`].
    pub fn try_begin(&self, key: &FormKey, content: Content) -> Result<Begun, CacheError> {
        match self.try_lock_file(&format!("making/{key}.lock"), File::try_lock)? {
            Some(alone) => self.claim(key, content, alone),
            None => Ok(Begun::Busy),
        }
    }

    fn claim(&self, key: &FormKey, content: Content, alone: File) -> Result<Begun, CacheError> {
        match self.look_up(key) {
            Found::Nothing => {}
            found => return Ok(Begun::Found(found)),
        }
        Ok(Begun::Claimed(Claim {
            cache: self.clone(),
            key: *key,
            content,
            staging: Staging::new(&self.path("tmp"))?,
            _alone: alone,
        }))
    }

    /// Takes the turn of baking in the background, among all processes that use this cache; `None` while another has
    /// it.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn try_turn(&self) -> Result<Option<Turn>, CacheError> {
        // One for all tenants.
        let home = Self::over(self.home(), self.home(), self.budget_bytes(), None);
        let taken = home.try_lock_file("turn", File::try_lock)?;
        Ok(taken.map(Turn))
    }

    /// As [`Cache::lock_file`], but `None` while another process holds the lock.
    pub(crate) fn try_lock_file(
        &self,
        name: &str,
        try_lock: impl Fn(&File) -> Result<(), fs::TryLockError>,
    ) -> Result<Option<File>, CacheError> {
        let mut is_taken = false;
        let lock = |file: &File| match try_lock(file) {
            Ok(()) => Ok(()),
            Err(fs::TryLockError::WouldBlock) => {
                is_taken = true;
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(fs::TryLockError::Error(error)) => Err(error),
        };
        let locked = self.lock_file(name, lock);
        if is_taken {
            return Ok(None);
        }
        locked.map(Some)
    }

    /// Opens a file of the directory and locks it.
    pub(crate) fn lock_file(
        &self,
        name: &str,
        mut lock: impl FnMut(&File) -> io::Result<()>,
    ) -> Result<File, CacheError> {
        let path = self.path(name);
        locked(&path, &mut lock).map_err(|error| CacheError::io("lock", &path, error))
    }
}

/// Opens a file, which is created if necessary, and locks it.
fn locked(path: &Path, lock: &mut impl FnMut(&File) -> io::Result<()>) -> io::Result<File> {
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        lock(&file)?;
        // The file may have been removed during the wait. A newcomer would then lock a new one.
        if directory::is_at(&file, path)? {
            return Ok(file);
        }
    }
}

impl Claim {
    /// The staging directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.staging.path()
    }

    /// The key of the form.
    #[must_use]
    pub const fn key(&self) -> &FormKey {
        &self.key
    }

    /// Starts making the form in this process.
    #[must_use]
    pub fn making(&self) -> Making {
        Making::new(self.directory(), self.cache.budget_bytes())
    }

    /// Checks everything in the staging directory, and publishes the form under this claim's key. The maker must have
    /// ended: nothing may write into the directory any more.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`](crate::ErrorKind::Refused) for anything but a complete form or the reason why there
    /// cannot be one, [`ErrorKind::Io`](crate::ErrorKind::Io) if it cannot be moved.
    pub fn publish(self) -> Result<Found, CacheError> {
        let Staged {
            mut manifest,
            graph,
        } = staging::check(self.directory(), self.cache.budget_bytes())?;
        // The publisher sets these itself, and ignores what the maker wrote.
        manifest.key = self.key.bytes();
        manifest.files.clone_from(&self.content.files);
        // Keeps tensors that no manifest names yet from being removed.
        let _shared = self.lock_shared()?;
        if let Some(why) = &manifest.unusable {
            let why = why.clone();
            let manifest = Manifest {
                key: manifest.key,
                files: manifest.files,
                unusable: manifest.unusable,
                ..Manifest::default()
            };
            self.place(&manifest, None)?;
            return Ok(Found::Unusable(why));
        }
        let tensors: BTreeMap<Digest, &Wanted> = manifest
            .parts
            .iter()
            .map(|part| (part.tensor.digest, &part.tensor))
            .collect();
        for tensor in tensors.values() {
            self.move_tensor(tensor)?;
        }
        self.place(&manifest, Some(&graph))?;
        self.cache.forget_deaths(&self.key);
        Ok(Found::Form(Form::new(
            &self.cache,
            self.key,
            graph.into(),
            manifest,
        )))
    }

    fn lock_shared(&self) -> Result<File, CacheError> {
        let began = Instant::now();
        loop {
            if let Some(shared) = self.cache.try_lock_file("lock", File::try_lock_shared)? {
                return Ok(shared);
            }
            if began.elapsed() > MAX_WAIT {
                let error = io::Error::other(format!(
                    "another process has had it for {} s",
                    MAX_WAIT.as_secs()
                ));
                return Err(CacheError::io("lock", &self.cache.path("lock"), error));
            }
            thread::sleep(LOOK);
        }
    }

    /// Moves a tensor into the cache, unless an intact one is there, which others may have mapped. Replaces a damaged
    /// one.
    fn move_tensor(&self, tensor: &Wanted) -> Result<(), CacheError> {
        let from = self
            .directory()
            .join(TENSORS)
            .join(tensor.digest.to_string());
        let to = self.cache.tensor_path(&tensor.digest);
        if is_whole(&to, tensor).unwrap_or(false) {
            return Ok(());
        }
        let made = to.parent().map_or(Ok(()), directory::make);
        made.and_then(|()| fs::rename(&from, &to))
            .map_err(|error| CacheError::io("write", &to, error))
    }

    /// Moves a form's directory into place.
    fn place(&self, manifest: &Manifest, graph: Option<&[u8]>) -> Result<(), CacheError> {
        let form = self.directory().join("form");
        let place = self.cache.form_path(&self.key);
        self.try_place(&form, &place, manifest, graph)
            .map_err(|error| CacheError::io("write", &place, error))
    }

    fn try_place(
        &self,
        form: &Path,
        place: &Path,
        manifest: &Manifest,
        graph: Option<&[u8]>,
    ) -> io::Result<()> {
        directory::make(form)?;
        if let Some(graph) = graph {
            fs::write(form.join(GRAPH), graph)?;
        }
        fs::write(form.join(MANIFEST), manifest.encode())?;
        if place.exists() {
            // It is not a valid form: its manifest may be missing.
            self.cache.forget(&self.key);
        }
        fs::rename(form, place)
    }
}

/// Whether a file has exactly this tensor's bytes.
fn is_whole(path: &Path, tensor: &Wanted) -> io::Result<bool> {
    let file = open_file(path)?;
    if file.metadata()?.len() != tensor.length {
        return Ok(false);
    }
    let found = Digest::of_file(&tensor.description, &file, tensor.length)?;
    Ok(found == tensor.digest)
}

/// A form in the making.
#[derive(Debug)]
pub struct Making {
    directory: PathBuf,
    budget_bytes: u64,
    manifest: Manifest,
    /// The distinct tensors so far.
    tensors: BTreeSet<Digest>,
    bytes: u64,
}

impl Making {
    /// Makes a form of at most `budget_bytes` in the directory of a [`Claim`], which another process may hold.
    #[must_use]
    pub fn new(directory: &Path, budget_bytes: u64) -> Self {
        Self {
            directory: directory.to_owned(),
            budget_bytes,
            manifest: Manifest::default(),
            tensors: BTreeSet::new(),
            bytes: 0,
        }
    }

    /// A directory for temporary files of the runtime. It is removed when the form is finished.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.directory.join(SCRATCH)
    }

    /// Adds a tensor, writes its bytes, and returns its identity.
    ///
    /// # Errors
    /// If they cannot be written, or the form exceeds the cache's budget.
    pub fn add(
        &mut self,
        role: Role,
        name: &str,
        description: Description,
        bytes: &[u8],
    ) -> Result<Wanted, CacheError> {
        let tensor = Wanted::of(description, bytes);
        if self.is_new(&tensor)? {
            let path = self.path(&tensor);
            let written = File::create_new(&path).and_then(|mut file| file.write_all(bytes));
            written.map_err(|error| CacheError::io("write", &path, error))?;
        }
        self.push(role, name, &tensor);
        Ok(tensor)
    }

    /// As [`Making::add`], with a file in [`Making::scratch`] that holds the bytes and becomes the tensor's file.
    ///
    /// # Errors
    /// As [`Making::add`].
    pub fn add_file(
        &mut self,
        role: Role,
        name: &str,
        description: Description,
        (path, bytes): (&Path, &[u8]),
    ) -> Result<Wanted, CacheError> {
        let tensor = Wanted::of(description, bytes);
        let moved = match self.is_new(&tensor)? {
            true => fs::rename(path, self.path(&tensor)),
            false => fs::remove_file(path),
        };
        moved.map_err(|error| CacheError::io("move", path, error))?;
        self.push(role, name, &tensor);
        Ok(tensor)
    }

    fn push(&mut self, role: Role, name: &str, tensor: &Wanted) {
        self.manifest.parts.push(FormTensor {
            role,
            name: name.to_owned(),
            tensor: tensor.clone(),
        });
    }

    fn path(&self, tensor: &Wanted) -> PathBuf {
        self.directory.join(TENSORS).join(tensor.digest.to_string())
    }

    /// Opens the file of a tensor that was added.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(&self, tensor: &Wanted) -> Result<File, CacheError> {
        let path = self.path(tensor);
        open_file(&path).map_err(|error| CacheError::io("read", &path, error))
    }

    /// Whether this tensor is new; counts its bytes if so.
    fn is_new(&mut self, tensor: &Wanted) -> Result<bool, CacheError> {
        let is_new = self.tensors.insert(tensor.digest);
        if is_new {
            self.count(tensor.length)?;
        }
        Ok(is_new)
    }

    fn count(&mut self, more: u64) -> Result<(), CacheError> {
        self.bytes += more;
        let (bytes, budget_bytes) = (self.bytes, self.budget_bytes);
        if bytes > budget_bytes {
            return Err(CacheError::TooLarge {
                bytes,
                budget_bytes,
            });
        }
        Ok(())
    }

    /// Finishes the form: writes the graph and the backend's notes.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(
        mut self,
        graph: &[u8],
        notes: BTreeMap<String, String>,
    ) -> Result<(), CacheError> {
        self.count(graph.len() as u64)?;
        self.manifest.graph = *blake3::hash(graph).as_bytes();
        self.manifest.notes = notes;
        self.write(GRAPH, graph)?;
        self.write_manifest()
    }

    /// Records that the model cannot be baked, so that it is not tried again.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn unusable(mut self, why: &str) -> Result<(), CacheError> {
        self.manifest = Manifest {
            unusable: Some(why.to_owned()),
            ..Manifest::default()
        };
        self.write_manifest()
    }

    fn write_manifest(&self) -> Result<(), CacheError> {
        let scratch = self.scratch();
        let removed = fs::remove_dir_all(&scratch);
        removed.map_err(|error| CacheError::io("remove", &scratch, error))?;
        self.write(MANIFEST, self.manifest.encode().as_bytes())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CacheError> {
        let path = self.directory.join(name);
        fs::write(&path, bytes).map_err(|error| CacheError::io("write", &path, error))
    }
}
