//! ONNX Runtime's arena.
//!
//! Source: `onnxruntime/core/framework/bfc_arena.cc`. Its chunks and bins are TensorFlow's; growth, the second strategy and
//! the return of chunks are its own. Streams share pieces: the library's stream-aware arena, which keeps them apart until a
//! synchronisation, is left out.

use super::{
    Allocator, BlockRequest, CHUNK_ALIGNMENT, MemoryFigures, NotInUse, OutOfMemory, Source,
    available,
    bfc::{BinnedPieces, UNIT},
    options::{options, words},
    rounded,
};

words! {
    /// How the arena grows.
    ExtendStrategy: "`next_power_of_two` or `same_as_requested`" {
        /// The chunk doubles.
        NextPowerOfTwo = "next_power_of_two",
        /// A chunk is as large as the block that needs it.
        SameAsRequested = "same_as_requested",
    }
}

options! {
    /// Options of ONNX Runtime's arena.
    OrtArenaOptions {
        /// how large new chunks are: `next_power_of_two` doubles them, `same_as_requested` makes them as large as the block
        strategy: ExtendStrategy = ExtendStrategy::NextPowerOfTwo;
        /// the first chunk
        initial_chunk: u64 = 1 << 20;
        /// the first chunk after the arena has given chunks back
        initial_growth_chunk: u64 = 2 << 20;
        /// the largest chunk by doubling
        max_power_of_two_extend: u64 = 1 << 30;
        /// a piece with so many bytes left over is split even if it is not twice as large as the block
        max_dead_bytes_per_chunk: u64 = 128 << 20;
        /// bytes of the device that the arena may take
        limit: Option<u64> = None;
    }
}

/// No chunk gets smaller than this when the device refuses larger ones.
const LEAST_CHUNK: u64 = 8 << 10;

/// ONNX Runtime's arena.
#[derive(Debug)]
pub(super) struct OrtArena {
    options: OrtArenaOptions,
    binned: BinnedPieces,
    next_chunk: u64,
    /// The address of the first chunk, which the doubling strategy keeps.
    first: Option<u64>,
}

impl OrtArena {
    pub(super) fn new(options: OrtArenaOptions) -> Self {
        Self {
            binned: BinnedPieces {
                most_left: options.max_dead_bytes_per_chunk,
                ..BinnedPieces::default()
            },
            next_chunk: options.initial_chunk.next_multiple_of(UNIT).max(UNIT),
            first: None,
            options,
        }
    }

    fn extend(&mut self, size: u64, source: &mut dyn Source) -> bool {
        let reserved = self.binned.figures().reserved;
        let available = available(self.options.limit, reserved, source);
        if size > available {
            return false;
        }
        let (mut increased, mut wanted) = (false, size);
        if self.options.strategy == ExtendStrategy::NextPowerOfTwo {
            while size > self.next_chunk {
                self.next_chunk *= 2;
                increased = true;
            }
            wanted = self.next_chunk.min(available);
        }
        let least = size.max(LEAST_CHUNK.min(wanted));
        let Some((address, _)) = self.binned.take_chunk(wanted, least, source) else {
            return false;
        };
        self.first.get_or_insert(address);
        if self.options.strategy == ExtendStrategy::NextPowerOfTwo && !increased {
            let most = self.options.max_power_of_two_extend.max(self.next_chunk);
            self.next_chunk = (self.next_chunk * 2).min(most);
        }
        true
    }
}

impl Allocator for OrtArena {
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
        let extended = self.extend(with_gap, source);
        let placed = extended.then(|| self.binned.place(size, request)).flatten();
        placed.ok_or(out_of_memory)
    }

    fn free(&mut self, address: u64, _: &mut dyn Source) -> Result<u64, NotInUse> {
        self.binned.free(address)
    }

    /// `Shrink`: every chunk without a block in use goes; the doubling strategy keeps the first one.
    fn trim(&mut self, source: &mut dyn Source) {
        let kept = match self.options.strategy {
            ExtendStrategy::NextPowerOfTwo => self.first,
            ExtendStrategy::SameAsRequested => None,
        };
        self.binned
            .give_back(source, |address| Some(address) != kept);
        self.next_chunk = self
            .options
            .initial_growth_chunk
            .next_multiple_of(UNIT)
            .max(UNIT);
    }

    fn figures(&self) -> MemoryFigures {
        self.binned.figures()
    }

    fn largest_free(&self) -> u64 {
        self.binned.free.largest()
    }
}
