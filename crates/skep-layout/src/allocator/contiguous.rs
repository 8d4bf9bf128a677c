//! One contiguous heap that grows and shrinks at its end, as by `sbrk`: first fit and best fit.

use std::collections::BTreeMap;

use super::{
    Allocator, BlockRequest, MemoryFigures, NotInUse, OutOfMemory, Source,
    options::options,
    pieces::{FreePieces, GrowingChunk, PieceId, Pieces, room},
    rounded,
};

options! {
    /// Options of the contiguous heaps.
    ContiguousOptions {
        /// sizes are multiples of this power of two
        unit: u64 = 256;
        /// the most bytes that the heap may grow to
        limit: u64 = 1 << 40;
    }
}

/// Which free piece a block gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// The one at the lowest address.
    First,
    /// The smallest one that is not the heap's end.
    Best,
}

/// A contiguous heap.
#[derive(Debug)]
pub(super) struct Contiguous {
    fit: Fit,
    unit: u64,
    limit: u64,
    pieces: Pieces,
    free: FreePieces,
    /// The same by address, for the first fit.
    by_address: BTreeMap<u64, PieceId>,
    heap: Option<GrowingChunk>,
}

const OWNER: u64 = 0;

impl Contiguous {
    pub(super) fn new(fit: Fit, options: &ContiguousOptions) -> Self {
        Self {
            fit,
            unit: options.unit.max(1).next_power_of_two(),
            limit: options.limit,
            pieces: Pieces::default(),
            free: FreePieces::default(),
            by_address: BTreeMap::new(),
            heap: None,
        }
    }

    fn find(&self, size: u64, alignment: u64) -> Option<(PieceId, u64)> {
        match self.fit {
            // The free end is for what fits nowhere else.
            Fit::Best => {
                let heap = self.heap.as_ref();
                let end = heap.and_then(|heap| heap.free_end(&self.pieces));
                let (pieces, unit) = (&self.pieces, self.unit);
                self.free
                    .find_before_end(pieces, end, size, alignment, unit)
            }
            Fit::First => {
                let mut lowest_first = self.by_address.values();
                lowest_first.find_map(|id| room(&self.pieces, *id, size, alignment, self.unit))
            }
        }
    }

    fn grow(&mut self, size: u64, source: &mut dyn Source) -> bool {
        if self.heap.is_none() {
            // Addresses for whatever is free later on.
            self.heap = GrowingChunk::reserve(self.limit, self.unit, source);
        }
        let Some(heap) = self.heap.as_mut() else {
            return false;
        };
        let available = source.available().unwrap_or(u64::MAX);
        let grown = heap.grow(
            size,
            available,
            OWNER,
            &mut self.pieces,
            &mut self.free,
            source,
        );
        if grown && let Some(end) = heap.free_end(&self.pieces) {
            self.by_address.insert(self.pieces.get(end).address, end);
        }
        grown
    }
}

impl Allocator for Contiguous {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        let out_of_memory = request.refused();
        let size = rounded(request.bytes, self.unit).ok_or(out_of_memory)?;
        let mut found = self.find(size, request.alignment);
        if found.is_none() {
            let more = request.slack(self.unit);
            if !self.grow(size + more, source) {
                return Err(out_of_memory);
            }
            found = self.find(size, request.alignment);
        }
        let (id, gap) = found.ok_or(out_of_memory)?;
        let address = self.pieces.get(id).address;
        self.by_address.remove(&address);
        let id = self.free.take(&mut self.pieces, id, gap);
        if gap > 0 {
            let front = self.pieces.get(id).before.expect("the gap is before it");
            self.by_address.insert(address, front);
        }
        if self.pieces.get(id).size > size {
            self.free.trim_to(&mut self.pieces, id, size);
            let rest = self.pieces.get(id).behind.expect("the rest is behind it");
            self.by_address.insert(self.pieces.get(rest).address, rest);
        }
        Ok(self.pieces.begin_use(id, request.bytes, OWNER))
    }

    fn free(&mut self, address: u64, _: &mut dyn Source) -> Result<u64, NotInUse> {
        let (id, requested) = self.pieces.end_use(address)?;
        if let (_, Some(behind)) = self.pieces.free_neighbours(id) {
            self.by_address.remove(&self.pieces.get(behind).address);
        }
        let id = self.free.release(&mut self.pieces, id);
        self.by_address.insert(self.pieces.get(id).address, id);
        Ok(requested)
    }

    fn trim(&mut self, source: &mut dyn Source) {
        let Some(heap) = self.heap.as_mut() else {
            return;
        };
        if let Some(end) = heap.free_end(&self.pieces) {
            self.by_address.remove(&self.pieces.get(end).address);
        }
        heap.shrink(0, &mut self.pieces, &mut self.free, source);
        if let Some(end) = heap.free_end(&self.pieces) {
            self.by_address.insert(self.pieces.get(end).address, end);
        }
    }

    fn figures(&self) -> MemoryFigures {
        self.pieces.figures()
    }

    fn largest_free(&self) -> u64 {
        self.free.largest()
    }
}
