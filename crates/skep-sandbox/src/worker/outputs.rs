//! The memory of a worker's outputs.
//!
//! ```text
//! | output 0 | output 1 | ... | rest: outputs that the backend allocated |
//! ```
//!
//! Outputs whose shapes are known are written in place. The memory belongs to the server; the worker asks for more if
//! it is too small.

use std::{fs::File, io};

use skep_backend::{BackendError, ErrorKind, OutputSlot};
use skep_tensor::{ALIGNMENT, AlignedBuffer, SharedMemory, SharedParts, Tensor};
use skep_types::{ModelSignature, Shape};

use super::{Ran, ServerChannel, wrong};
use crate::message::{FromWorker, SharedTensor, ToWorker};

/// The outputs' memory, and the part of it that the current run does not use.
#[derive(Default)]
pub(super) struct OutputMemory {
    memory: Option<SharedMemory>,
    rest: Option<AlignedBuffer>,
}

impl OutputMemory {
    /// The output slots of a run, over shared memory if their shapes are known. `None` if the server refuses the
    /// memory.
    ///
    /// # Errors
    /// If the connection is closed or broken.
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

    /// Copies outputs that lie elsewhere into the shared memory, and returns where all of them lie.
    ///
    /// # Errors
    /// If the connection is closed or broken.
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
        // The old memory stays mapped as long as tensors lie in it.
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

    /// Copies outputs that lie elsewhere into the rest of the memory; `None` if it is too small.
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

    /// A tensor whose bytes lie at `bytes` in the memory. An empty one is at offset 0.
    fn located(&self, tensor: &Tensor, bytes: &[u8]) -> SharedTensor {
        let memory = self.memory.as_ref();
        SharedTensor {
            datatype: tensor.datatype(),
            shape: tensor.shape().clone(),
            offset: memory.and_then(|m| m.offset_of(bytes)).unwrap_or(0),
            length: bytes.len(),
        }
    }

    /// Splits the memory into parts of these lengths. Asks for new memory if it is too small, or if a backend still
    /// holds a part of it; `None`, with the memory unchanged, if the server refuses.
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
            _ => return Err(wrong("expected memory")),
        };
        let file = descriptors.into_iter().next().map(File::from);
        let file = file.ok_or_else(|| wrong("memory is missing"))?;
        let memory = self.memory.insert(SharedMemory::map(&file, length)?);
        let parts = memory.split(lengths);
        parts
            .map(Some)
            .ok_or_else(|| wrong("it sent less memory than was asked for"))
    }
}

/// The run may not have the memory for its outputs. The server refused it, and reports a better reason.
pub(super) fn no_room() -> BackendError {
    BackendError::new(ErrorKind::Exhausted, "no memory for the outputs")
}
