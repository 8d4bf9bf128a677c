//! Doug Lea's allocator: best fit with boundary tags, a heap that grows at its end, and large blocks of their own.
//!
//! Source: "A memory allocator" (Lea, 1996 and 2000) and the parameters of dlmalloc 2.8.6. Its tags of 8 bytes a block are
//! counted and not written: device memory cannot hold them. The dynamic threshold is the GNU library's.

use super::{
    Allocator, BlockRequest, CHUNK_ALIGNMENT, MemoryFigures, NotInUse, OutOfMemory, Source,
    options::options,
    pieces::{FreePieces, GrowingChunk, PieceId, Pieces, room},
    rounded,
};

const UNIT: u64 = 16;
const TAG: u64 = 8;
const MIN_BLOCK: u64 = 32;
/// Below this, a block is cut from the last remainder rather than from the best fit.
const SMALL: u64 = 256;
/// The dynamic threshold does not grow beyond this.
const MAX_MAP_THRESHOLD: u64 = 32 << 20;
const OWNER: u64 = 0;

options! {
    /// Options of Doug Lea's allocator.
    DlmallocOptions {
        /// the heap grows by multiples of this
        granularity: u64 = 64 << 10;
        /// blocks of this size and larger are chunks of their own
        map_threshold: u64 = 256 << 10;
        /// a freed chunk of its own raises the threshold to its size, up to 32 MiB
        dynamic_threshold: bool = true;
        /// a free end of the heap that is larger goes back
        trim_threshold: u64 = 2 << 20;
        /// the most bytes that the heap may grow to
        limit: u64 = 1 << 40;
    }
}

/// Doug Lea's allocator.
#[derive(Debug)]
pub(super) struct Dlmalloc {
    options: DlmallocOptions,
    map_threshold: u64,
    trim_threshold: u64,
    pieces: Pieces,
    free: FreePieces,
    heap: Option<GrowingChunk>,
    /// What was left of the last small block's piece, and its address.
    remainder: Option<(PieceId, u64)>,
    mapped: super::segregated::SizeLists,
}

impl Dlmalloc {
    pub(super) fn new(options: DlmallocOptions) -> Self {
        Self {
            map_threshold: options.map_threshold,
            trim_threshold: options.trim_threshold,
            options,
            pieces: Pieces::default(),
            free: FreePieces::default(),
            heap: None,
            remainder: None,
            mapped: super::segregated::SizeLists::default(),
        }
    }

    fn end_of_heap(&self) -> Option<PieceId> {
        self.heap.as_ref()?.free_end(&self.pieces)
    }

    /// A small block's exact fit, or the last remainder; then the best fit; then the end of the heap.
    fn find(&self, size: u64, alignment: u64) -> Option<(PieceId, u64)> {
        let end = self.end_of_heap();
        let fits = |id| room(&self.pieces, id, size, alignment, MIN_BLOCK);
        if size < SMALL {
            let mut inner = self.free.at_least(size).filter(|id| Some(*id) != end);
            let exact = inner.next().filter(|id| self.pieces.get(*id).size == size);
            if let Some(found) = exact.and_then(fits) {
                return Some(found);
            }
            if let Some((id, address)) = self.remainder.filter(|(id, _)| Some(*id) != end) {
                let piece = self.pieces.get(id);
                let is_there = piece.address == address && piece.is_free() && piece.size >= size;
                if is_there && let Some(found) = fits(id) {
                    return Some(found);
                }
            }
        }
        let pieces = &self.pieces;
        self.free
            .find_before_end(pieces, end, size, alignment, MIN_BLOCK)
    }

    fn grow(&mut self, size: u64, source: &mut dyn Source) -> bool {
        if self.heap.is_none() {
            // Addresses for whatever is free later on.
            let options = &self.options;
            self.heap = GrowingChunk::reserve(options.limit, options.granularity, source);
        }
        let Some(heap) = self.heap.as_mut() else {
            return false;
        };
        let available = source.available().unwrap_or(u64::MAX);
        let (pieces, free) = (&mut self.pieces, &mut self.free);
        heap.grow(size, available, OWNER, pieces, free, source)
    }

    fn map(&mut self, request: BlockRequest, source: &mut dyn Source) -> Option<u64> {
        let size = rounded(request.bytes + TAG, source.page())?;
        let address = source.take(size)?;
        self.mapped.figures.reserved += size;
        self.mapped.begin_use(address, request.bytes, size);
        Some(address)
    }
}

impl Allocator for Dlmalloc {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        let out_of_memory = request.refused();
        let size = rounded(request.bytes.saturating_add(TAG), UNIT).ok_or(out_of_memory)?;
        let size = size.max(MIN_BLOCK);
        if request.bytes >= self.map_threshold
            && request.alignment <= CHUNK_ALIGNMENT
            && let Some(address) = self.map(request, source)
        {
            return Ok(address);
        }
        let alignment = request.alignment;
        let mut found = self.find(size, alignment);
        if found.is_none() {
            let gap = if alignment > UNIT {
                alignment + MIN_BLOCK
            } else {
                0
            };
            if !self.grow(size + gap, source) {
                return Err(out_of_memory);
            }
            found = self.find(size, alignment);
        }
        let (id, gap) = found.ok_or(out_of_memory)?;
        let id = self.free.take(&mut self.pieces, id, gap);
        if self.pieces.get(id).size - size >= MIN_BLOCK {
            self.free.trim_to(&mut self.pieces, id, size);
            if size < SMALL {
                let rest = self.pieces.get(id).behind;
                self.remainder = rest.map(|rest| (rest, self.pieces.get(rest).address));
            }
        }
        Ok(self.pieces.begin_use(id, request.bytes, OWNER))
    }

    fn free(&mut self, address: u64, source: &mut dyn Source) -> Result<u64, NotInUse> {
        if let Ok((requested, size)) = self.mapped.end_use(address) {
            self.mapped.figures.reserved -= size;
            source.give_back(address, size);
            let raises = self.map_threshold..MAX_MAP_THRESHOLD + 1;
            if self.options.dynamic_threshold && raises.contains(&size) {
                self.map_threshold = size + 1;
                self.trim_threshold = 2 * size;
            }
            return Ok(requested);
        }
        let (id, requested) = self.pieces.end_use(address)?;
        self.free.release(&mut self.pieces, id);
        let end = self.end_of_heap();
        if end.is_some_and(|end| self.pieces.get(end).size > self.trim_threshold) {
            self.shrink(self.options.granularity, source);
        }
        Ok(requested)
    }

    fn trim(&mut self, source: &mut dyn Source) {
        self.shrink(0, source);
    }

    fn figures(&self) -> MemoryFigures {
        let (heap, mapped) = (self.pieces.figures(), self.mapped.figures);
        MemoryFigures {
            in_use: heap.in_use + mapped.in_use,
            padding: heap.padding + mapped.padding,
            reserved: heap.reserved + mapped.reserved,
        }
    }

    fn largest_free(&self) -> u64 {
        self.free.largest()
    }
}

impl Dlmalloc {
    fn shrink(&mut self, kept: u64, source: &mut dyn Source) {
        if let Some(heap) = self.heap.as_mut() {
            heap.shrink(kept, &mut self.pieces, &mut self.free, source);
        }
    }
}
