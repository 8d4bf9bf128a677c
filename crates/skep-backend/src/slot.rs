//! Where a run's output goes.

use skep_tensor::{AlignedBuffer, Tensor, TensorError};
use skep_types::{DataType, MemoryKind, Shape};

/// One wanted output of a run: which, the memory it should go into if that could be prepared, and the result.
#[derive(Debug)]
pub struct OutputSlot {
    index: usize,
    prepared: Option<(DataType, Shape, AlignedBuffer)>,
    tensor: Option<Tensor>,
    memory: MemoryKind,
}

impl OutputSlot {
    /// Output `index` of the signature, in memory of the backend's own choice.
    #[must_use]
    pub const fn new(index: usize) -> Self {
        Self {
            index,
            prepared: None,
            tensor: None,
            memory: MemoryKind::Host,
        }
    }

    /// The same output, wanted in `memory`. Prepared memory is the host's: a slot for a device's has none.
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
    /// `BYTES` has no size beforehand: the slot is then as [`OutputSlot::new`] makes it.
    ///
    /// # Errors
    /// [`TensorError::NoMemory`]: shapes of outputs follow from requests.
    pub fn prepared(index: usize, datatype: DataType, shape: Shape) -> Result<Self, TensorError> {
        let Some(size) = datatype.element_size() else {
            return Ok(Self::new(index));
        };
        let buffer = AlignedBuffer::try_zeroed(shape.element_count().saturating_mul(size))?;
        Ok(Self::over(index, datatype, shape, buffer))
    }

    /// Output `index` of the signature, to be written into this memory, which is as long as datatype and shape demand.
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
        }
    }

    /// Which output of the signature.
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
    /// When memory that was handed in is not as long as its datatype and shape demand; a slot without memory stays empty.
    pub fn finish_prepared(&mut self) -> Result<(), TensorError> {
        if let Some((datatype, shape, buffer)) = self.prepared.take() {
            self.tensor = Some(Tensor::new(datatype, shape, buffer.freeze())?);
        }
        Ok(())
    }

    /// Puts an output that lies in memory of the backend's own. Prepared memory, if any, is given up.
    pub fn fill(&mut self, tensor: Tensor) {
        self.prepared = None;
        self.tensor = Some(tensor);
    }

    /// The output, `None` if the run did not fill the slot.
    #[must_use]
    pub fn into_tensor(self) -> Option<Tensor> {
        self.tensor
    }
}
