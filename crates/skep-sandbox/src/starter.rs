//! Starts worker processes, with everything that they need to load a model.

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
    time::{Duration, Instant},
};

use prost::Message;
use skep_backend::{Backend, BackendError, ErrorKind, FileInterface, LoadRequest, ModelFile};
use skep_cache::{Form, FormKey, Found};
use skep_ipc::FrameError;
use skep_store::{Digest, LoadOrder};
use skep_tensor::RunBound;
use skep_types::{CpuSet, ModelSignature};
use skep_weights::WeightSource;

use crate::{
    cancel::Cancel,
    channel::Channel,
    conversation::Conversation,
    message::{
        AllocatorLibrary, BakeTask, FormFiles, FromWorker, LoadTask, ToWorker, WeightLocations,
        WorkerModel,
    },
    process::Process,
    signature,
};

/// Environment variables that workers inherit from the server, besides the settings of libraries: where the dynamic
/// loader looks for libraries, and how much a panic prints.
const VARIABLES: [&str; 3] = ["LD_LIBRARY_PATH", "RUST_BACKTRACE", "GLIBC_TUNABLES"];

/// Makes the C library's heap return freed memory at once in a process that bakes, so that it never holds more than it
/// was admitted with. By default the heap would keep blocks of up to 32 MiB, which is the size of many weights.
const OWN_HEAP: [(&str, &str); 2] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "131072"),
];

/// A worker process that waits for a batch.
pub(crate) struct Worker {
    /// Declared first, so dropped first: the process is killed before its connection closes.
    pub(crate) process: Process,
    pub(crate) conversation: Conversation,
}

/// Everything that a worker process of one model needs at its start.
pub(crate) struct Starter {
    load: LoadTask,
    /// Held open, so that a worker that starts later loads the same file, even if another one has its name by then.
    file: Option<File>,
    environment: Vec<(OsString, OsString)>,
    /// The CPUs of its processes; `None` for those of this process.
    cpus: Option<CpuSet>,
    weights: Option<WeightSource>,
    /// The key of the model's form. The server computes it; a process that runs the model is not trusted to.
    pub(crate) key: Option<FormKey>,
    /// The signature that the model's file declares; `None` without a file.
    pub(crate) signature: Option<ModelSignature>,
    /// The time until a process's first answer.
    limit: Option<Duration>,
    /// Bounds this process's memory for a run.
    bound: RunBound,
}

impl Starter {
    /// What a process needs to load a model, or to bake it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] if the model's file cannot be opened.
    pub(crate) fn new(
        backend: &dyn Backend,
        request: &LoadRequest<'_>,
        limit: Option<Duration>,
    ) -> Result<Self, BackendError> {
        let config = request.config;
        let execution = config.execution();
        let mut starter = Self::of_file(backend, config.name().as_str(), request.file, limit)?;
        starter.load = LoadTask {
            weights: request.weights.map(|weights| WeightLocations {
                directory: weights.cache.directory().as_os_str().as_bytes().to_vec(),
                form: None,
                budget_bytes: weights.cache.budget_bytes(),
                random_order: weights.order != LoadOrder::Fixed,
            }),
            allocator: execution.allocator.as_deref().and_then(|text| {
                let (name, path) = skep_alloc::library_of(text)?;
                Some(AllocatorLibrary {
                    name,
                    path: path.into_os_string().into_encoded_bytes(),
                })
            }),
            threads: u32::try_from(request.threads.get()).unwrap_or(u32::MAX),
            intra_op_threads: execution.intra_op_threads,
            inter_op_threads: execution.inter_op_threads,
            config: config.proto().encode_to_vec(),
            ..starter.load
        };
        starter.weights = request.weights.cloned();
        starter.cpus = request.cpus.cloned();
        starter.bound = request.run_bound();
        Ok(starter)
    }

    /// What a process needs to read a model's file.
    pub(crate) fn of_file(
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
            load: LoadTask {
                backend: backend.name().to_owned(),
                library: library.map(|path| path.as_os_str().as_bytes().to_vec()),
                allocator: None,
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
            cpus: None,
            weights: None,
            key: None,
            signature: None,
            limit,
            bound: RunBound::default(),
        })
    }

    /// Has a process report the model's inputs and outputs. The process then ends.
    pub(crate) fn ask(mut self) -> Result<FileInterface, BackendError> {
        self.load.ask = true;
        let begun = self.begin(self.load.clone(), None, None);
        let (mut process, _channel, answer) = begun.map_err(|failure| failure.error)?;
        process.dismiss();
        match answer {
            FromWorker::Told(told) => Ok(told),
            FromWorker::Refused(error) => Err(error),
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
    /// As [`load`](crate::load()).
    pub(crate) fn start(&self) -> Result<(Worker, WorkerModel), BackendError> {
        let (worker, mut loaded) = self.start_once()?;
        // The next load repairs the form.
        loaded.found_damage = false;
        Ok((worker, loaded))
    }

    fn form(&self) -> Option<Form> {
        match self.weights.as_ref()?.cache.look_up(self.key.as_ref()?) {
            Found::Form(form) => Some(form),
            Found::Unusable(_) | Found::Nothing => None,
        }
    }

    /// The tensors of the store that workers use if they load the model from its form. Workers themselves are not asked:
    /// what they say is not trusted.
    pub(crate) fn tensors(&self) -> Vec<(Digest, u64)> {
        self.form()
            .map_or_else(Vec::new, |form| form.used_tensors())
    }

    /// The files of the model's form, and a connection to the store for its tensors; `None` if a worker has to load the
    /// model without a form.
    fn shared(&self) -> Option<(FormFiles, UnixStream)> {
        let weights = self.weights.as_ref()?;
        let form = self.form()?;
        let tensors = form.used_tensors().into_iter();
        let digests: Vec<Digest> = tensors.map(|(digest, _)| digest).collect();
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
                // Like any load that cannot share weights, it has its own copy of them.
                let model = self.model();
                tracing::warn!(
                    "model `{model}` is loaded without its baked form in a worker process: the tensor store: {error}"
                );
                None
            }
        }
    }

    pub(crate) fn start_once(&self) -> Result<(Worker, WorkerModel), BackendError> {
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
            FromWorker::Loaded(loaded) => {
                self.check(&loaded)?;
                let conversation = Conversation::new(channel, self.bound.clone());
                let worker = Worker {
                    process,
                    conversation,
                };
                Ok((worker, loaded))
            }
            FromWorker::Refused(error) => Err(error),
            _ => Err(self.no_answer()),
        }
    }

    /// Compares the signature that a worker reports with the model's file.
    fn check(&self, loaded: &WorkerModel) -> Result<(), BackendError> {
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

    /// Bakes the model in a process, which then ends.
    ///
    /// # Errors
    /// Why the form was not made, and whether the process died.
    pub(crate) fn bake(mut self, how: BakeTask, cancel: &Cancel) -> Result<(), BeginError> {
        self.load.weights = None;
        self.load.bake = Some(how);
        let own = OWN_HEAP.map(|(name, value)| (OsString::from(name), OsString::from(value)));
        self.environment.extend(own);
        let load = self.load.clone();
        let (mut process, _channel, answer) = self.begin(load, None, Some(cancel))?;
        // The process must have ended before its files are read.
        process.dismiss();
        match answer {
            FromWorker::Baked => Ok(()),
            FromWorker::Refused(error) => Err(BeginError::alive(error)),
            _ => Err(BeginError::alive(self.no_answer())),
        }
    }

    /// Starts a process and waits for its first answer.
    fn begin(
        &self,
        load: LoadTask,
        store: Option<OwnedFd>,
        cancel: Option<&Cancel>,
    ) -> Result<(Process, Channel<OwnedFd>, FromWorker), BeginError> {
        let bakes = load.bake.is_some();
        let done = if bakes { "baked" } else { "loaded" };
        let request = ToWorker::Load(Box::new(load));
        // A deadline that cannot be represented means no deadline.
        let deadline = self
            .limit
            .and_then(|limit| Instant::now().checked_add(limit));
        let cannot = |error: &io::Error| {
            BeginError::alive(self.failed("cannot start a worker process", error))
        };
        let (mut process, socket) =
            Process::start(self.model(), &self.environment, self.cpus.as_ref())
                .map_err(|error| cannot(&error))?;
        if !bakes {
            process.count();
        }
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
                    FromWorker::decode(message).map_err(|_| BeginError::alive(self.no_answer()))?;
                Ok((process, channel, answer))
            }
            // The message is too long: an error of this side.
            Err(error @ FrameError::Unsendable { .. }) => Err(cannot(&error.into())),
            Err(FrameError::TimedOut) => {
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
            "the worker process of model `{}` sent an invalid start-up reply",
            self.model()
        );
        BackendError::new(ErrorKind::Internal, text)
    }
}

/// Why a process did not give the expected answer.
pub(crate) struct BeginError {
    pub(crate) error: BackendError,
    /// Whether the process died or was killed.
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
    fn a_worker_whose_signature_differs_from_the_file_is_refused() {
        let signature = |datatype| ModelSignature {
            inputs: vec![TensorSpec {
                name: "x".to_owned(),
                datatype,
                dims: None,
            }],
            outputs: Vec::new(),
        };
        let starter = |signature| Starter {
            load: LoadTask {
                backend: "mock".to_owned(),
                library: None,
                allocator: None,
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
            cpus: None,
            weights: None,
            key: None,
            signature,
            limit: None,
            bound: RunBound::default(),
        };
        let loaded = WorkerModel {
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
