//! The memory that a worker's outputs go into.
//!
//! ```text
//! | output 0 | output 1 | ... | rest: outputs that came in memory of the backend's own |
//! ```
//!
//! Outputs whose shapes are known are written where they stay. The memory belongs to the server, which is asked for
//! more where it is too small.

use std::{fs::File, io};

use skep_backend::{BackendError, ErrorKind, OutputSlot};
use skep_tensor::{ALIGNMENT, AlignedBuffer, SharedMemory, SharedParts, Tensor};
use skep_types::{ModelSignature, Shape};

use super::{Ran, ServerChannel, wrong};
use crate::message::{FromWorker, SharedTensor, ToWorker};

/// The outputs' memory, and what of it the run under way does not use.
#[derive(Default)]
pub(super) struct OutputMemory {
    memory: Option<SharedMemory>,
    rest: Option<AlignedBuffer>,
}

impl OutputMemory {
    /// The slots of a run: over shared memory where the outputs' shapes are known. `None` where the run may not have so
    /// much.
    ///
    /// # Errors
    /// When the conversation is over.
    pub(super) fn prepare(
        &mut self,
        channel: &mut ServerChannel,
        signature: &ModelSignature,
        wanted: &[usize],
        known: Option<&[Shape]>,
    ) -> io::Result<Option<Vec<OutputSlot>>> {
        let spec = |index: usize| {
            let shape = known?.get(index)?;
            let datatype = signature.outputs.get(index)?.datatype;
            let size = datatype.element_size()?;
            let length = shape.element_count().saturating_mul(size);
            Some((datatype, shape, length))
        };
        let lengths: Vec<usize> = wanted
            .iter()
            .map(|&index| spec(index).map_or(0, |(_, _, length)| length))
            .collect();
        let Some(SharedParts { buffers, rest }) = self.parts(channel, &lengths)? else {
            return Ok(None);
        };
        self.rest = Some(rest);
        let slot = |(&index, memory)| match spec(index) {
            Some((datatype, shape, _)) => OutputSlot::over(index, datatype, shape.clone(), memory),
            None => OutputSlot::new(index),
        };
        Ok(Some(wanted.iter().zip(buffers).map(slot).collect()))
    }

    /// Where the outputs of a run lie, once those are in the shared memory that came elsewhere.
    ///
    /// # Errors
    /// When the conversation is over.
    pub(super) fn place(
        &mut self,
        channel: &mut ServerChannel,
        signature: &ModelSignature,
        slots: Vec<OutputSlot>,
    ) -> io::Result<Ran> {
        let mut tensors = Vec::with_capacity(slots.len());
        for slot in slots {
            let index = slot.index();
            let Some(tensor) = slot.into_tensor() else {
                let name = signature.outputs.get(index).map_or("", |spec| &spec.name);
                let text = format!("the model gave no output `{name}`");
                return Ok(Err(BackendError::new(ErrorKind::Internal, text)));
            };
            tensors.push(tensor);
        }
        if let Some(places) = self.beside(&tensors) {
            return Ok(Ok(places));
        }
        self.rest = None;
        let lengths: Vec<usize> = tensors.iter().map(|tensor| tensor.data().len()).collect();
        // The old memory lives as long as the tensors in it.
        let Some(parts) = self.parts(channel, &lengths)? else {
            return Ok(Err(no_room()));
        };
        let copied = tensors.iter().zip(parts.buffers);
        let places = copied.map(|(tensor, mut buffer)| {
            buffer.copy_from_slice(tensor.data());
            self.located(tensor, &buffer)
        });
        Ok(Ok(places.collect()))
    }

    /// Copies what came elsewhere into the rest of the memory; `None` if that is too small.
    fn beside(&mut self, tensors: &[Tensor]) -> Option<Vec<SharedTensor>> {
        let mut rest = self.rest.take()?;
        let mut used = 0usize;
        let mut places = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let data = tensor.data();
            let offset = self.memory.as_ref()?.offset_of(data);
            if offset.is_some() || data.is_empty() {
                places.push(self.located(tensor, data));
                continue;
            }
            let into = rest.get_mut(used..used.checked_add(data.len())?)?;
            into.copy_from_slice(data);
            places.push(self.located(tensor, into));
            used = (used + data.len()).next_multiple_of(ALIGNMENT);
        }
        Some(places)
    }

    /// A tensor whose bytes lie at `bytes`. One without bytes lies nowhere.
    fn located(&self, tensor: &Tensor, bytes: &[u8]) -> SharedTensor {
        let memory = self.memory.as_ref();
        SharedTensor {
            datatype: tensor.datatype(),
            shape: tensor.shape().clone(),
            offset: memory.and_then(|m| m.offset_of(bytes)).unwrap_or(0),
            length: bytes.len(),
        }
    }

    /// Parts of these lengths, of new memory where that which is there is too small or a backend has kept some of it;
    /// `None` where the server refuses it, and all stays as it is.
    fn parts(
        &mut self,
        channel: &mut ServerChannel,
        lengths: &[usize],
    ) -> io::Result<Option<SharedParts>> {
        self.rest = None;
        if let Some(parts) = self.memory.as_mut().and_then(|m| m.split(lengths)) {
            return Ok(Some(parts));
        }
        let needed = lengths.iter().fold(0usize, |sum, length| {
            sum.saturating_add(length.saturating_add(ALIGNMENT))
        });
        channel.send(|writer| FromWorker::NeedRoom(needed).encode(writer), &[])?;
        let received = channel.receive_with_descriptors()?;
        let (message, descriptors) = received.ok_or(io::ErrorKind::UnexpectedEof)?;
        let length = match ToWorker::decode(message) {
            Ok(ToWorker::Room(length)) => length,
            Ok(ToWorker::NoRoom) => return Ok(None),
            _ => return Err(wrong("memory was expected")),
        };
        let file = descriptors.into_iter().next().map(File::from);
        let file = file.ok_or_else(|| wrong("memory is missing"))?;
        let memory = self.memory.insert(SharedMemory::map(&file, length)?);
        let parts = memory.split(lengths);
        parts
            .map(Some)
            .ok_or_else(|| wrong("it gave less memory than was asked for"))
    }
}

/// The run may not have the memory for its outputs. The server, which refused it, has better words.
pub(super) fn no_room() -> BackendError {
    BackendError::new(ErrorKind::Exhausted, "there is no memory for the outputs")
}
