//! The worker's side: loads one model, confines itself, and runs one batch at a time until the server closes the
//! connection.

mod filter;
pub(crate) mod landlock;
mod outputs;
mod reach;
mod start;

use std::{
    any::Any,
    ffi::OsStr,
    fs::File,
    hash::{BuildHasher, RandomState},
    io,
    num::NonZeroUsize,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt, net::UnixStream},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use prost::Message;
use skep_backend::{
    Backend, BackendError, ErrorKind, FileInterface, Instance, LoadRequest, Model, ModelFile,
    panic_text,
};
use skep_cache::{Cache, FormKey, Making};
use skep_config::{ConfigContext, ModelConfig};
use skep_proto::inference;
use skep_store::{LoadOrder, Store};
use skep_tensor::{TensorView, map_shared};
use skep_types::{DeviceId, ModelName};
use skep_weights::{BakingPolicy, WeightSource};

use crate::{
    channel::Channel,
    message::{
        AllocatorLibrary, BakeTask, FromWorker, LoadTask, SharedTensor, ToWorker, WeightLocations,
        WorkerModel,
    },
};
use outputs::OutputMemory;

/// What the server says about the backend to open.
#[derive(Debug)]
pub struct Opening<'a> {
    /// The backend's name in configurations.
    pub backend: &'a str,
    /// The library file that the server's backend opened.
    pub library: Option<&'a Path>,
}

/// The connection to the server, over standard input.
type ServerChannel = Channel<BorrowedFd<'static>>;

/// Runs a worker process. Returns when the server closes the connection, or after a panic of the backend.
///
/// # Errors
/// Rights that cannot be given up, or a malformed conversation.
pub fn run(
    open: impl FnOnce(Opening<'_>) -> Result<Arc<dyn Backend>, BackendError>,
) -> io::Result<()> {
    start::confine()?;
    start::go_first();
    let mut channel: ServerChannel = Channel::new(rustix::stdio::stdin());
    let Some((message, descriptors)) = channel.receive_with_descriptors()? else {
        return Ok(());
    };
    let ToWorker::Load(load) =
        ToWorker::decode(message).map_err(|malformed| wrong(&malformed.into_reason()))?
    else {
        return Err(wrong("the first message is not a load"));
    };
    start::check_only_thread()?;
    if let Some(seconds) = load.bake.as_ref().and_then(|bake| bake.behind) {
        start::let_others_go_first(seconds)?;
    }
    let held = landlock::restrict(&reach::of(&load))?;
    if let Some(how) = &load.bake {
        filter::restrict(filter::FilterStage::Baking)?;
        let baked = catch_unwind(AssertUnwindSafe(|| bake(&load, how, descriptors, open)));
        let answer = match baked {
            Ok(Ok(())) => FromWorker::Baked,
            Ok(Err(error)) => FromWorker::Refused(error),
            Err(panic) => FromWorker::Refused(panicked(&load, &*panic)),
        };
        return Ok(channel.send(|writer| answer.encode(writer), &[])?);
    }
    filter::restrict(filter::FilterStage::Loading)?;
    if load.ask {
        let told = catch_unwind(AssertUnwindSafe(|| ask(&load, descriptors, open)));
        let told = told.unwrap_or_else(|panic| Err(panicked(&load, &*panic)));
        let answer = match told {
            Ok(told) => FromWorker::Told(told),
            Err(error) => FromWorker::Refused(error),
        };
        return Ok(channel.send(|writer| answer.encode(writer), &[])?);
    }
    let loaded = catch_unwind(AssertUnwindSafe(|| prepare(&load, descriptors, open)));
    let loaded = loaded.unwrap_or_else(|panic| Err(panicked(&load, &*panic)));
    let (model, instance, found_damage) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            return Ok(channel.send(|writer| FromWorker::Refused(error).encode(writer), &[])?);
        }
    };
    // Runs have no use for what parsing and packing the model took, and each instance has a worker.
    skep_heap::give_back_freed_memory();
    filter::restrict(filter::FilterStage::Running)?;
    // Files can no longer be opened.
    drop(held);
    let threads = model.cpu_threads();
    let answer = FromWorker::Loaded(WorkerModel {
        signature: model.signature().clone(),
        cpu_threads: threads.map(|threads| u32::try_from(threads.get()).unwrap_or(u32::MAX)),
        echoes_parameters: model.echoes_parameters(),
        found_damage,
        is_baked: model.is_baked(),
    });
    channel.send(|writer| answer.encode(writer), &[])?;
    Serving {
        channel,
        model,
        instance,
        inputs: Bytes::new(),
        outputs: OutputMemory::default(),
    }
    .serve()
}

fn wrong(what: &str) -> io::Error {
    let text = format!("standard input holds no conversation with a server: {what}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn panicked(load: &LoadTask, panic: &(dyn Any + Send)) -> BackendError {
    let text = format!("backend `{}` panicked: {}", load.backend, panic_text(panic));
    BackendError::new(ErrorKind::Internal, text)
}

/// A loaded model, its only instance, and whether its baked form was found damaged.
type PreparedModel = (Arc<dyn Model>, Box<dyn Instance>, bool);

/// Opens the backend, loads the model, and makes its only instance.
fn prepare(
    load: &LoadTask,
    descriptors: Vec<OwnedFd>,
    open: impl FnOnce(Opening<'_>) -> Result<Arc<dyn Backend>, BackendError>,
) -> Result<PreparedModel, BackendError> {
    with_request(load, descriptors, open, |backend, request| {
        let model = backend.load(request)?;
        let instance = Arc::clone(&model).instance(DeviceId::default())?;
        let weights = request.weights;
        let found_damage = weights.is_some_and(|weights| weights.cache.found_damage());
        if let Some(bytes) = request.config.run_limits().memory_bytes {
            start::bound_memory(bytes);
        }
        Ok((model, instance, found_damage))
    })
}

/// Opens the backend and bakes the model.
fn bake(
    load: &LoadTask,
    how: &BakeTask,
    descriptors: Vec<OwnedFd>,
    open: impl FnOnce(Opening<'_>) -> Result<Arc<dyn Backend>, BackendError>,
) -> Result<(), BackendError> {
    with_request(load, descriptors, open, |backend, request| {
        let directory = Path::new(OsStr::from_bytes(&how.directory));
        backend.make_form(request, Making::new(directory, how.budget_bytes))
    })
}

/// Opens the backend and asks it for the model's inputs and outputs.
fn ask(
    load: &LoadTask,
    descriptors: Vec<OwnedFd>,
    open: impl FnOnce(Opening<'_>) -> Result<Arc<dyn Backend>, BackendError>,
) -> Result<FileInterface, BackendError> {
    let file = file_of(load, &mut descriptors.into_iter())?;
    open(opening(load))?.ask(&file)
}

/// What the server says about the backend.
fn opening(load: &LoadTask) -> Opening<'_> {
    Opening {
        backend: &load.backend,
        library: load
            .library
            .as_ref()
            .map(|path| Path::new(OsStr::from_bytes(path))),
    }
}

fn invalid(text: String) -> BackendError {
    BackendError::new(ErrorKind::InvalidModel, text)
}

/// The model's file, as the server opened it.
fn file_of(
    load: &LoadTask,
    descriptors: &mut impl Iterator<Item = OwnedFd>,
) -> Result<ModelFile, BackendError> {
    if load.path.is_empty() {
        return Ok(ModelFile::none());
    }
    let path = Path::new(OsStr::from_bytes(&load.path));
    let file = descriptors.next().map(File::from);
    let file = file.ok_or_else(|| invalid("the model's file is missing".to_owned()))?;
    same_file(path, &file)?;
    ModelFile::of(path, &file)
        .map_err(|e| invalid(format!("cannot read `{}`: {e}", path.display())))
}

/// Opens the backend, and builds a request to it from the server's message.
fn with_request<T>(
    load: &LoadTask,
    descriptors: Vec<OwnedFd>,
    open: impl FnOnce(Opening<'_>) -> Result<Arc<dyn Backend>, BackendError>,
    then: impl FnOnce(&dyn Backend, &LoadRequest<'_>) -> Result<T, BackendError>,
) -> Result<T, BackendError> {
    let mut descriptors = descriptors.into_iter();
    let file = file_of(load, &mut descriptors)?;
    let weights = load.weights.as_ref();
    let weights = weights.map(|kept| weights_of(load, kept, descriptors.next()));
    let weights = weights.transpose()?.flatten();
    let backend = open(opening(load))?;
    if let Some(AllocatorLibrary { name, path }) = &load.allocator {
        let path = Path::new(OsStr::from_bytes(path));
        skep_alloc::add_library(name, path)
            .map_err(|error| BackendError::new(ErrorKind::Unavailable, error.to_string()))?;
    }
    let name = ModelName::new(&load.model).map_err(|e| invalid(e.to_string()))?;
    let mut context = ConfigContext::new(&name);
    context.intra_op_threads = load.intra_op_threads;
    context.inter_op_threads = load.inter_op_threads;
    let proto =
        inference::ModelConfig::decode(&*load.config).map_err(|e| invalid(e.to_string()))?;
    let config = ModelConfig::from_proto(proto, &context).map_err(|e| invalid(e.to_string()))?;
    let threads = usize::try_from(load.threads).unwrap_or(usize::MAX);
    let request = LoadRequest {
        file: &file,
        config: &config,
        threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
        weights: weights.as_ref(),
        device: DeviceId::default(),
        // The process is bound as a whole.
        cpus: None,
        request_memory: None,
    };
    then(&*backend, &request)
}

/// The cache and the store to use; `None` if the store is gone by now, which does not keep the model from being loaded.
fn weights_of(
    load: &LoadTask,
    kept: &WeightLocations,
    connection: Option<OwnedFd>,
) -> Result<Option<WeightSource>, BackendError> {
    let directory = Path::new(OsStr::from_bytes(&kept.directory));
    let Some(connection) = connection else {
        return Err(internal(&wrong(
            "the connection to the tensor store is missing",
        )));
    };
    let stream = UnixStream::from(connection);
    let store = match Store::over(stream) {
        Ok(store) => store,
        Err(error) => {
            let model = &load.model;
            tracing::warn!(
                "model `{model}` is loaded without its baked form: the tensor store: {error}"
            );
            return Ok(None);
        }
    };
    let Some(form) = &kept.form else {
        return Err(internal(&wrong("the form's key is missing")));
    };
    Ok(Some(WeightSource {
        cache: Cache::reader(directory, FormKey::from_bytes(form.key)),
        tenant: store.tenant().cloned().unwrap_or_default(),
        store,
        order: match kept.random_order {
            true => LoadOrder::Random(RandomState::new().hash_one(0)),
            false => LoadOrder::Fixed,
        },
        // Files cannot be opened once the model is loaded.
        runs_from_cache: false,
        baking: BakingPolicy::Never,
        // The process ends with the model.
        keep_unloaded: Duration::ZERO,
    }))
}

/// Backends open a file by its name. Checks that this is the file that the server checked, even if an instance is made
/// again long after the repository has changed.
fn same_file(path: &Path, file: &File) -> Result<(), BackendError> {
    let identity = |data: std::fs::Metadata| {
        let modified = (data.mtime(), data.mtime_nsec());
        (data.dev(), data.ino(), data.size(), modified)
    };
    let there = path.metadata().map(identity);
    let expected = file.metadata().map(identity);
    if matches!((&there, &expected), (Ok(there), Ok(expected)) if there == expected) {
        return Ok(());
    }
    let text = format!(
        "`{}` is no longer the file that the model was loaded from\n  load the model again",
        path.display()
    );
    Err(BackendError::new(ErrorKind::InvalidModel, text))
}

/// A worker that runs batches.
struct Serving {
    channel: ServerChannel,
    model: Arc<dyn Model>,
    instance: Box<dyn Instance>,
    /// The memory of inputs.
    inputs: Bytes,
    outputs: OutputMemory,
}

/// The outcome of a run: its outputs in shared memory.
type Ran = Result<Vec<SharedTensor>, BackendError>;

impl Serving {
    fn serve(mut self) -> io::Result<()> {
        while let Some((message, descriptors)) = self.channel.receive_with_descriptors()? {
            let request =
                ToWorker::decode(message).map_err(|malformed| wrong(&malformed.into_reason()))?;
            let ToWorker::Run {
                memory,
                inputs,
                wanted,
            } = request
            else {
                return Err(wrong("expected a batch"));
            };
            if let Some(length) = memory {
                let file = descriptors.into_iter().next().map(File::from);
                let file = file.ok_or_else(|| wrong("memory is missing"))?;
                self.inputs = Bytes::new();
                self.inputs = map_shared(&file, length)?;
            }
            let ran = catch_unwind(AssertUnwindSafe(|| self.run(&inputs, &wanted)));
            let memory = self.instance.memory();
            let (answer, ends) = match ran {
                Ok(Ok(Ok(outputs))) => (FromWorker::Ran { outputs, memory }, false),
                Ok(Ok(Err(error))) => {
                    let ends = false;
                    let failed = FromWorker::Failed {
                        error,
                        memory,
                        ends,
                    };
                    (failed, ends)
                }
                Ok(Err(error)) => return Err(error),
                Err(panic) => {
                    let text = format!("the backend panicked: {}", panic_text(&*panic));
                    let error = BackendError::new(ErrorKind::Internal, text);
                    let ends = true;
                    let failed = FromWorker::Failed {
                        error,
                        memory: None,
                        ends,
                    };
                    (failed, ends)
                }
            };
            self.channel.send(|writer| answer.encode(writer), &[])?;
            if let FromWorker::Failed { error, .. } = &answer
                && error.kind() == ErrorKind::Exhausted
            {
                // The heaps still hold what the run had allocated.
                skep_heap::give_back_freed_memory();
            }
            if ends {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Runs a batch. An outer error ends the worker.
    fn run(&mut self, inputs: &[SharedTensor], wanted: &[usize]) -> io::Result<Ran> {
        let mut views = Vec::with_capacity(inputs.len());
        for place in inputs {
            let end = place.offset.saturating_add(place.length);
            let data = self.inputs.get(place.offset..end);
            let data = data.ok_or_else(|| wrong("an input lies outside of the shared memory"))?;
            match TensorView::new(place.datatype, &place.shape, data) {
                Ok(view) => views.push(view),
                Err(error) => return Ok(Err(internal(&error))),
            }
        }
        let shapes: Vec<_> = inputs.iter().map(|place| &place.shape).collect();
        let known = self.model.output_shapes(&shapes);
        let signature = self.model.signature();
        let slots = self
            .outputs
            .prepare(&mut self.channel, signature, wanted, known.as_deref())?;
        let Some(mut slots) = slots else {
            return Ok(Err(outputs::no_room()));
        };
        match self.instance.execute(&views, &mut slots) {
            Ok(()) => self.outputs.place(&mut self.channel, signature, slots),
            Err(error) => Ok(Err(error)),
        }
    }
}

fn internal(error: &dyn std::error::Error) -> BackendError {
    BackendError::new(ErrorKind::Internal, error.to_string())
}
