//! How worker processes come to be: what they need to load a model, kept as long as the model.

use std::{
    env,
    ffi::OsString,
    fmt,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
};

use prost::Message;
use skep_backend::{Backend, BackendError, ErrorKind, LoadRequest, Model};

use crate::{
    channel::Channel,
    message::{Answer, Load, Loaded, Request},
    model::{SandboxedModel, Worker},
    process::Process,
};

/// Variables of the server's environment that its workers get as well: where the dynamic loader looks for libraries, and
/// how much a panic says.
const VARIABLES: [&str; 3] = ["LD_LIBRARY_PATH", "RUST_BACKTRACE", "GLIBC_TUNABLES"];

/// Opens a connection to the tensor store, for one worker process.
pub type ConnectStore = Arc<dyn Fn() -> io::Result<OwnedFd> + Send + Sync>;

/// How models in processes of their own are loaded.
#[derive(Clone, Default)]
pub struct Sandboxes {
    store: Option<ConnectStore>,
}

impl fmt::Debug for Sandboxes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandboxes")
            .field("has_store", &self.store.is_some())
            .finish()
    }
}

impl Sandboxes {
    /// The same, with a tensor store to which each worker process gets a connection.
    #[must_use]
    pub fn with_store(self, connect: ConnectStore) -> Self {
        Self {
            store: Some(connect),
        }
    }

    /// Loads a model in a first worker process, with the backend that `backend` is here. The model's instances are that
    /// process and further ones.
    ///
    /// # Errors
    /// Those of [`Backend::load`], and [`ErrorKind::Internal`] when a process cannot be started or ends before it has
    /// loaded the model.
    pub fn load(
        &self,
        backend: &dyn Backend,
        request: &LoadRequest<'_>,
    ) -> Result<Arc<dyn Model>, BackendError> {
        let path = request.file.path();
        let file = backend.needs_file().then(|| File::open(path));
        let file = file.transpose().map_err(|error| {
            let text = format!("cannot read `{}`: {error}", path.display());
            BackendError::new(ErrorKind::InvalidModel, text)
        })?;
        let config = request.config;
        let execution = config.execution();
        let library = backend.library();
        let starter = Starter {
            load: Request::Load(Box::new(Load {
                backend: backend.name().to_owned(),
                library: library.map(|path| path.as_os_str().as_bytes().to_vec()),
                model: config.name().to_string(),
                path: path.as_os_str().as_bytes().to_vec(),
                has_store: self.store.is_some(),
                threads: u32::try_from(request.threads.get()).unwrap_or(u32::MAX),
                intra_op_threads: execution.intra_op_threads,
                inter_op_threads: execution.inter_op_threads,
                config: config.proto().encode_to_vec(),
            })),
            model: config.name().to_string(),
            file,
            environment: VARIABLES
                .iter()
                .filter_map(|name| Some((OsString::from(name), env::var_os(name)?)))
                .collect(),
            store: self.store.clone(),
        };
        SandboxedModel::load(starter).map(|model| Arc::new(model) as Arc<dyn Model>)
    }
}

/// Everything that a worker process of one model needs at its start.
pub(crate) struct Starter {
    load: Request,
    pub(crate) model: String,
    /// Held open: a worker that starts later loads the same file, whatever then has its name.
    file: Option<File>,
    environment: Vec<(OsString, OsString)>,
    store: Option<ConnectStore>,
}

impl Starter {
    /// Starts a worker process and waits until it has loaded the model.
    ///
    /// # Errors
    /// As [`Sandboxes::load`].
    pub(crate) fn start(&self) -> Result<(Worker, Loaded), BackendError> {
        let failed = |what: &str, error: io::Error| {
            let text = format!("{what} of model `{}`: {error}", self.model);
            BackendError::new(ErrorKind::Internal, text)
        };
        let store = self.store.as_ref().map(|connect| connect()).transpose();
        let store =
            store.map_err(|e| failed("cannot reach the tensor store for a worker process", e))?;
        let (mut process, socket) = Process::start(&self.model, &self.environment)
            .map_err(|e| failed("cannot start a worker process", e))?;
        let mut channel = Channel::new(socket);
        let file = self.file.as_ref().map(File::as_fd);
        let descriptors: Vec<BorrowedFd<'_>> = file
            .into_iter()
            .chain(store.as_ref().map(OwnedFd::as_fd))
            .collect();
        let sent = channel.send(|writer| self.load.encode(writer), &descriptors);
        let answer = match sent.and_then(|()| channel.receive()) {
            Ok(Some(message)) => Answer::decode(message),
            // A message that is too long is this side's failure.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(failed("cannot start a worker process", error));
            }
            Ok(None) | Err(_) => {
                let text = format!(
                    "the worker process of model `{}` ended {} while it loaded the model",
                    self.model,
                    process.bury()
                );
                return Err(BackendError::new(ErrorKind::Internal, text));
            }
        };
        match answer {
            Ok(Answer::Loaded(loaded)) => Ok((Worker::new(process, channel), loaded)),
            Ok(Answer::Refused(error)) => Err(error),
            Ok(_) | Err(_) => {
                let text = format!(
                    "the worker process of model `{}` gave an answer to its start that is none",
                    self.model
                );
                Err(BackendError::new(ErrorKind::Internal, text))
            }
        }
    }
}
