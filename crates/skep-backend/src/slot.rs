//! Where a run's output goes.

use skep_tensor::{AlignedBuffer, Tensor, TensorError};
use skep_types::{DataType, MemoryKind, Shape};

/// One wanted output of a run: its index, its prepared memory if there is some, and the result.
#[derive(Debug)]
pub struct OutputSlot {
    index: usize,
    prepared: Option<(DataType, Shape, AlignedBuffer)>,
    tensor: Option<Tensor>,
    memory: MemoryKind,
    is_in_prepared_memory: bool,
}

impl OutputSlot {
    /// Output `index` of the signature, in memory that the backend chooses.
    #[must_use]
    pub const fn new(index: usize) -> Self {
        Self {
            index,
            prepared: None,
            tensor: None,
            memory: MemoryKind::Host,
            is_in_prepared_memory: false,
        }
    }

    /// The same output, wanted in `memory`. Prepared memory is host memory, so a slot for device memory has none.
    #[must_use]
    pub fn in_memory(self, memory: MemoryKind) -> Self {
        let prepared = self.prepared.filter(|_| memory == MemoryKind::Host);
        Self {
            prepared,
            memory,
            ..self
        }
    }

    /// The memory that the output is wanted in.
    #[must_use]
    pub const fn memory_kind(&self) -> MemoryKind {
        self.memory
    }

    /// Output `index` of the signature, to be written into fresh memory of exactly this datatype and shape.
    ///
    /// The size of `BYTES` is not known before the run: the slot then equals [`OutputSlot::new`].
    ///
    /// # Errors
    /// [`TensorError::NoMemory`] if there is no memory for it; a request can ask for any size.
    pub fn prepared(index: usize, datatype: DataType, shape: Shape) -> Result<Self, TensorError> {
        let Some(size) = datatype.element_size() else {
            return Ok(Self::new(index));
        };
        let buffer = AlignedBuffer::try_zeroed(shape.element_count().saturating_mul(size))?;
        Ok(Self::over(index, datatype, shape, buffer))
    }

    /// Output `index` of the signature, to be written into this memory, whose length fits datatype and shape.
    #[must_use]
    pub const fn over(
        index: usize,
        datatype: DataType,
        shape: Shape,
        memory: AlignedBuffer,
    ) -> Self {
        Self {
            index,
            prepared: Some((datatype, shape, memory)),
            tensor: None,
            memory: MemoryKind::Host,
            is_in_prepared_memory: false,
        }
    }

    /// The output's index in the signature.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// The prepared memory, if any.
    pub fn prepared_mut(&mut self) -> Option<(DataType, &Shape, &mut [u8])> {
        self.prepared
            .as_mut()
            .map(|(datatype, shape, buffer)| (*datatype, &*shape, &mut **buffer))
    }

    /// Declares that the prepared memory now holds the output.
    ///
    /// # Errors
    /// If the length of the memory does not fit datatype and shape. A slot without memory stays empty.
    pub fn finish_prepared(&mut self) -> Result<(), TensorError> {
        if let Some((datatype, shape, buffer)) = self.prepared.take() {
            self.tensor = Some(Tensor::new(datatype, shape, buffer.freeze())?);
            self.is_in_prepared_memory = true;
        }
        Ok(())
    }

    /// Fills the slot with an output in the backend's memory. Drops prepared memory, if any.
    pub fn fill(&mut self, tensor: Tensor) {
        self.prepared = None;
        self.tensor = Some(tensor);
        self.is_in_prepared_memory = false;
    }

    /// Whether the output lies in memory that was prepared for it alone.
    #[must_use]
    pub const fn is_in_prepared_memory(&self) -> bool {
        self.is_in_prepared_memory
    }

    /// The output, `None` if the run did not fill the slot.
    #[must_use]
    pub fn into_tensor(self) -> Option<Tensor> {
        self.tensor
    }
}
