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
        Arc, Mutex,
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
use skep_host::lock;

use crate::{
    StoreError, StoreOptions, Tenant,
    local::LocalStores,
    rights::Rights,
    server::{STACK_BYTES, refuse, serve},
    tenant_store::{HolderSession, TenantStore},
    wire::Connection,
};

/// The pause before new connections are accepted after the system had no descriptor or thread for one.
const PAUSE: Duration = Duration::from_millis(100);

/// Drops idle tensors of a daemon, from any thread: see [`Store::relieve`](crate::Store::relieve).
#[derive(Debug, Clone)]
pub struct Reliever(Arc<LocalStores>);

impl Reliever {
    /// Drops idle tensors because memory is short. Returns their bytes.
    pub fn relieve(&self) -> u64 {
        self.0.relieve()
    }
}

/// The stores of tenants, served on sockets in a directory.
#[derive(Debug)]
pub struct Daemon {
    sockets: Vec<TenantSocket>,
    local: Arc<LocalStores>,
    stopper: Stopper,
    stopped: UnixStream,
}

/// Ends a daemon, from any thread.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<(AtomicBool, UnixStream)>);

impl Stopper {
    /// Accepts no more connections and ends the existing ones; [`Daemon::run`] then returns.
    pub fn stop(&self) {
        self.0.0.store(true, Ordering::Release);
        // The accepting thread polls the other end.
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
    /// Locked for as long as the daemon lives: the holder of the lock owns the socket.
    _lock: File,
}

impl Drop for TenantSocket {
    fn drop(&mut self) {
        // It may have been removed already.
        let _ = fs::remove_file(&self.path);
    }
}

impl Daemon {
    /// Opens a socket for each tenant in `directory`, which is created if necessary. Clients wait until [`Self::run`].
    ///
    /// # Errors
    /// [`StoreError::Serve`] if others can use the directory, or if a daemon serves one of the tenants there. The
    /// socket of a dead daemon is replaced.
    pub fn bind(
        directory: &Path,
        tenants: &[Tenant],
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        own_directory(directory)?;
        let window = options.adoption_window;
        let local = LocalStores::new(options, window);
        let sockets = tenants.iter().map(|tenant| {
            let path = tenant.socket(directory);
            let (lock, listener) = open(&path)?;
            Ok(TenantSocket {
                store: local.store(tenant)?,
                listener,
                path,
                _lock: lock,
            })
        });
        let sockets = sockets.collect::<Result<Vec<TenantSocket>, StoreError>>()?;
        let (stop, stopped) = UnixStream::pair().map_err(|e| cannot(directory, e))?;
        Ok(Self {
            sockets,
            local,
            stopper: Stopper(Arc::new((AtomicBool::new(false), stop))),
            stopped,
        })
    }

    /// The sockets.
    #[must_use]
    pub fn sockets(&self) -> Vec<&Path> {
        self.sockets.iter().map(|socket| &*socket.path).collect()
    }

    /// A handle that drops idle tensors when memory is short.
    #[must_use]
    pub fn reliever(&self) -> Reliever {
        Reliever(Arc::clone(&self.local))
    }

    /// A handle that ends the daemon.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Serves clients until it is stopped, and then removes its sockets.
    ///
    /// # Errors
    /// [`StoreError::Serve`] if the system does not let it wait for clients.
    pub fn run(self) -> Result<(), StoreError> {
        let guests = ClientConnections::default();
        thread::scope(|scope| {
            let outcome = self.accept(|session, stream| {
                let stream = Arc::new(Connection::new(stream));
                let number = guests.enter(&stream);
                let guest = &guests;
                let serving = move || {
                    // The client was told about errors.
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
            guests.shut_down_all();
            outcome
        })
    }

    fn accept(
        &self,
        mut serve: impl FnMut(HolderSession, UnixStream) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        while !self.stopper.is_stopped() {
            let mut watched: Vec<PollFd<'_>> = self
                .sockets
                .iter()
                .map(|socket| PollFd::new(&socket.listener, PollFlags::IN))
                .collect();
            watched.push(PollFd::new(&self.stopped, PollFlags::IN));
            match poll(&mut watched, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(cannot(Path::new("poll"), error)),
            }
            for socket in &self.sockets {
                if socket.accept(&mut serve).is_err() {
                    thread::sleep(PAUSE);
                }
            }
        }
        Ok(())
    }
}

impl TenantSocket {
    /// Accepts one client, if there is one.
    fn accept(
        &self,
        serve: &mut impl FnMut(HolderSession, UnixStream) -> io::Result<()>,
    ) -> io::Result<()> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(false)?;
        // The socket's mode says the same; this check also holds against another user's root, and after a change of
        // modes.
        if socket_peercred(&stream)?.uid != geteuid() {
            return Ok(());
        }
        match self.store.join() {
            Ok(session) => serve(session, stream),
            Err(error) => {
                refuse(&Connection::new(stream), &error);
                Ok(())
            }
        }
    }
}

/// The connections that are being served.
#[derive(Debug, Default)]
struct ClientConnections(Mutex<(u64, HashMap<u64, Arc<Connection>>)>);

impl ClientConnections {
    fn enter(&self, connection: &Arc<Connection>) -> u64 {
        let mut guests = lock(&self.0);
        guests.0 += 1;
        let number = guests.0;
        guests.1.insert(number, Arc::clone(connection));
        number
    }

    fn leave(&self, number: u64) {
        let mut guests = lock(&self.0);
        guests.1.remove(&number);
    }

    fn shut_down_all(&self) {
        let guests = lock(&self.0);
        guests.1.values().for_each(|guest| guest.shut_down());
    }
}

fn cannot(path: &Path, reason: impl ToString) -> StoreError {
    StoreError::Serve {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// Creates the directory, or checks that only this user can use it.
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

/// Takes a socket's lock and opens the socket. An existing socket belongs to a dead daemon.
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
