//! The daemon: a socket for each tenant, a thread for each connection.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{FlockOperation, flock},
    net::sockopt::socket_peercred,
    process::geteuid,
};

use crate::{
    StoreError, StoreOptions, Tenant,
    local::LocalStores,
    rights::Rights,
    server::{STACK_BYTES, refuse, serve},
    tenant_store::{HolderSession, TenantStore},
    wire::Connection,
};

/// How long nobody is let in after the system had no descriptor, or no thread, for somebody.
const PAUSE: Duration = Duration::from_millis(100);

/// Gives up idle tensors of a daemon, from any thread: see [`Store::relieve`](crate::Store::relieve).
#[derive(Debug, Clone)]
pub struct Reliever(Arc<LocalStores>);

impl Reliever {
    /// Memory is short. Bytes that went.
    pub fn relieve(&self) -> u64 {
        self.0.relieve()
    }
}

/// Stores of tenants, behind sockets in a directory.
#[derive(Debug)]
pub struct Daemon {
    doors: Vec<TenantSocket>,
    local: Arc<LocalStores>,
    stopper: Stopper,
    stopped: UnixStream,
}

/// Ends a daemon, from any thread.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<(AtomicBool, UnixStream)>);

impl Stopper {
    /// Lets nobody in any more and ends every connection; [`Daemon::run`] returns then.
    pub fn stop(&self) {
        self.0.0.store(true, Ordering::Release);
        // Whoever polls the other end sees that this one is shut.
        let _ = self.0.1.shutdown(std::net::Shutdown::Both);
    }

    fn is_stopped(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }
}

/// A tenant's socket.
#[derive(Debug)]
struct TenantSocket {
    store: Arc<TenantStore>,
    listener: UnixListener,
    path: PathBuf,
    /// Locked for as long as the daemon lives: whoever has it owns the socket.
    _lock: File,
}

impl Drop for TenantSocket {
    fn drop(&mut self) {
        // Somebody may have tidied up.
        let _ = fs::remove_file(&self.path);
    }
}

impl Daemon {
    /// Opens a socket for each tenant in `directory`, which is made if it is not there. Clients wait until [`Self::run`].
    ///
    /// # Errors
    /// [`StoreError::Serve`] if the directory is not this user's alone, or if a daemon serves one of the tenants there.
    /// The socket of one that died is replaced.
    pub fn bind(
        directory: &Path,
        tenants: &[Tenant],
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        own_directory(directory)?;
        let window = options.adoption_window;
        let local = LocalStores::new(options, window);
        let doors = tenants.iter().map(|tenant| {
            let path = tenant.socket(directory);
            let (lock, listener) = open(&path)?;
            Ok(TenantSocket {
                store: local.store(tenant)?,
                listener,
                path,
                _lock: lock,
            })
        });
        let doors = doors.collect::<Result<Vec<TenantSocket>, StoreError>>()?;
        let (stop, stopped) = UnixStream::pair().map_err(|e| cannot(directory, e))?;
        Ok(Self {
            doors,
            local,
            stopper: Stopper(Arc::new((AtomicBool::new(false), stop))),
            stopped,
        })
    }

    /// The sockets.
    #[must_use]
    pub fn sockets(&self) -> Vec<&Path> {
        self.doors.iter().map(|door| &*door.path).collect()
    }

    /// What gives memory back when it is short.
    #[must_use]
    pub fn reliever(&self) -> Reliever {
        Reliever(Arc::clone(&self.local))
    }

    /// What ends it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Serves until it is stopped, and removes its sockets.
    ///
    /// # Errors
    /// [`StoreError::Serve`] if the system does not let it wait for clients.
    pub fn run(self) -> Result<(), StoreError> {
        let guests = Connections::default();
        thread::scope(|scope| {
            let outcome = self.let_in(|session, stream| {
                let stream = Arc::new(Connection::new(stream));
                let number = guests.enter(&stream);
                let guest = &guests;
                let serving = move || {
                    // The client was told what was wrong.
                    let _ = serve(&session, &stream, Rights::All);
                    guest.leave(number);
                };
                let thread = thread::Builder::new()
                    .name("store connection".to_owned())
                    .stack_size(STACK_BYTES);
                let started = thread.spawn_scoped(scope, serving).map(|_| ());
                if started.is_err() {
                    guests.leave(number);
                }
                started
            });
            guests.send_away();
            outcome
        })
    }

    fn let_in(
        &self,
        mut guest: impl FnMut(HolderSession, UnixStream) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        while !self.stopper.is_stopped() {
            let mut watched: Vec<PollFd<'_>> = self
                .doors
                .iter()
                .map(|door| PollFd::new(&door.listener, PollFlags::IN))
                .collect();
            watched.push(PollFd::new(&self.stopped, PollFlags::IN));
            match poll(&mut watched, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(cannot(Path::new("poll"), error)),
            }
            for door in &self.doors {
                if door.open(&mut guest).is_err() {
                    thread::sleep(PAUSE);
                }
            }
        }
        Ok(())
    }
}

impl TenantSocket {
    /// Lets one client in, if there is one.
    fn open(
        &self,
        guest: &mut impl FnMut(HolderSession, UnixStream) -> io::Result<()>,
    ) -> io::Result<()> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(false)?;
        // The socket's mode says the same; of another user's root, or after a change of modes, this is what holds.
        if socket_peercred(&stream)?.uid != geteuid() {
            return Ok(());
        }
        match self.store.join() {
            Ok(session) => guest(session, stream),
            Err(error) => {
                refuse(&Connection::new(stream), &error);
                Ok(())
            }
        }
    }
}

/// Connections that are being served, for ending them.
#[derive(Debug, Default)]
struct Connections(Mutex<(u64, HashMap<u64, Arc<Connection>>)>);

impl Connections {
    fn enter(&self, connection: &Arc<Connection>) -> u64 {
        let mut guests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guests.0 += 1;
        let number = guests.0;
        guests.1.insert(number, Arc::clone(connection));
        number
    }

    fn leave(&self, number: u64) {
        let mut guests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guests.1.remove(&number);
    }

    fn send_away(&self) {
        let guests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guests.1.values().for_each(|guest| guest.shut_down());
    }
}

fn cannot(path: &Path, reason: impl ToString) -> StoreError {
    StoreError::Serve {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// Makes the directory, or makes sure that it is nobody else's.
fn own_directory(directory: &Path) -> Result<(), StoreError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(directory)
        .map_err(|e| cannot(directory, e))?;
    let found = fs::metadata(directory).map_err(|e| cannot(directory, e))?;
    let own = geteuid().as_raw();
    if found.uid() != own {
        return Err(cannot(
            directory,
            format!("it belongs to user {}, expected user {own}", found.uid()),
        ));
    }
    let mode = found.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(cannot(
            directory,
            format!(
                "it has mode {mode:04o}, expected 0700\n  try: chmod 700 {}",
                directory.display()
            ),
        ));
    }
    Ok(())
}

/// Takes a socket's lock and opens the socket; one that lies there is a dead daemon's.
fn open(path: &Path) -> Result<(File, UnixListener), StoreError> {
    let lock_path = path.with_extension("lock");
    let lock = File::create(&lock_path).map_err(|e| cannot(&lock_path, e))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| cannot(path, "a daemon serves there already"))?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(path, error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(|e| cannot(path, e))?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|e| cannot(path, e))?;
    listener
        .set_nonblocking(true)
        .map_err(|e| cannot(path, e))?;
    Ok((lock, listener))
}
