//! Runs batches in a worker that is not trusted.

use std::{
    borrow::Cow,
    io,
    os::fd::{AsFd, OwnedFd},
};

use bytes::Bytes;
use skep_backend::{BackendError, OutputSlot, RunMemory};
use skep_ipc::FrameError;
use skep_tensor::{ALIGNMENT, AlignedBuffer, RunBound, RunCharge, RunRefused, Tensor, TensorView};

use crate::{
    channel::Channel,
    memory::MemoryFile,
    message::{FromWorker, SharedTensor, ToWorker},
};

/// How often a worker may ask for room during one batch: before the run if shapes are known, and after it.
const MAX_ROOMS: usize = 2;

/// Why a batch has no outputs.
#[derive(Debug)]
pub(crate) enum RunFailure {
    /// The worker was gone before it had the batch.
    Idle,
    /// It ended while it had the batch.
    Ended,
    /// It broke the protocol.
    Wrong(Cow<'static, str>),
    /// The run failed. `ends`: whether the worker ends as well.
    Run {
        error: BackendError,
        memory: Option<RunMemory>,
        ends: bool,
    },
    /// The batch could not be sent; the worker is unaffected.
    Unsent(io::Error),
}

impl RunFailure {
    fn wrong(what: &'static str) -> Self {
        Self::Wrong(what.into())
    }

    /// A bound refused the run's memory; the worker has ended the run.
    fn refused(refused: RunRefused) -> Self {
        Self::Run {
            error: refused.into(),
            memory: None,
            ends: false,
        }
    }
}

/// The server's side of a worker: the connection, and the shared memory.
pub(crate) struct Conversation {
    channel: Channel<OwnedFd>,
    inputs: Option<MemoryFile>,
    outputs: Option<MemoryFile>,
    /// Bounds this process's memory for a run: the room for its outputs, and the copies of them.
    bound: RunBound,
}

impl Conversation {
    pub(crate) const fn new(channel: Channel<OwnedFd>, bound: RunBound) -> Self {
        Self {
            channel,
            inputs: None,
            outputs: None,
            bound,
        }
    }

    /// Runs a batch and fills the slots.
    pub(crate) fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<Option<RunMemory>, RunFailure> {
        if let Err(failure) = self.send(inputs, outputs) {
            // The worker may not have the memory; the next batch brings new memory.
            self.inputs = None;
            return Err(failure);
        }
        let mut charge = self.bound.begin(0);
        let (places, memory) = self.answer(&mut charge)?;
        if places.len() != outputs.len() {
            return Err(RunFailure::wrong(
                "it gave another number of outputs than was asked for",
            ));
        }
        let room = self.outputs.as_ref().map_or(0, MemoryFile::length);
        let mut lengths = places.iter().map(|place| place.length);
        // An output that is by itself outside is reported below.
        if lengths.clone().all(|length| length <= room)
            && lengths
                .try_fold(0usize, usize::checked_add)
                .is_none_or(|all| all > room)
        {
            return Err(RunFailure::wrong(
                "its outputs have more bytes than the shared memory",
            ));
        }
        // For the copies; an output that lies outside is reported below.
        let copied = places.iter().map(|place| place.length.min(room) as u64);
        charge
            .admit(copied.fold(0, u64::saturating_add))
            .map_err(RunFailure::refused)?;
        for (slot, place) in outputs.iter_mut().zip(places) {
            slot.fill(self.take(place)?);
        }
        Ok(memory)
    }

    /// Writes the inputs and says where they are.
    fn send(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &[OutputSlot],
    ) -> Result<(), RunFailure> {
        let mut end = 0usize;
        let places: Vec<SharedTensor> = inputs
            .iter()
            .map(|view| {
                let offset = end;
                end = (end + view.data().len()).next_multiple_of(ALIGNMENT);
                SharedTensor {
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
            // Free the old memory first: never both.
            self.inputs = None;
            self.inputs = Some(MemoryFile::at_least(end).map_err(RunFailure::Unsent)?);
        }
        let Some(memory) = &self.inputs else {
            return Err(RunFailure::Ended);
        };
        for (view, place) in inputs.iter().zip(&places) {
            memory
                .write(place.offset, view.data())
                .map_err(RunFailure::Unsent)?;
        }
        let request = ToWorker::Run {
            memory: fresh.then(|| memory.length()),
            inputs: places,
            wanted: outputs.iter().map(OutputSlot::index).collect(),
        };
        let descriptors = [memory.file().as_fd()];
        let sent = self.channel.send(
            |writer| request.encode(writer),
            &descriptors[..usize::from(fresh)],
        );
        sent.map_err(|error| match error {
            FrameError::Unsendable { .. } => RunFailure::Unsent(error.into()),
            _ => RunFailure::Idle,
        })
    }

    /// Waits for the outputs, and makes room for them if the worker asks.
    fn answer(
        &mut self,
        charge: &mut RunCharge,
    ) -> Result<(Vec<SharedTensor>, Option<RunMemory>), RunFailure> {
        for _ in 0..=MAX_ROOMS {
            let received = self.channel.receive();
            let message = received
                .map_err(receive_failure)?
                .ok_or(RunFailure::Ended)?;
            match FromWorker::decode(message) {
                Ok(FromWorker::Ran { outputs, memory }) => return Ok((outputs, memory)),
                Ok(FromWorker::Failed {
                    error,
                    memory,
                    ends,
                }) => {
                    return Err(RunFailure::Run {
                        error,
                        memory,
                        ends,
                    });
                }
                Ok(FromWorker::NeedRoom(bytes)) => match charge.admit(bytes as u64) {
                    Ok(()) => self.give_room(bytes)?,
                    Err(refused) => return Err(self.refuse_room(refused)),
                },
                Ok(
                    FromWorker::Loaded(_)
                    | FromWorker::Told(_)
                    | FromWorker::Baked
                    | FromWorker::Refused(_),
                ) => {
                    return Err(RunFailure::wrong("it sent an answer without a request"));
                }
                Err(malformed) => return Err(RunFailure::Wrong(malformed.into_reason())),
            }
        }
        Err(RunFailure::wrong("it asked for memory too often"))
    }

    /// Refuses room to the worker, and waits until it has given up the run.
    fn refuse_room(&mut self, refused: RunRefused) -> RunFailure {
        let sent = self
            .channel
            .send(|writer| ToWorker::NoRoom.encode(writer), &[]);
        if sent.is_err() {
            return RunFailure::Ended;
        }
        match self.channel.receive() {
            Ok(Some(message)) => match FromWorker::decode(message) {
                Ok(FromWorker::Failed { memory, ends, .. }) => RunFailure::Run {
                    error: refused.into(),
                    memory,
                    ends,
                },
                _ => RunFailure::wrong("it went on after its memory was refused"),
            },
            Ok(None) => RunFailure::Ended,
            Err(error) => receive_failure(error),
        }
    }

    fn give_room(&mut self, bytes: usize) -> Result<(), RunFailure> {
        self.outputs = None;
        let memory = MemoryFile::at_least(bytes)
            .map_err(|_| RunFailure::wrong("it asked for more memory than is allowed"))?;
        let request = ToWorker::Room(memory.length());
        self.channel
            .send(|writer| request.encode(writer), &[memory.file().as_fd()])
            .map_err(|_| RunFailure::Ended)?;
        self.outputs = Some(memory);
        Ok(())
    }

    /// Copies an output out of the shared memory. Only the copy is read.
    fn take(&self, place: SharedTensor) -> Result<Tensor, RunFailure> {
        let SharedTensor {
            datatype,
            shape,
            offset,
            length,
        } = place;
        let data = if length == 0 {
            Bytes::new()
        } else {
            let outside = RunFailure::wrong("an output lies outside of the shared memory");
            let end = offset.checked_add(length);
            let memory = self.outputs.as_ref();
            let Some(memory) = memory.filter(|m| end.is_some_and(|end| end <= m.length())) else {
                return Err(outside);
            };
            let copy = AlignedBuffer::try_zeroed(length);
            let mut copy = copy.map_err(|error| RunFailure::Run {
                error: error.into(),
                memory: None,
                ends: false,
            })?;
            memory
                .read(offset, &mut copy)
                .map_err(|_| RunFailure::wrong("an output cannot be read"))?;
            copy.freeze()
        };
        Tensor::new(datatype, shape, data)
            .map_err(|_| RunFailure::wrong("an output's bytes do not agree with its shape"))
    }
}

/// What a failed read means: a malformed message, or the end of the process.
fn receive_failure(error: FrameError) -> RunFailure {
    match error {
        FrameError::TooLong { .. } | FrameError::OutOfTurn => {
            RunFailure::wrong("it sent a malformed message")
        }
        _ => RunFailure::Ended,
    }
}

#[cfg(test)]
#[path = "conversation_tests.rs"]
mod tests;
