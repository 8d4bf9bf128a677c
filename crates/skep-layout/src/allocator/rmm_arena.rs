//! The arenas of RAPIDS' memory manager (`rmm::mr::arena_memory_resource`).
//!
//! Source: rapidsai/rmm, commit 5d50a37b9612. Each stream has an arena, which takes superblocks from a global arena and
//! returns those that are empty. Sizes are rounded to 117 classes; a block lies at the lowest address that fits.
//!
//! Where the source has no limit, the global arena takes another chunk when it is used up; the library takes one chunk and
//! then fails.

use std::collections::BTreeMap;

use super::{
    Allocator, BlockRequest, MemoryFigures, NotInUse, OutOfMemory, Source,
    options::options,
    pieces::{PieceId, Pieces, gap_of},
};

const UNIT: u64 = 256;
const SUPERBLOCK: u64 = 1 << 20;

options! {
    /// Options of RAPIDS' arenas.
    RmmArenaOptions {
        /// what the global arena takes at a time; `none` is half of the source's memory, or 64 MiB where it has no limit
        arena_size: Option<u64> = None;
    }
}

/// Pieces, of which the free ones are known by address: first fit.
#[derive(Debug, Default)]
struct FirstFit {
    pieces: Pieces,
    free: BTreeMap<u64, BTreeMap<u64, PieceId>>,
}

impl FirstFit {
    fn list(&mut self, id: PieceId) {
        let piece = self.pieces.get(id);
        let (owner, address) = (piece.owner, piece.address);
        self.free.entry(owner).or_default().insert(address, id);
    }

    fn unlist(&mut self, id: PieceId) {
        let piece = self.pieces.get(id);
        let (owner, address) = (piece.owner, piece.address);
        if let Some(list) = self.free.get_mut(&owner) {
            list.remove(&address);
        }
    }

    fn place(&mut self, size: u64, request: BlockRequest, owner: u64) -> Option<u64> {
        let list = self.free.get(&owner)?;
        let (mut id, gap) = list.values().find_map(|id| {
            let piece = self.pieces.get(*id);
            let gap = gap_of(piece.address, request.alignment, UNIT);
            (piece.size >= size + gap).then_some((*id, gap))
        })?;
        self.unlist(id);
        if gap > 0 {
            let rest = self.pieces.split(id, gap);
            self.list(id);
            id = rest;
        }
        if self.pieces.get(id).size > size {
            let rest = self.pieces.split(id, size);
            self.list(rest);
        }
        Some(self.pieces.begin_use(id, request.bytes, owner))
    }

    /// Frees a block and returns its piece, joined with its neighbours.
    fn free(&mut self, address: u64) -> Result<(PieceId, u64), NotInUse> {
        let (mut id, requested) = self.pieces.end_use(address)?;
        let (before, behind) = self.pieces.free_neighbours(id);
        if let Some(behind) = behind {
            self.unlist(behind);
            self.pieces.join_behind(id);
        }
        if let Some(before) = before {
            self.unlist(before);
            self.pieces.join_behind(before);
            id = before;
        }
        self.list(id);
        Ok((id, requested))
    }

    fn largest(&self) -> u64 {
        let ids = self.free.values().flat_map(BTreeMap::values);
        let sizes = ids.map(|id| self.pieces.get(*id).size);
        sizes.max().unwrap_or(0)
    }
}

/// RAPIDS' arenas.
#[derive(Debug)]
pub(super) struct RmmArena {
    arena_size: Option<u64>,
    /// Superblocks are its blocks.
    global: FirstFit,
    /// By stream, in one list of pieces.
    arenas: FirstFit,
}

/// The class of a size.
fn class_of(bytes: u64) -> Option<u64> {
    if bytes <= 8 * UNIT {
        return Some(bytes.next_multiple_of(UNIT));
    }
    if bytes > 256 << 30 {
        return None;
    }
    // Four classes between two powers of two.
    let step = (1 << (bytes - 1).ilog2()) / 4;
    let class = bytes.next_multiple_of(step);
    // The library's table has 54 KiB where 56 KiB would be expected.
    Some(if class == 56 << 10 && bytes <= 54 << 10 {
        54 << 10
    } else if class == 56 << 10 {
        64 << 10
    } else {
        class
    })
}

impl RmmArena {
    pub(super) fn new(options: &RmmArenaOptions) -> Self {
        Self {
            arena_size: options.arena_size,
            global: FirstFit::default(),
            arenas: FirstFit::default(),
        }
    }

    /// Another superblock for the stream's arena.
    fn take_superblock(&mut self, size: u64, stream: u64, source: &mut dyn Source) -> bool {
        let size = size.max(SUPERBLOCK).next_multiple_of(UNIT);
        let request = BlockRequest::of(size);
        let mut address = self.global.place(size, request, 0);
        if address.is_none() {
            let half = source.available().map_or(64 << 20, |bytes| bytes / 2);
            let wanted = self.arena_size.unwrap_or(half) / UNIT * UNIT;
            let sizes = [wanted.max(size), size];
            let chunk = sizes
                .into_iter()
                .find_map(|bytes| Some((source.take(bytes)?, bytes)));
            let Some((start, bytes)) = chunk else {
                return false;
            };
            let id = self.global.pieces.add_chunk(start, bytes, 0);
            self.global.list(id);
            address = self.global.place(size, request, 0);
        }
        let Some(address) = address else {
            return false;
        };
        let id = self.arenas.pieces.add_chunk(address, size, stream);
        self.arenas.list(id);
        true
    }
}

impl Allocator for RmmArena {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        let out_of_memory = request.refused();
        let size = class_of(request.bytes).ok_or(out_of_memory)?;
        if let Some(address) = self.arenas.place(size, request, request.stream) {
            return Ok(address);
        }
        // A superblock begins at a multiple of the unit.
        let gap = request.slack(UNIT);
        if !self.take_superblock(size + gap, request.stream, source) {
            return Err(out_of_memory);
        }
        let placed = self.arenas.place(size, request, request.stream);
        placed.ok_or(out_of_memory)
    }

    fn free(&mut self, address: u64, _: &mut dyn Source) -> Result<u64, NotInUse> {
        let (id, requested) = self.arenas.free(address)?;
        if self.arenas.pieces.get(id).is_whole_chunk() {
            // An empty superblock goes back to the global arena.
            self.arenas.unlist(id);
            let superblock = self.arenas.pieces.remove_chunk(id);
            let returned = self.global.free(superblock.address);
            debug_assert!(
                returned.is_ok(),
                "a superblock is a block of the global arena"
            );
        }
        Ok(requested)
    }

    /// Gives nothing back: the global arena keeps its memory.
    fn trim(&mut self, _: &mut dyn Source) {}

    fn figures(&self) -> MemoryFigures {
        MemoryFigures {
            reserved: self.global.pieces.figures().reserved,
            ..self.arenas.pieces.figures()
        }
    }

    fn largest_free(&self) -> u64 {
        self.global.largest().max(self.arenas.largest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_those_of_the_library() {
        let classes = [
            1,
            256,
            257,
            2048,
            2049,
            3000,
            4096,
            4097,
            50_000,
            56 << 10,
            1 << 20,
        ];
        let expected = [
            256,
            256,
            512,
            2048,
            2560,
            3072,
            4096,
            5120,
            54 << 10,
            64 << 10,
            1 << 20,
        ];
        assert_eq!(classes.map(class_of), expected.map(Some));
        assert_eq!(class_of((256 << 30) + 1), None);
    }
}
