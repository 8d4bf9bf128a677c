//! The pool of RAPIDS' memory manager (`rmm::mr::pool_memory_resource`).
//!
//! Source: rapidsai/rmm, commit 5d50a37b9612. Best fit over all free blocks, exact splits, and chunks that double what is
//! reserved. Its lists by stream and the stealing between them are left out: a trace says when a block is really free.

use super::{
    Allocator, BlockRequest, CHUNK_ALIGNMENT, MemoryFigures, NotInUse, OutOfMemory, Source,
    options::options,
    pieces::{FreePieces, Pieces},
    rounded,
};

const UNIT: u64 = 256;
const OWNER: u64 = 0;

options! {
    /// Options of RAPIDS' pool.
    RmmPoolOptions {
        /// bytes that the pool takes at its beginning
        initial: u64 = 0;
        /// bytes that the pool may take; with a limit it grows by half of what remains instead of doubling
        limit: Option<u64> = None;
    }
}

/// RAPIDS' pool.
#[derive(Debug)]
pub(super) struct RmmPool {
    options: RmmPoolOptions,
    pieces: Pieces,
    free: FreePieces,
    began: bool,
}

impl RmmPool {
    pub(super) fn new(options: RmmPoolOptions) -> Self {
        Self {
            options,
            pieces: Pieces::default(),
            free: FreePieces::default(),
            began: false,
        }
    }

    fn add(&mut self, bytes: u64, source: &mut dyn Source) -> bool {
        let Some(address) = source.take(bytes) else {
            return false;
        };
        let id = self.pieces.add_chunk(address, bytes, OWNER);
        self.free.insert(&self.pieces, id);
        true
    }

    fn grow(&mut self, size: u64, source: &mut dyn Source) -> bool {
        let reserved = self.pieces.figures().reserved;
        let mut bytes = match self.options.limit {
            None => size.max(reserved),
            Some(limit) => {
                let remaining = limit.saturating_sub(reserved) / UNIT * UNIT;
                if size > remaining {
                    return false;
                }
                size.max((remaining / 2).next_multiple_of(UNIT))
            }
        };
        loop {
            if self.add(bytes, source) {
                return true;
            }
            if bytes <= size {
                return false;
            }
            bytes = (bytes / 2).next_multiple_of(UNIT).max(size);
        }
    }
}

impl Allocator for RmmPool {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        let out_of_memory = request.refused();
        if !std::mem::replace(&mut self.began, true) && self.options.initial > 0 {
            let initial = self.options.initial.next_multiple_of(UNIT);
            if !self.add(initial, source) {
                self.began = false;
                return Err(out_of_memory);
            }
        }
        let size = rounded(request.bytes, UNIT).ok_or(out_of_memory)?;
        let alignment = request.alignment;
        let mut found = self.free.find(&self.pieces, size, alignment, UNIT);
        if found.is_none() {
            let gap = request.slack(CHUNK_ALIGNMENT);
            if !self.grow(size + gap, source) {
                return Err(out_of_memory);
            }
            found = self.free.find(&self.pieces, size, alignment, UNIT);
        }
        let (id, gap) = found.ok_or(out_of_memory)?;
        let id = self.free.take(&mut self.pieces, id, gap);
        if self.pieces.get(id).size > size {
            self.free.trim_to(&mut self.pieces, id, size);
        }
        Ok(self.pieces.begin_use(id, request.bytes, OWNER))
    }

    fn free(&mut self, address: u64, _: &mut dyn Source) -> Result<u64, NotInUse> {
        let (id, requested) = self.pieces.end_use(address)?;
        self.free.release(&mut self.pieces, id);
        Ok(requested)
    }

    /// Gives nothing back: the pool keeps its chunks until it is destroyed.
    fn trim(&mut self, _: &mut dyn Source) {}

    fn figures(&self) -> MemoryFigures {
        self.pieces.figures()
    }

    fn largest_free(&self) -> u64 {
        self.free.largest()
    }
}
