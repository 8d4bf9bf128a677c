//! The worker's side: loads one model, confines itself, runs one batch at a time until the conversation ends.

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
use skep_cache::{Cache, Key, Making};
use skep_config::{ConfigContext, ModelConfig};
use skep_proto::inference;
use skep_store::{LoadOrder, Store};
use skep_tensor::{TensorView, map_shared};
use skep_types::{DeviceId, ModelName};
use skep_weights::{BakingPolicy, WeightSource};

use crate::{
    channel::Channel,
    message::{Answer, Bake, Kept, Load, Loaded, Place, Request},
};
use outputs::Outputs;

/// What a backend is opened with.
#[derive(Debug)]
pub struct Opening<'a> {
    /// The backend's name in configurations.
    pub backend: &'a str,
    /// The file of the library that the server's own backend opened.
    pub library: Option<&'a Path>,
}

/// The conversation, over standard input.
type Conversation = Channel<BorrowedFd<'static>>;

/// Is a worker process: returns when the server ends the conversation, or after a panic of the backend.
///
/// # Errors
/// What keeps the process from being one: rights that cannot be given up, a conversation that is none.
pub fn run(
    open: impl FnOnce(Opening<'_>) -> Result<Arc<dyn Backend>, BackendError>,
) -> io::Result<()> {
    start::confine()?;
    start::go_first();
    let mut channel: Conversation = Channel::new(rustix::stdio::stdin());
    let Some((message, descriptors)) = channel.receive_with_descriptors()? else {
        return Ok(());
    };
    let Request::Load(load) = Request::decode(message).map_err(|malformed| wrong(malformed.0))?
    else {
        return Err(wrong("it begins with something else"));
    };
    start::check_only_thread()?;
    if let Some(seconds) = load.bake.as_ref().and_then(|bake| bake.behind) {
        start::let_others_go_first(seconds)?;
    }
    let held = landlock::restrict(&reach::of(&load))?;
    if let Some(how) = &load.bake {
        filter::restrict(filter::Stage::Baking)?;
        let baked = catch_unwind(AssertUnwindSafe(|| bake(&load, how, descriptors, open)));
        let answer = match baked {
            Ok(Ok(())) => Answer::Baked,
            Ok(Err(error)) => Answer::Refused(error),
            Err(panic) => Answer::Refused(panicked(&load, &*panic)),
        };
        return channel.send(|writer| answer.encode(writer), &[]);
    }
    filter::restrict(filter::Stage::Loading)?;
    if load.ask {
        let told = catch_unwind(AssertUnwindSafe(|| ask(&load, descriptors, open)));
        let told = told.unwrap_or_else(|panic| Err(panicked(&load, &*panic)));
        let answer = match told {
            Ok(told) => Answer::Told(told),
            Err(error) => Answer::Refused(error),
        };
        return channel.send(|writer| answer.encode(writer), &[]);
    }
    let loaded = catch_unwind(AssertUnwindSafe(|| prepare(&load, descriptors, open)));
    let loaded = loaded.unwrap_or_else(|panic| Err(panicked(&load, &*panic)));
    let (model, instance, found_damage) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            return channel.send(|writer| Answer::Refused(error).encode(writer), &[]);
        }
    };
    // What parsing and packing the model took is of no use to its runs, and there is a worker for each instance.
    skep_heap::give_back_freed_memory();
    filter::restrict(filter::Stage::Running)?;
    // No file can be opened any more.
    drop(held);
    let threads = model.cpu_threads();
    let answer = Answer::Loaded(Loaded {
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
        outputs: Outputs::default(),
    }
    .serve()
}

fn wrong(what: &str) -> io::Error {
    let text = format!("standard input holds no conversation with a server: {what}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn panicked(load: &Load, panic: &(dyn Any + Send)) -> BackendError {
    let text = format!("backend `{}` panicked: {}", load.backend, panic_text(panic));
    BackendError::new(ErrorKind::Internal, text)
}

/// A loaded model, its one instance here, and whether its baked form was found damaged.
type Prepared = (Arc<dyn Model>, Box<dyn Instance>, bool);

/// Opens the backend, loads the model, and makes its one instance.
fn prepare(
    load: &Load,
    descriptors: Vec<OwnedFd>,
    open: impl FnOnce(Opening<'_>) -> Result<Arc<dyn Backend>, BackendError>,
) -> Result<Prepared, BackendError> {
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
    load: &Load,
    how: &Bake,
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
    load: &Load,
    descriptors: Vec<OwnedFd>,
    open: impl FnOnce(Opening<'_>) -> Result<Arc<dyn Backend>, BackendError>,
) -> Result<FileInterface, BackendError> {
    let file = file_of(load, &mut descriptors.into_iter())?;
    open(opening(load))?.ask(&file)
}

/// What the server says of the backend.
fn opening(load: &Load) -> Opening<'_> {
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

/// The model's file, which is the one that the server opened.
fn file_of(
    load: &Load,
    descriptors: &mut impl Iterator<Item = OwnedFd>,
) -> Result<ModelFile, BackendError> {
    if load.path.is_empty() {
        return Ok(ModelFile::none());
    }
    let path = Path::new(OsStr::from_bytes(&load.path));
    let file = descriptors.next().map(File::from);
    let file = file.ok_or_else(|| invalid("the model's file is missing".to_owned()))?;
    same_file(path, &file)?;
    let unreadable = |e| invalid(format!("cannot read `{}`: {e}", path.display()));
    ModelFile::of(path, &file).map_err(unreadable)
}

/// Opens the backend, and what the server said as a request to it.
fn with_request<T>(
    load: &Load,
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
        request_memory: None,
    };
    then(&*backend, &request)
}

/// The cache and the store that the server means; `None` where the store has gone meanwhile, which keeps no model from being
/// loaded.
fn weights_of(
    load: &Load,
    kept: &Kept,
    connection: Option<OwnedFd>,
) -> Result<Option<WeightSource>, BackendError> {
    let failed =
        |error: &dyn std::error::Error| BackendError::new(ErrorKind::Internal, error.to_string());
    let directory = Path::new(OsStr::from_bytes(&kept.directory));
    let missing = || failed(&wrong("the connection to the tensor store is missing"));
    let stream = UnixStream::from(connection.ok_or_else(missing)?);
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
    let missing = || failed(&wrong("the form's key is missing"));
    let form = kept.form.as_ref().ok_or_else(missing)?;
    Ok(Some(WeightSource {
        cache: Cache::reader(directory, Key::from_bytes(form.key)),
        tenant: store.tenant().cloned().unwrap_or_default(),
        store,
        order: match kept.random_order {
            true => LoadOrder::Random(RandomState::new().hash_one(0)),
            false => LoadOrder::Fixed,
        },
        // Once the model is loaded no file can be opened any more.
        runs_from_cache: false,
        baking: BakingPolicy::Never,
        // The process ends with the model.
        keep_unloaded: Duration::ZERO,
    }))
}

/// Backends open a file by its name: it must be the one that the server checked, also when an instance is made again long
/// after the repository has changed.
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

/// A worker at work.
struct Serving {
    channel: Conversation,
    model: Arc<dyn Model>,
    instance: Box<dyn Instance>,
    /// The memory that inputs come in.
    inputs: Bytes,
    outputs: Outputs,
}

/// What became of a run: where its outputs lie.
type Ran = Result<Vec<Place>, BackendError>;

impl Serving {
    fn serve(mut self) -> io::Result<()> {
        while let Some((message, descriptors)) = self.channel.receive_with_descriptors()? {
            let request = Request::decode(message).map_err(|malformed| wrong(malformed.0))?;
            let Request::Run {
                memory,
                inputs,
                wanted,
            } = request
            else {
                return Err(wrong("a batch was expected"));
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
                Ok(Ok(Ok(outputs))) => (Answer::Ran { outputs, memory }, false),
                Ok(Ok(Err(error))) => {
                    let ends = false;
                    let failed = Answer::Failed {
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
                    let failed = Answer::Failed {
                        error,
                        memory: None,
                        ends,
                    };
                    (failed, ends)
                }
            };
            self.channel.send(|writer| answer.encode(writer), &[])?;
            if let Answer::Failed { error, .. } = &answer
                && error.kind() == ErrorKind::Exhausted
            {
                // What the run had until then lies in the heaps.
                skep_heap::give_back_freed_memory();
            }
            if ends {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Runs a batch. The outer error ends the worker.
    fn run(&mut self, inputs: &[Place], wanted: &[usize]) -> io::Result<Ran> {
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
