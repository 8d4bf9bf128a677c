//! A model whose instances are worker processes, as the server sees it.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use skep_backend::{BackendError, ErrorKind, Instance, Model, OutputSlot, RunMemory};
use skep_tensor::{ALIGNMENT, AlignedBuffer, Tensor, TensorView};
use skep_types::{ModelSignature, Shape};

use crate::{
    channel::Channel,
    memory::Memory,
    message::{Answer, Loaded, Place, Request},
    process::Process,
    sandboxes::Starter,
};

/// How often a worker may ask for room during one run: before it, where shapes are known, and after it.
const MAX_ROOMS: usize = 2;

/// A model that is loaded in each of its worker processes.
pub(crate) struct SandboxedModel {
    starter: Starter,
    loaded: Loaded,
    /// The process that was started to learn the signature, until an instance takes it.
    first: Mutex<Option<Worker>>,
}

impl SandboxedModel {
    pub(crate) fn load(starter: Starter) -> Result<Self, BackendError> {
        let (worker, loaded) = starter.start()?;
        Ok(Self {
            starter,
            loaded,
            first: Mutex::new(Some(worker)),
        })
    }

    fn worker(&self) -> Result<Worker, BackendError> {
        let first = self
            .first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(worker) = first {
            return Ok(worker);
        }
        let (worker, loaded) = self.starter.start()?;
        if loaded == self.loaded {
            return Ok(worker);
        }
        Err(BackendError::new(
            ErrorKind::Internal,
            format!(
                "another worker process of model `{}` loaded another model",
                self.starter.model
            ),
        ))
    }
}

impl Model for SandboxedModel {
    fn signature(&self) -> &ModelSignature {
        &self.loaded.signature
    }

    fn output_shapes(&self, _: &[&Shape]) -> Option<Vec<Shape>> {
        // The worker prepares memory that it shares; memory of this process it cannot reach.
        None
    }

    fn cpu_threads(&self) -> Option<NonZeroUsize> {
        let threads = usize::try_from(self.loaded.cpu_threads?).unwrap_or(usize::MAX);
        NonZeroUsize::new(threads)
    }

    fn echoes_parameters(&self) -> bool {
        self.loaded.echoes_parameters
    }

    fn instance(self: Arc<Self>) -> Result<Box<dyn Instance>, BackendError> {
        Ok(Box::new(SandboxedInstance {
            worker: Some(self.worker()?),
            model: self,
            memory: None,
        }))
    }
}

/// An instance: its worker process, as long as that lives.
struct SandboxedInstance {
    model: Arc<SandboxedModel>,
    worker: Option<Worker>,
    memory: Option<RunMemory>,
}

impl Instance for SandboxedInstance {
    fn execute(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<(), BackendError> {
        let mut worker = match self.worker.take() {
            Some(worker) => worker,
            None => self.model.worker()?,
        };
        let mut outcome = worker.run(inputs, outputs);
        if matches!(outcome, Err(Failure::Idle)) {
            // It ended before it saw the batch, which another one can run.
            worker.process.bury();
            worker = self.model.worker()?;
            outcome = worker.run(inputs, outputs);
        }
        let ended = |worker: &mut Worker| {
            let (model, how) = (&self.model.starter.model, worker.process.bury());
            let text = format!(
                "the worker process of model `{model}` ended {how} while it ran this batch"
            );
            BackendError::new(ErrorKind::Internal, text)
        };
        match outcome {
            Ok(memory) => {
                self.memory = memory;
                self.worker = Some(worker);
                Ok(())
            }
            Err(Failure::Idle | Failure::Ended) => Err(ended(&mut worker)),
            Err(Failure::Wrong(what)) => {
                let model = &self.model.starter.model;
                let text = format!("the worker process of model `{model}` was ended: {what}");
                tracing::error!("{text}");
                Err(BackendError::new(ErrorKind::Internal, text))
            }
            Err(Failure::Run {
                error,
                memory,
                ends,
            }) => {
                self.memory = memory.or(self.memory);
                self.worker = (!ends).then_some(worker);
                Err(error)
            }
            Err(Failure::Unsent(error)) => {
                self.worker = Some(worker);
                let text = format!("cannot hand the batch to a worker process: {error}");
                Err(BackendError::new(ErrorKind::Internal, text))
            }
        }
    }

    fn is_lost(&self) -> bool {
        self.worker.is_none()
    }

    fn memory(&self) -> Option<RunMemory> {
        self.memory
    }
}

/// Why a batch has no outputs.
enum Failure {
    /// The worker was gone before the batch was sent.
    Idle,
    /// It ended while it had the batch.
    Ended,
    /// It said something that it must not say.
    Wrong(&'static str),
    /// The run failed; whether the worker ends with it.
    Run {
        error: BackendError,
        memory: Option<RunMemory>,
        ends: bool,
    },
    /// The batch could not be sent, and the worker knows nothing of it.
    Unsent(io::Error),
}

/// A worker process that waits for a batch.
pub(crate) struct Worker {
    /// Declared first, dropped first: told to end before the conversation's end tells it.
    process: Process,
    channel: Channel<OwnedFd>,
    inputs: Option<Memory>,
    outputs: Option<Memory>,
}

impl Worker {
    pub(crate) const fn new(process: Process, channel: Channel<OwnedFd>) -> Self {
        Self {
            process,
            channel,
            inputs: None,
            outputs: None,
        }
    }

    /// Runs a batch and fills the slots.
    fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<Option<RunMemory>, Failure> {
        if let Err(failure) = self.send(inputs, outputs) {
            // The worker may not have it; the next batch brings other memory.
            self.inputs = None;
            return Err(failure);
        }
        let (places, memory) = self.answer()?;
        if places.len() != outputs.len() {
            return Err(Failure::Wrong(
                "it gave another number of outputs than asked for",
            ));
        }
        for (slot, place) in outputs.iter_mut().zip(places) {
            slot.fill(self.take(place)?);
        }
        Ok(memory)
    }

    /// Writes the inputs and says where they are.
    fn send(&mut self, inputs: &[TensorView<'_>], outputs: &[OutputSlot]) -> Result<(), Failure> {
        let mut end = 0usize;
        let places: Vec<Place> = inputs
            .iter()
            .map(|view| {
                let offset = end;
                end = (end + view.data().len()).next_multiple_of(ALIGNMENT);
                Place {
                    datatype: view.datatype(),
                    shape: view.shape().clone(),
                    offset,
                    length: view.data().len(),
                }
            })
            .collect();
        let fresh = self
            .inputs
            .as_ref()
            .is_none_or(|memory| memory.length() < end);
        if fresh {
            // The old one goes first: never both.
            self.inputs = None;
            self.inputs = Some(Memory::at_least(end).map_err(Failure::Unsent)?);
        }
        let Some(memory) = &self.inputs else {
            return Err(Failure::Ended);
        };
        for (view, place) in inputs.iter().zip(&places) {
            memory
                .write(place.offset, view.data())
                .map_err(Failure::Unsent)?;
        }
        let request = Request::Run {
            memory: fresh.then(|| memory.length()),
            inputs: places,
            wanted: outputs.iter().map(OutputSlot::index).collect(),
        };
        let descriptors = [memory.file().as_fd()];
        let sent = self.channel.send(
            |writer| request.encode(writer),
            &descriptors[..usize::from(fresh)],
        );
        sent.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => Failure::Unsent(error),
            _ => Failure::Idle,
        })
    }

    /// Waits for the outputs; gives room for them where the worker asks for it.
    fn answer(&mut self) -> Result<(Vec<Place>, Option<RunMemory>), Failure> {
        for _ in 0..=MAX_ROOMS {
            let received = self.channel.receive();
            let message = received.map_err(receive_failure)?.ok_or(Failure::Ended)?;
            match Answer::decode(message) {
                Ok(Answer::Ran { outputs, memory }) => return Ok((outputs, memory)),
                Ok(Answer::Failed {
                    error,
                    memory,
                    ends,
                }) => {
                    return Err(Failure::Run {
                        error,
                        memory,
                        ends,
                    });
                }
                Ok(Answer::NeedRoom(bytes)) => self.give_room(bytes)?,
                Ok(Answer::Loaded(_) | Answer::Baked | Answer::Refused(_)) => {
                    return Err(Failure::Wrong("it answered what nobody had asked"));
                }
                Err(malformed) => return Err(Failure::Wrong(malformed.0)),
            }
        }
        Err(Failure::Wrong("it asked for memory again and again"))
    }

    fn give_room(&mut self, bytes: usize) -> Result<(), Failure> {
        self.outputs = None;
        let memory = Memory::at_least(bytes)
            .map_err(|_| Failure::Wrong("it asked for more memory than there may be"))?;
        let request = Request::Room(memory.length());
        self.channel
            .send(|writer| request.encode(writer), &[memory.file().as_fd()])
            .map_err(|_| Failure::Ended)?;
        self.outputs = Some(memory);
        Ok(())
    }

    /// Copies an output out of the shared memory, and looks at the copy alone.
    fn take(&self, place: Place) -> Result<Tensor, Failure> {
        let Place {
            datatype,
            shape,
            offset,
            length,
        } = place;
        let data = if length == 0 {
            Bytes::new()
        } else {
            let outside = Failure::Wrong("an output lies outside of the shared memory");
            let end = offset.checked_add(length);
            let memory = self.outputs.as_ref();
            let Some(memory) = memory.filter(|m| end.is_some_and(|end| end <= m.length())) else {
                return Err(outside);
            };
            let mut copy = AlignedBuffer::zeroed(length);
            memory
                .read(offset, &mut copy)
                .map_err(|_| Failure::Wrong("an output cannot be read"))?;
            copy.freeze()
        };
        Tensor::new(datatype, shape, data)
            .map_err(|_| Failure::Wrong("an output's bytes do not agree with its shape"))
    }
}

/// What a failed read means: the socket of a process that ended, or a message that is none.
fn receive_failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::InvalidData => Failure::Wrong("it sent what is no message"),
        _ => Failure::Ended,
    }
}
