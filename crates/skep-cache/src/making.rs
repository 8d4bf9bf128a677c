//! Making a form: in a directory of its maker's, which may be another process, and published by a
//! process that does not trust the maker.
//!
//! ```text
//! Cache::begin(key, content) -> Claim     this process makes the form of this key, and nobody else does
//!   Making::new(claim.directory())        here, or in a process that can reach nothing else
//!     add, add_file, finish
//!   claim.publish()                       looks at every byte, and puts the form in its place
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

/// How long publishing waits for another process that cleans the cache up, which takes it milliseconds.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// How often it looks meanwhile.
const LOOK: Duration = Duration::from_millis(5);

/// Who makes a form.
#[derive(Debug)]
pub enum Begun {
    /// The caller.
    Claimed(Claim),
    /// Another one did, in the meantime.
    Found(Found),
    /// Another one does just now.
    Busy,
}

/// The right to make the form of a key, and a directory to make it in. Dropped without [`Claim::publish`], it leaves
/// nothing.
#[derive(Debug)]
pub struct Claim {
    cache: Cache,
    key: FormKey,
    content: Content,
    staging: Staging,
    /// Of this key: others wait for it. Let go last.
    _alone: File,
}

/// The turn of the one process on a node that bakes behind the scenes.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held, not looked at")] File);

impl Cache {
    /// Begins to make a form of files of this content. Blocks while another one makes the same.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) when nothing can be written.
    pub fn begin(&self, key: &FormKey, content: Content) -> Result<Begun, CacheError> {
        let alone = self.lock_file(&format!("making/{key}.lock"), File::lock)?;
        self.claim(key, content, alone)
    }

    /// [`Cache::begin`] that does not wait for another one: [`Begun::Busy`].
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

    /// Takes the turn of baking behind the scenes, among all processes that use this cache; `None` while another has
    /// it.
    ///
    /// # Errors
    /// When nothing can be written.
    pub fn try_turn(&self) -> Result<Option<Turn>, CacheError> {
        // One for all tenants.
        let home = Self::over(self.home(), self.home(), self.budget_bytes(), None);
        let taken = home.try_lock_file("turn", File::try_lock)?;
        Ok(taken.map(Turn))
    }

    /// [`Cache::lock_file`] with a lock that may be taken: then `None`.
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
        let mut locked = || -> io::Result<File> {
            loop {
                let file = File::options()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(&path)?;
                lock(&file)?;
                // While this process waited the file may have been removed: whoever comes now locks another one.
                if directory::is_at(&file, &path)? {
                    return Ok(file);
                }
            }
        };
        locked().map_err(|error| CacheError::io("lock", &path, error))
    }
}

impl Claim {
    /// Where the form is to be made.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.staging.path()
    }

    /// What the form will be found by.
    #[must_use]
    pub const fn key(&self) -> &FormKey {
        &self.key
    }

    /// A maker in this process.
    #[must_use]
    pub fn making(&self) -> Making {
        Making::new(self.directory(), self.cache.budget_bytes())
    }

    /// Looks at all that was made, and puts it in its place, under the key that this claim is of. Whoever made it must
    /// have ended: nothing may write into the directory any more.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`](crate::ErrorKind::Refused) for anything but a whole form or the reason why there is none,
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) when it cannot be moved.
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

    /// Moves a tensor into the cache, unless it is there already: others may have mapped that one. One that is damaged
    /// is replaced.
    fn move_tensor(&self, tensor: &Wanted) -> Result<(), CacheError> {
        let from = self
            .directory()
            .join(TENSORS)
            .join(tensor.digest.to_string());
        let to = self.cache.tensor_path(&tensor.digest);
        if is_whole(&to, tensor).unwrap_or(false) {
            return Ok(());
        }
        let moved = || -> io::Result<()> {
            if let Some(parent) = to.parent() {
                directory::make(parent)?;
            }
            fs::rename(&from, &to)
        };
        moved().map_err(|error| CacheError::io("write", &to, error))
    }

    /// Puts a form's own directory into its place.
    fn place(&self, manifest: &Manifest, graph: Option<&[u8]>) -> Result<(), CacheError> {
        let form = self.directory().join("form");
        let place = self.cache.form_path(&self.key);
        let placed = || -> io::Result<()> {
            directory::make(&form)?;
            if let Some(graph) = graph {
                fs::write(form.join(GRAPH), graph)?;
            }
            fs::write(form.join(MANIFEST), manifest.encode())?;
            if place.exists() {
                // It is no form: it may have lost its manifest.
                self.cache.forget(&self.key);
            }
            fs::rename(&form, &place)
        };
        placed().map_err(|error| CacheError::io("write", &place, error))
    }
}

/// Whether a file has the bytes of this tensor and no others.
fn is_whole(path: &Path, tensor: &Wanted) -> io::Result<bool> {
    let file = open_file(path)?;
    if file.metadata()?.len() != tensor.length {
        return Ok(false);
    }
    let found = Digest::of_file(&tensor.description, &file, tensor.length)?;
    Ok(found == tensor.digest)
}

/// A form that is being made in a directory.
#[derive(Debug)]
pub struct Making {
    directory: PathBuf,
    budget_bytes: u64,
    manifest: Manifest,
    /// Of the parts so far, once each.
    tensors: BTreeSet<Digest>,
    bytes: u64,
}

impl Making {
    /// Makes a form of at most `budget_bytes` in the directory of a [`Claim`], of another process perhaps.
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

    /// A directory for what the runtime writes on the way; it goes when the form is finished.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.directory.join(SCRATCH)
    }

    /// Adds a tensor, and says what it is called; its bytes are written.
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
        if self.is_new(&tensor)? {
            let path = self.path(&tensor);
            let written = File::create_new(&path).and_then(|mut file| file.write_all(bytes));
            written.map_err(|error| CacheError::io("write", &path, error))?;
        }
        self.push(role, name, &tensor);
        Ok(tensor)
    }

    /// [`Making::add`] with bytes that are those of a file in [`Making::scratch`], which becomes the tensor's.
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
    /// When it cannot be opened.
    pub fn open(&self, tensor: &Wanted) -> Result<File, CacheError> {
        let path = self.path(tensor);
        open_file(&path).map_err(|error| CacheError::io("read", &path, error))
    }

    /// Counts a tensor that is not one of the parts yet.
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

    /// Writes what is left: the graph's bytes, and what the backend wants to know again.
    ///
    /// # Errors
    /// When it cannot be written.
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

    /// Writes that there is no such form, so that nobody tries again.
    ///
    /// # Errors
    /// When it cannot be written.
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
