//! TLSF: two-level segregated fit (Masmano et al., "TLSF: a new dynamic memory allocator for real-time systems", ECRTS
//! 2004).
//!
//! The first level of lists is the power of two below a size, the second divides it evenly. A search takes the first list
//! all of whose pieces are large enough ("good fit"), found by two bit maps in constant time.

use super::{
    Allocator, BlockRequest, CHUNK_ALIGNMENT, MemoryFigures, NotInUse, OutOfMemory, Source,
    options::options,
    pieces::{PieceId, Pieces, gap_of},
    rounded,
};

options! {
    /// Options of TLSF.
    TlsfOptions {
        /// the second level has two to this many lists
        second_level: u32 = 5;
        /// sizes are multiples of this power of two
        unit: u64 = 256;
        /// the smallest chunk that is taken from the source
        chunk: u64 = 2 << 20;
    }
}

const OWNER: u64 = 0;

/// Two-level segregated fit.
#[derive(Debug)]
pub(super) struct Tlsf {
    second: u32,
    unit: u64,
    chunk: u64,
    pieces: Pieces,
    /// A bit for each first level that has a piece.
    levels: u64,
    /// By first level: a bit for each of its lists.
    lists_of: [u64; 64],
    /// By first and second level, the last freed piece last.
    lists: Vec<Vec<PieceId>>,
}

impl Tlsf {
    pub(super) fn new(options: &TlsfOptions) -> Self {
        let second = options.second_level.clamp(1, 6);
        Self {
            second,
            unit: options.unit.max(1).next_power_of_two().min(1 << 20),
            chunk: options.chunk,
            pieces: Pieces::default(),
            levels: 0,
            lists_of: [0; 64],
            lists: vec![Vec::new(); 64 << second],
        }
    }

    /// The list that a piece of this size is in.
    const fn list_of(&self, size: u64) -> (usize, usize) {
        let first = size.ilog2();
        let second = if first >= self.second {
            (size >> (first - self.second)) - (1 << self.second)
        } else {
            (size << (self.second - first)) - (1 << self.second)
        };
        (first as usize, second as usize)
    }

    const fn index(&self, first: usize, second: usize) -> usize {
        (first << self.second) + second
    }

    fn insert(&mut self, id: PieceId) {
        let (first, second) = self.list_of(self.pieces.get(id).size);
        let index = self.index(first, second);
        self.lists[index].push(id);
        self.levels |= 1 << first;
        self.lists_of[first] |= 1 << second;
    }

    fn remove(&mut self, id: PieceId) {
        let (first, second) = self.list_of(self.pieces.get(id).size);
        let index = self.index(first, second);
        let list = &mut self.lists[index];
        let position = list.iter().rposition(|other| *other == id);
        list.remove(position.expect("a free piece is listed"));
        if list.is_empty() {
            self.lists_of[first] &= !(1 << second);
            if self.lists_of[first] == 0 {
                self.levels &= !(1 << first);
            }
        }
    }

    /// A piece of the first list whose pieces all have `size` bytes.
    fn find(&self, size: u64) -> Option<PieceId> {
        // Up to where the next list begins.
        let first = size.ilog2();
        let step = if first >= self.second {
            (1 << (first - self.second)) - 1
        } else {
            0
        };
        let (mut first, second) = self.list_of(size + step);
        let mut lists = self.lists_of[first] & (u64::MAX << second);
        if lists == 0 {
            let levels = self.levels & (u64::MAX << first << 1);
            if levels == 0 {
                return None;
            }
            first = levels.trailing_zeros() as usize;
            lists = self.lists_of[first];
        }
        let second = lists.trailing_zeros() as usize;
        self.lists[self.index(first, second)].last().copied()
    }

    fn place(&mut self, size: u64, request: BlockRequest) -> Option<u64> {
        let slack = if request.alignment > self.unit {
            // An address may lie a unit too far to leave a piece in front.
            request.alignment + self.unit
        } else {
            0
        };
        let mut id = self.find(size + slack)?;
        self.remove(id);
        let gap = gap_of(self.pieces.get(id).address, request.alignment, self.unit);
        if gap > 0 {
            let rest = self.pieces.split(id, gap);
            self.insert(id);
            id = rest;
        }
        if self.pieces.get(id).size > size {
            let rest = self.pieces.split(id, size);
            self.insert(rest);
        }
        Some(self.pieces.begin_use(id, request.bytes, OWNER))
    }
}

impl Allocator for Tlsf {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        let out_of_memory = request.refused();
        let size = rounded(request.bytes, self.unit).ok_or(out_of_memory)?;
        if let Some(address) = self.place(size, request) {
            return Ok(address);
        }
        let slack = if request.alignment > self.unit.min(CHUNK_ALIGNMENT) {
            request.alignment + self.unit
        } else {
            0
        };
        // The class of a chunk that is just large enough may begin below it: a chunk has a whole step more.
        let wanted = size + slack;
        let step = 1_u64 << wanted.ilog2().saturating_sub(self.second);
        let wanted = rounded(wanted + step, self.unit).ok_or(out_of_memory)?;
        let wanted = wanted.max(self.chunk.next_multiple_of(self.unit));
        let address = source.take(wanted).ok_or(out_of_memory)?;
        let id = self.pieces.add_chunk(address, wanted, OWNER);
        self.insert(id);
        self.place(size, request).ok_or(out_of_memory)
    }

    fn free(&mut self, address: u64, _: &mut dyn Source) -> Result<u64, NotInUse> {
        let (mut id, requested) = self.pieces.end_use(address)?;
        let (before, behind) = self.pieces.free_neighbours(id);
        if let Some(behind) = behind {
            self.remove(behind);
            self.pieces.join_behind(id);
        }
        if let Some(before) = before {
            self.remove(before);
            self.pieces.join_behind(before);
            id = before;
        }
        self.insert(id);
        Ok(requested)
    }

    /// Gives chunks back that are free as a whole.
    fn trim(&mut self, source: &mut dyn Source) {
        let free = self.lists.iter().flatten().copied();
        let whole: Vec<PieceId> = free
            .filter(|id| self.pieces.get(*id).is_whole_chunk())
            .collect();
        for id in whole {
            self.remove(id);
            let chunk = self.pieces.remove_chunk(id);
            source.give_back(chunk.address, chunk.size);
        }
    }

    fn figures(&self) -> MemoryFigures {
        self.pieces.figures()
    }

    fn largest_free(&self) -> u64 {
        let free = self.lists.iter().flatten();
        let sizes = free.map(|id| self.pieces.get(*id).size);
        sizes.max().unwrap_or(0)
    }
}
