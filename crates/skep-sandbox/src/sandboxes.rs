//! How worker processes come to be: what they need to load a model, kept as long as the model.

use std::{
    env,
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            net::UnixStream,
        },
    },
    sync::{Arc, Once},
    time::{Duration, Instant},
};

use prost::Message;
use skep_backend::{
    Backend, BackendError, ErrorKind, FileInterface, LoadRequest, Model, ModelFile,
};
use skep_cache::{Found, Key, Role};
use skep_store::{Digest, LoadOrder};
use skep_tensor::RunBound;
use skep_types::ModelSignature;
use skep_weights::{BakingPolicy, WeightSource};

use crate::{
    bake::{self, Cancel},
    channel::Channel,
    conversation::Conversation,
    message::{Answer, Bake, FormFiles, Kept, Load, Loaded, Request},
    model::{SandboxedModel, Worker},
    process::Process,
    signature,
    worker::landlock,
};

/// Variables of the server's environment that its workers get as well, beside the settings of libraries: where the dynamic loader looks for libraries, and
/// how much a panic says.
const VARIABLES: [&str; 3] = ["LD_LIBRARY_PATH", "RUST_BACKTRACE", "GLIBC_TUNABLES"];

/// How a process that bakes uses the C library's heap: what it frees it gives back at once, so that it never holds more than
/// it was admitted with. By default the heap would keep blocks of up to 32 MiB, tens of which are weights.
const OWN_HEAP: [(&str, &str); 2] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "131072"),
];

/// Loads a model in a first worker process, with the backend that `backend` is here. The model's instances are that
/// process and further ones. Where loads bake ([`BakingPolicy::First`]), what is to be baked first is baked in a process of its
/// own, which may write files; workers read the result, that model's form alone, and take its weights from the tensor store,
/// by a connection that is good for nothing else. Each process has `limit` for its loading or baking, where there is one, and
/// is ended after that. What a worker says of the model must be `signature`, where there is one: what the model's file says.
///
/// # Errors
/// Those of [`Backend::load`], and [`ErrorKind::Internal`] when a process cannot be started, or ends or is ended before it
/// has loaded the model.
pub fn load(
    backend: &dyn Backend,
    request: &LoadRequest<'_>,
    signature: Option<&ModelSignature>,
    limit: Option<Duration>,
) -> Result<Arc<dyn Model>, BackendError> {
    say_if_files_are_open();
    let mut starter = Starter::new(backend, request, limit)?;
    starter.signature = signature.cloned();
    let bakes = request
        .weights
        .is_some_and(|weights| weights.baking == BakingPolicy::First);
    if bakes {
        bake::if_possible(backend, request, limit);
    }
    starter.key = backend.form_key(request);
    let (mut worker, mut loaded) = starter.start_once()?;
    if loaded.found_damage {
        // The worker, which cannot mend it, has loaded the model as it is.
        bake::remove_damage(backend, request);
        if bakes {
            drop(worker);
            bake::if_possible(backend, request, limit);
            (worker, loaded) = starter.start_once()?;
        }
    }
    // Damaged or not, it serves.
    loaded.found_damage = false;
    Ok(Arc::new(SandboxedModel::new(starter, worker, loaded)))
}

/// Asks the backend in a process of its own for the inputs and outputs of a model whose file does not tell
/// ([`Backend::ask`]). What that process says may be anything: it decides how requests to this model are checked, and nothing
/// else.
///
/// # Errors
/// Those of [`Backend::ask`], and [`ErrorKind::Internal`] when the process ends, or is ended, before it has answered.
pub fn ask(
    backend: &dyn Backend,
    model: &str,
    file: &ModelFile,
    limit: Option<Duration>,
) -> Result<FileInterface, BackendError> {
    say_if_files_are_open();
    Starter::of_file(backend, model, file, limit)?.ask()
}

/// Says once that workers can open more files than they need, where that is so.
fn say_if_files_are_open() {
    static SAID: Once = Once::new();
    if landlock::version().is_none() {
        SAID.call_once(|| {
            tracing::warn!(
                "worker processes can read every file that the server's user can, and write where they bake: the kernel has no Landlock of Linux 5.19 or later, or does not let this process use it"
            );
        });
    }
}

/// Everything that a worker process of one model needs at its start.
pub(crate) struct Starter {
    load: Load,
    /// Held open: a worker that starts later loads the same file, whatever then has its name.
    file: Option<File>,
    environment: Vec<(OsString, OsString)>,
    weights: Option<WeightSource>,
    /// What the model's form is found by: this process works it out, not one that runs the model.
    key: Option<Key>,
    /// What the model's file says of it; `None` without a file.
    signature: Option<ModelSignature>,
    /// What a process may take until its first answer.
    limit: Option<Duration>,
    /// What a run may take of this process's memory.
    bound: RunBound,
}

impl Starter {
    /// Everything that a process needs to load what `request` says, or to bake it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] when the model's file cannot be opened.
    pub(crate) fn new(
        backend: &dyn Backend,
        request: &LoadRequest<'_>,
        limit: Option<Duration>,
    ) -> Result<Self, BackendError> {
        let config = request.config;
        let execution = config.execution();
        let mut starter = Self::of_file(backend, config.name().as_str(), request.file, limit)?;
        starter.load = Load {
            weights: request.weights.map(|weights| Kept {
                directory: weights.cache.directory().as_os_str().as_bytes().to_vec(),
                form: None,
                budget_bytes: weights.cache.budget_bytes(),
                random_order: weights.order != LoadOrder::Fixed,
            }),
            threads: u32::try_from(request.threads.get()).unwrap_or(u32::MAX),
            intra_op_threads: execution.intra_op_threads,
            inter_op_threads: execution.inter_op_threads,
            config: config.proto().encode_to_vec(),
            ..starter.load
        };
        starter.weights = request.weights.cloned();
        starter.bound = request.run_bound();
        Ok(starter)
    }

    /// What a process needs that has to do with a model's file, and nothing else.
    fn of_file(
        backend: &dyn Backend,
        model: &str,
        file: &ModelFile,
        limit: Option<Duration>,
    ) -> Result<Self, BackendError> {
        let path = file.path();
        let file = backend.needs_file().then(|| skep_host::open_file(path));
        let file = file.transpose().map_err(|error| {
            let text = format!("cannot read `{}`: {error}", path.display());
            BackendError::new(ErrorKind::InvalidModel, text)
        })?;
        let library = backend.library();
        Ok(Self {
            load: Load {
                backend: backend.name().to_owned(),
                library: library.map(|path| path.as_os_str().as_bytes().to_vec()),
                model: model.to_owned(),
                path: path.as_os_str().as_bytes().to_vec(),
                weights: None,
                bake: None,
                ask: false,
                threads: 1,
                intra_op_threads: None,
                inter_op_threads: None,
                config: Vec::new(),
            },
            file,
            environment: env::vars_os()
                .filter(|(name, _)| {
                    VARIABLES.iter().any(|known| name == known) || backend.is_library_setting(name)
                })
                .collect(),
            weights: None,
            key: None,
            signature: None,
            limit,
            bound: RunBound::default(),
        })
    }

    /// Has a process say what the model's inputs and outputs are, which ends with that.
    fn ask(mut self) -> Result<FileInterface, BackendError> {
        self.load.ask = true;
        let begun = self.begin(self.load.clone(), None, None);
        let (mut process, _channel, answer) = begun.map_err(|failure| failure.error)?;
        process.dismiss();
        match answer {
            Answer::Told(told) => Ok(told),
            Answer::Refused(error) => Err(error),
            _ => Err(self.no_answer()),
        }
    }

    /// The model's name.
    pub(crate) fn model(&self) -> &str {
        &self.load.model
    }

    /// Starts a worker process and waits until it has loaded the model.
    ///
    /// # Errors
    /// As [`load`].
    pub(crate) fn start(&self) -> Result<(Worker, Loaded), BackendError> {
        let (worker, mut loaded) = self.start_once()?;
        // The next load mends it.
        loaded.found_damage = false;
        Ok((worker, loaded))
    }

    /// The files of the model's form, and a connection to the store for its tensors; `None` where a worker loads the model as
    /// it is.
    fn shared(&self) -> Option<(FormFiles, UnixStream)> {
        let weights = self.weights.as_ref()?;
        let Found::Form(form) = weights.cache.look_up(self.key.as_ref()?) else {
            return None;
        };
        let stored = form.parts().iter().filter(|part| part.role != Role::Source);
        let digests: Vec<Digest> = stored.map(|part| part.tensor.digest).collect();
        match weights.store.stream_for(&weights.tenant, &digests) {
            Ok(stream) => {
                let files = form.files().into_iter();
                let form = FormFiles {
                    key: form.key().bytes(),
                    files: files.map(|path| path.into_os_string().into_vec()).collect(),
                };
                Some((form, stream))
            }
            Err(error) => {
                // As every load does that cannot share weights: it has them for itself.
                let model = self.model();
                tracing::warn!(
                    "model `{model}` is loaded without its baked form in a worker process: the tensor store: {error}"
                );
                None
            }
        }
    }

    fn start_once(&self) -> Result<(Worker, Loaded), BackendError> {
        let mut load = self.load.clone();
        let store = match (self.shared(), &mut load.weights) {
            (Some((form, stream)), Some(kept)) => {
                kept.form = Some(form);
                Some(stream)
            }
            (_, weights) => {
                *weights = None;
                None
            }
        };
        let begun = self.begin(load, store.map(OwnedFd::from), None);
        let (process, channel, answer) = begun.map_err(|failure| failure.error)?;
        match answer {
            Answer::Loaded(loaded) => {
                self.check(&loaded)?;
                let conversation = Conversation::new(channel, self.bound.clone());
                let worker = Worker {
                    process,
                    conversation,
                };
                Ok((worker, loaded))
            }
            Answer::Refused(error) => Err(error),
            _ => Err(self.no_answer()),
        }
    }

    /// Holds what a worker says of the model against the model's file.
    fn check(&self, loaded: &Loaded) -> Result<(), BackendError> {
        let Some(expected) = &self.signature else {
            return Ok(());
        };
        signature::check(expected, &loaded.signature).map_err(|what| {
            let text = format!(
                "the worker process of model `{}` was ended: it says that the model has {what}",
                self.model()
            );
            BackendError::new(ErrorKind::Internal, text)
        })
    }

    /// Bakes the model in a process that ends with that.
    ///
    /// # Errors
    /// Why it did not, and whether that ended the process.
    pub(crate) fn bake(mut self, how: Bake, cancel: &Cancel) -> Result<(), BeginError> {
        self.load.weights = None;
        self.load.bake = Some(how);
        let own = OWN_HEAP.map(|(name, value)| (OsString::from(name), OsString::from(value)));
        self.environment.extend(own);
        let load = self.load.clone();
        let (mut process, _channel, answer) = self.begin(load, None, Some(cancel))?;
        // Before anybody looks at what it wrote.
        process.dismiss();
        match answer {
            Answer::Baked => Ok(()),
            Answer::Refused(error) => Err(BeginError::alive(error)),
            _ => Err(BeginError::alive(self.no_answer())),
        }
    }

    /// Starts a process and waits for its first answer.
    fn begin(
        &self,
        load: Load,
        store: Option<OwnedFd>,
        cancel: Option<&Cancel>,
    ) -> Result<(Process, Channel<OwnedFd>, Answer), BeginError> {
        let done = if load.bake.is_some() {
            "baked"
        } else {
            "loaded"
        };
        let request = Request::Load(Box::new(load));
        // A deadline that cannot be represented means no deadline.
        let deadline = self
            .limit
            .and_then(|limit| Instant::now().checked_add(limit));
        let cannot = |error: &io::Error| {
            BeginError::alive(self.failed("cannot start a worker process", error))
        };
        let (mut process, socket) =
            Process::start(self.model(), &self.environment).map_err(|error| cannot(&error))?;
        let _watched = cancel.map(|cancel| cancel.watch(&process));
        let mut channel = Channel::new(socket);
        let file = self.file.as_ref().map(File::as_fd);
        let descriptors: Vec<BorrowedFd<'_>> = file
            .into_iter()
            .chain(store.as_ref().map(OwnedFd::as_fd))
            .collect();
        let sent = channel.send(|writer| request.encode(writer), &descriptors);
        match sent.and_then(|()| channel.receive_until(deadline)) {
            Ok(Some(message)) => {
                let answer =
                    Answer::decode(message).map_err(|_| BeginError::alive(self.no_answer()))?;
                Ok((process, channel, answer))
            }
            // A message that is too long is this side's failure.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Err(cannot(&error)),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                process.dismiss();
                let text = format!(
                    "the worker process of model `{}` was ended: it had not {done} the model after {} s\n  \
                     `--sandbox-load-timeout-secs` says how long it may take",
                    self.model(),
                    self.limit.unwrap_or_default().as_secs_f64()
                );
                Err(BeginError::death(BackendError::new(
                    ErrorKind::Internal,
                    text,
                )))
            }
            Ok(None) | Err(_) => {
                if cancel.is_some_and(Cancel::is_cancelled) {
                    process.dismiss();
                }
                let text = format!(
                    "the worker process of model `{}` ended {} while it {done} the model",
                    self.model(),
                    process.bury()
                );
                Err(BeginError::death(BackendError::new(
                    ErrorKind::Internal,
                    text,
                )))
            }
        }
    }

    fn failed(&self, what: &str, error: &dyn std::error::Error) -> BackendError {
        let text = format!("{what} of model `{}`: {error}", self.model());
        BackendError::new(ErrorKind::Internal, text)
    }

    fn no_answer(&self) -> BackendError {
        let text = format!(
            "the worker process of model `{}` sent an invalid answer to its start",
            self.model()
        );
        BackendError::new(ErrorKind::Internal, text)
    }
}

/// Why a process gave no answer, or not the one that was wanted.
pub(crate) struct BeginError {
    pub(crate) error: BackendError,
    /// Whether the process ended, or had to be.
    pub(crate) is_death: bool,
}

impl BeginError {
    const fn alive(error: BackendError) -> Self {
        Self {
            error,
            is_death: false,
        }
    }

    const fn death(error: BackendError) -> Self {
        Self {
            error,
            is_death: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use skep_types::{DataType, TensorSpec};

    use super::*;

    #[test]
    fn a_worker_that_says_something_else_than_the_file_is_refused() {
        let signature = |datatype| ModelSignature {
            inputs: vec![TensorSpec {
                name: "x".to_owned(),
                datatype,
                dims: None,
            }],
            outputs: Vec::new(),
        };
        let starter = |signature| Starter {
            load: Load {
                backend: "mock".to_owned(),
                library: None,
                model: "m".to_owned(),
                path: Vec::new(),
                weights: None,
                bake: None,
                ask: false,
                threads: 1,
                intra_op_threads: None,
                inter_op_threads: None,
                config: Vec::new(),
            },
            file: None,
            environment: Vec::new(),
            weights: None,
            key: None,
            signature,
            limit: None,
            bound: RunBound::default(),
        };
        let loaded = Loaded {
            signature: signature(DataType::Int64),
            cpu_threads: None,
            is_baked: false,
            echoes_parameters: false,
            found_damage: false,
        };
        assert!(starter(None).check(&loaded).is_ok(), "there is no file");
        let same = starter(Some(signature(DataType::Int64)));
        assert!(same.check(&loaded).is_ok());
        let other = starter(Some(signature(DataType::Fp32)));
        assert_eq!(
            other.check(&loaded).expect_err("refused").to_string(),
            "the worker process of model `m` was ended: it says that the model has input `x` as INT64 of any shape, \
             expected FP32 of any shape as its file has it"
        );
    }
}
