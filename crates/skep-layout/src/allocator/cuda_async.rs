//! The pool of `cudaMallocAsync`: a model.
//!
//! NVIDIA documents the pool's attributes, not its rules for sizes and splits. This model takes what the documentation
//! says (memory above the release threshold goes back when the program synchronises) and, for the rest, physical memory
//! in steps of 2 MiB and a best fit, as is commonly observed.

use super::{
    Allocator, BlockRequest, CHUNK_ALIGNMENT, MemoryFigures, NotInUse, OutOfMemory, Source,
    options::options,
    pieces::{FreePieces, PieceId, Pieces},
    rounded,
};

const UNIT: u64 = 512;
const OWNER: u64 = 0;

options! {
    /// Options of the model of `cudaMallocAsync`.
    CudaAsyncOptions {
        /// what stays reserved when the program synchronises (`cudaMemPoolAttrReleaseThreshold`)
        release_threshold: u64 = 0;
        /// chunks are multiples of this
        granularity: u64 = 2 << 20;
        /// the smallest chunk
        chunk: u64 = 32 << 20;
        /// the program synchronises after so many frees; 0 is never before its end
        synchronise_every: u32 = 0;
    }
}

/// A model of `cudaMallocAsync`.
#[derive(Debug)]
pub(super) struct CudaAsync {
    options: CudaAsyncOptions,
    pieces: Pieces,
    free: FreePieces,
    frees: u32,
}

impl CudaAsync {
    pub(super) fn new(options: CudaAsyncOptions) -> Self {
        Self {
            options,
            pieces: Pieces::default(),
            free: FreePieces::default(),
            frees: 0,
        }
    }

    fn place(&mut self, size: u64, request: BlockRequest) -> Option<u64> {
        let (id, gap) = self
            .free
            .find(&self.pieces, size, request.alignment, UNIT)?;
        let id = self.free.take(&mut self.pieces, id, gap);
        if self.pieces.get(id).size > size {
            self.free.trim_to(&mut self.pieces, id, size);
        }
        Some(self.pieces.begin_use(id, request.bytes, OWNER))
    }

    fn grow(&mut self, size: u64, source: &mut dyn Source) -> Option<()> {
        let step = self.options.granularity.max(UNIT).next_multiple_of(UNIT);
        let least = rounded(size, step)?;
        let wanted = least.max(rounded(self.options.chunk, step)?);
        let sizes = [wanted, least];
        let (address, bytes) = sizes
            .into_iter()
            .find_map(|bytes| Some((source.take(bytes)?, bytes)))?;
        let id = self.pieces.add_chunk(address, bytes, OWNER);
        self.free.insert(&self.pieces, id);
        Some(())
    }

    fn synchronise(&mut self, source: &mut dyn Source) {
        source.wait();
        let free: Vec<PieceId> = self.free.iter().collect();
        for id in free.into_iter().rev() {
            let piece = *self.pieces.get(id);
            let left = self.pieces.figures().reserved.checked_sub(piece.size);
            if piece.is_whole_chunk()
                && left.is_some_and(|left| left >= self.options.release_threshold)
            {
                self.free.remove(&self.pieces, id);
                self.pieces.remove_chunk(id);
                source.give_back(piece.address, piece.size);
            }
        }
    }
}

impl Allocator for CudaAsync {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        let out_of_memory = request.refused();
        let size = rounded(request.bytes, UNIT).ok_or(out_of_memory)?;
        if let Some(address) = self.place(size, request) {
            return Ok(address);
        }
        let gap = request.slack(CHUNK_ALIGNMENT);
        self.grow(size + gap, source).ok_or(out_of_memory)?;
        self.place(size, request).ok_or(out_of_memory)
    }

    fn free(&mut self, address: u64, source: &mut dyn Source) -> Result<u64, NotInUse> {
        let (id, requested) = self.pieces.end_use(address)?;
        self.free.release(&mut self.pieces, id);
        self.frees += 1;
        if self.options.synchronise_every > 0 && self.frees >= self.options.synchronise_every {
            self.frees = 0;
            self.synchronise(source);
        }
        Ok(requested)
    }

    /// The program synchronises.
    fn trim(&mut self, source: &mut dyn Source) {
        self.synchronise(source);
    }

    fn figures(&self) -> MemoryFigures {
        self.pieces.figures()
    }

    fn largest_free(&self) -> u64 {
        self.free.largest()
    }
}
