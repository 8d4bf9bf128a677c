//! TensorFlow's allocator (BFC: best fit with coalescing), and what ONNX Runtime's arena shares with it.
//!
//! Source: `xla/tsl/framework/bfc_allocator.cc` of OpenXLA, commit 00df9eefeb54. Its 21 bins of free chunks, each ordered
//! by size and then by address, are one ordered set here: bins hold ascending ranges of sizes, so the first fitting
//! piece is the same.

use super::{
    Allocator, BlockRequest, CHUNK_ALIGNMENT, MemoryFigures, NotInUse, OutOfMemory, Source,
    available,
    options::options,
    pieces::{FreePieces, Pieces},
    rounded,
};

/// Sizes are multiples of this.
pub(super) const UNIT: u64 = 256;

/// The owner of pieces that any stream may take.
const ANY: u64 = 0;

options! {
    /// Options of TensorFlow's allocator.
    BfcOptions {
        /// start small and double; otherwise take all memory at once
        allow_growth: bool = true;
        /// bytes of the device that the allocator may take; without growth it takes them at once
        limit: Option<u64> = None;
        /// a piece with so many bytes left over is split even if it is not twice as large as the block
        max_internal_fragmentation: u64 = 128 << 20;
        /// give back chunks without a block in use before failing
        garbage_collection: bool = false;
    }
}

/// The pieces of a BFC allocator, and its rules for them.
#[derive(Debug, Default)]
pub(super) struct BinnedPieces {
    pub(super) pieces: Pieces,
    pub(super) free: FreePieces,
    /// What is left over at most, where a piece is not split.
    pub(super) most_left: u64,
}

impl BinnedPieces {
    /// A block in the first fitting piece.
    pub(super) fn place(&mut self, size: u64, request: BlockRequest) -> Option<u64> {
        let (id, gap) = self
            .free
            .find(&self.pieces, size, request.alignment, UNIT)?;
        let id = self.free.take(&mut self.pieces, id, gap);
        let whole = self.pieces.get(id).size;
        if whole >= 2 * size || whole - size >= self.most_left.max(UNIT) {
            self.free.trim_to(&mut self.pieces, id, size);
        }
        Some(self.pieces.begin_use(id, request.bytes, ANY))
    }

    pub(super) fn free(&mut self, address: u64) -> Result<u64, NotInUse> {
        let (id, requested) = self.pieces.end_use(address)?;
        self.free.release(&mut self.pieces, id);
        Ok(requested)
    }

    /// Adds a chunk that the source has given.
    pub(super) fn add_chunk(&mut self, address: u64, size: u64) {
        let id = self.pieces.add_chunk(address, size, ANY);
        self.free.insert(&self.pieces, id);
    }

    /// Gives the chunks without a block in use back, of those that `may_go`.
    pub(super) fn give_back(&mut self, source: &mut dyn Source, may_go: impl Fn(u64) -> bool) {
        self.free
            .give_back(&mut self.pieces, source, |chunk| may_go(chunk.address));
    }

    /// A chunk of `wanted` bytes, or of a tenth less and less, as long as it has `least`.
    pub(super) fn take_chunk(
        &mut self,
        wanted: u64,
        least: u64,
        source: &mut dyn Source,
    ) -> Option<(u64, u64)> {
        let mut bytes = wanted;
        while bytes >= least {
            if let Some(address) = source.take(bytes) {
                self.add_chunk(address, bytes);
                return Some((address, bytes));
            }
            // Nine tenths, rounded up to the unit, which must get smaller.
            let less = (bytes - bytes / 10).next_multiple_of(UNIT);
            if less >= bytes {
                break;
            }
            bytes = less;
        }
        None
    }

    pub(super) const fn figures(&self) -> MemoryFigures {
        self.pieces.figures()
    }
}

/// TensorFlow's allocator.
#[derive(Debug)]
pub(super) struct Bfc {
    options: BfcOptions,
    binned: BinnedPieces,
    /// Bytes of the next chunk.
    next_chunk: u64,
}

/// The first chunk.
const FIRST_CHUNK: u64 = 2 << 20;

impl Bfc {
    pub(super) fn new(options: BfcOptions) -> Self {
        let first = if options.allow_growth {
            options
                .limit
                .map_or(FIRST_CHUNK, |limit| limit.min(FIRST_CHUNK))
        } else {
            options.limit.unwrap_or(FIRST_CHUNK)
        };
        Self {
            binned: BinnedPieces {
                most_left: options.max_internal_fragmentation,
                ..BinnedPieces::default()
            },
            next_chunk: first.next_multiple_of(UNIT).max(UNIT),
            options,
        }
    }

    fn extend(&mut self, size: u64, source: &mut dyn Source) -> bool {
        let reserved = self.binned.figures().reserved;
        let available = available(self.options.limit, reserved, source);
        let available = available - available % UNIT;
        if size > available {
            return false;
        }
        let mut increased = false;
        while size > self.next_chunk {
            self.next_chunk *= 2;
            increased = true;
        }
        let wanted = self.next_chunk.min(available);
        let taken = self.binned.take_chunk(wanted, size, source).is_some();
        if taken && !increased {
            self.next_chunk *= 2;
        }
        taken
    }
}

impl Allocator for Bfc {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        let out_of_memory = request.refused();
        let size = rounded(request.bytes, UNIT).ok_or(out_of_memory)?;
        if let Some(address) = self.binned.place(size, request) {
            return Ok(address);
        }
        let slack = request.slack(CHUNK_ALIGNMENT);
        let with_gap = rounded(size + slack, UNIT).ok_or(out_of_memory)?;
        let mut extended = self.extend(with_gap, source);
        if !extended && self.options.garbage_collection {
            self.binned.give_back(source, |_| true);
            extended = self.extend(with_gap, source);
        }
        let placed = extended.then(|| self.binned.place(size, request)).flatten();
        placed.ok_or(out_of_memory)
    }

    fn free(&mut self, address: u64, _: &mut dyn Source) -> Result<u64, NotInUse> {
        self.binned.free(address)
    }

    /// Gives nothing back unless garbage is collected: TensorFlow keeps its memory.
    fn trim(&mut self, source: &mut dyn Source) {
        if self.options.garbage_collection {
            self.binned.give_back(source, |_| true);
        }
    }

    fn figures(&self) -> MemoryFigures {
        self.binned.figures()
    }

    fn largest_free(&self) -> u64 {
        self.binned.free.largest()
    }
}
