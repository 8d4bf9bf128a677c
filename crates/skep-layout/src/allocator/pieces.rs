//! The pieces of chunks, free and in use, linked to their neighbours: boundary tags beside the memory.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasherDefault, Hasher},
};

use super::{MemoryFigures, NotInUse, Source, pages::PagedRange};

/// A hash of addresses: they are no text, and hardly ever hostile.
#[derive(Default)]
pub(super) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, address: u64) {
        // The golden ratio in 64 bits spreads multiples of any power of two.
        let mixed = (self.0 ^ address).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// A map by address, whose order decides nothing.
pub(super) type AddressMap<T> = HashMap<u64, T, BuildHasherDefault<AddressHasher>>;

/// The number of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PieceId(u32);

/// The number of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ChunkId(u32);

/// A part of a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) size: u64,
    /// What the user asked for; 0 while the piece is free.
    pub(super) requested: u64,
    /// The neighbours within the chunk.
    pub(super) before: Option<PieceId>,
    pub(super) behind: Option<PieceId>,
    pub(super) chunk: ChunkId,
    /// For the allocator: whose free list the piece belongs to.
    pub(super) owner: u64,
}

impl Piece {
    pub(super) const fn is_free(&self) -> bool {
        self.requested == 0
    }

    pub(super) const fn is_whole_chunk(&self) -> bool {
        self.before.is_none() && self.behind.is_none()
    }

    pub(super) const fn end(&self) -> u64 {
        self.address + self.size
    }
}

/// All pieces of an allocator.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    slots: Vec<Piece>,
    vacant: Vec<PieceId>,
    /// The last piece of each chunk; `None` of a chunk that is gone.
    last: Vec<Option<PieceId>>,
    in_use: AddressMap<PieceId>,
    figures: MemoryFigures,
}

impl Pieces {
    pub(super) const fn figures(&self) -> MemoryFigures {
        self.figures
    }

    pub(super) fn get(&self, id: PieceId) -> &Piece {
        &self.slots[id.0 as usize]
    }

    fn get_mut(&mut self, id: PieceId) -> &mut Piece {
        &mut self.slots[id.0 as usize]
    }

    /// The slot of a piece that is gone; nothing takes it for a piece any more.
    fn vacate(&mut self, id: PieceId) {
        self.get_mut(id).size = 0;
        self.vacant.push(id);
    }

    fn insert(&mut self, piece: Piece) -> PieceId {
        if let Some(id) = self.vacant.pop() {
            *self.get_mut(id) = piece;
            return id;
        }
        self.slots.push(piece);
        PieceId(u32::try_from(self.slots.len() - 1).expect("fewer pieces than 2^32"))
    }

    /// A chunk from the source: one free piece.
    pub(super) fn add_chunk(&mut self, address: u64, size: u64, owner: u64) -> PieceId {
        self.figures.reserved += size;
        let chunk = ChunkId(u32::try_from(self.last.len()).expect("fewer chunks than 2^32"));
        let id = self.insert(Piece {
            address,
            size,
            requested: 0,
            before: None,
            behind: None,
            chunk,
            owner,
        });
        self.last.push(Some(id));
        id
    }

    /// The last piece of a chunk.
    pub(super) fn last_of(&self, chunk: ChunkId) -> Option<PieceId> {
        self.last[chunk.0 as usize]
    }

    /// The last piece of the first chunk, for allocators that have one.
    pub(super) fn last_of_first(&self) -> Option<PieceId> {
        *self.last.first()?
    }

    /// The chunk becomes longer: by a free piece behind its last one, which is in use.
    pub(super) fn append(&mut self, chunk: ChunkId, size: u64, owner: u64) -> PieceId {
        let last = self.last_of(chunk).expect("the chunk is there");
        self.figures.reserved += size;
        let id = self.insert(Piece {
            address: self.get(last).end(),
            size,
            requested: 0,
            before: Some(last),
            behind: None,
            chunk,
            owner,
        });
        self.get_mut(last).behind = Some(id);
        self.last[chunk.0 as usize] = Some(id);
        id
    }

    /// The chunk loses its last piece, which is free and not its only one.
    pub(super) fn drop_last(&mut self, chunk: ChunkId) {
        let id = self.last_of(chunk).expect("the chunk is there");
        let piece = *self.get(id);
        debug_assert!(piece.is_free());
        let before = piece.before.expect("another piece is before it");
        self.figures.reserved -= piece.size;
        self.get_mut(before).behind = None;
        self.last[chunk.0 as usize] = Some(before);
        self.vacate(id);
    }

    /// A free piece goes back to the source: the whole chunk.
    pub(super) fn remove_chunk(&mut self, id: PieceId) -> Piece {
        let piece = *self.get(id);
        debug_assert!(piece.is_free() && piece.is_whole_chunk());
        self.figures.reserved -= piece.size;
        self.last[piece.chunk.0 as usize] = None;
        self.vacate(id);
        piece
    }

    /// The chunk that ends with this piece becomes longer.
    pub(super) fn grow(&mut self, id: PieceId, by: u64) {
        self.figures.reserved += by;
        self.get_mut(id).size += by;
    }

    /// The chunk that ends with this free piece becomes shorter; the piece keeps at least a byte.
    pub(super) fn shrink(&mut self, id: PieceId, by: u64) {
        debug_assert!(self.get(id).is_free() && self.get(id).size > by);
        self.figures.reserved -= by;
        self.get_mut(id).size -= by;
    }

    /// Cuts a free piece: it keeps `size` bytes, and what is behind them becomes a free piece of its own.
    pub(super) fn split(&mut self, id: PieceId, size: u64) -> PieceId {
        let piece = *self.get(id);
        debug_assert!(piece.is_free() && size > 0 && size < piece.size);
        let rest = self.insert(Piece {
            address: piece.address + size,
            size: piece.size - size,
            before: Some(id),
            ..piece
        });
        match piece.behind {
            Some(behind) => self.get_mut(behind).before = Some(rest),
            None => self.last[piece.chunk.0 as usize] = Some(rest),
        }
        let front = self.get_mut(id);
        front.size = size;
        front.behind = Some(rest);
        rest
    }

    /// Joins a free piece with the one behind it, which is free as well.
    pub(super) fn join_behind(&mut self, id: PieceId) {
        let behind = self.get(id).behind.expect("there is one behind");
        let joined = *self.get(behind);
        debug_assert!(self.get(id).is_free() && joined.is_free());
        let piece = self.get_mut(id);
        piece.size += joined.size;
        piece.behind = joined.behind;
        match joined.behind {
            Some(next) => self.get_mut(next).before = Some(id),
            None => self.last[joined.chunk.0 as usize] = Some(id),
        }
        self.vacate(behind);
    }

    /// A free piece becomes a block of `requested` bytes; returns its address.
    pub(super) fn begin_use(&mut self, id: PieceId, requested: u64, owner: u64) -> u64 {
        let piece = self.get_mut(id);
        debug_assert!(piece.is_free() && requested > 0 && requested <= piece.size);
        piece.requested = requested;
        piece.owner = owner;
        let Piece { address, size, .. } = *piece;
        self.figures.in_use += requested;
        self.figures.padding += size - requested;
        self.in_use.insert(address, id);
        address
    }

    /// The block at `address` becomes a free piece; returns it, and what was asked for.
    pub(super) fn end_use(&mut self, address: u64) -> Result<(PieceId, u64), NotInUse> {
        let id = self.in_use.remove(&address).ok_or(NotInUse { address })?;
        let piece = self.get_mut(id);
        let requested = std::mem::take(&mut piece.requested);
        let size = piece.size;
        self.figures.in_use -= requested;
        self.figures.padding -= size - requested;
        Ok((id, requested))
    }

    /// A free piece, which is in no list, gets another owner.
    pub(super) fn set_owner(&mut self, id: PieceId, owner: u64) {
        self.get_mut(id).owner = owner;
    }

    /// The neighbours of a piece that are free and belong to the same owner: before, behind.
    pub(super) fn free_neighbours(&self, id: PieceId) -> (Option<PieceId>, Option<PieceId>) {
        let piece = self.get(id);
        let joins = |other: &PieceId| {
            let other = self.get(*other);
            other.is_free() && other.owner == piece.owner
        };
        (piece.before.filter(joins), piece.behind.filter(joins))
    }
}

/// A chunk over a range of addresses: it grows and shrinks at its end.
#[derive(Debug)]
pub(super) struct GrowingChunk {
    range: PagedRange,
    chunk: Option<ChunkId>,
}

impl GrowingChunk {
    /// A chunk that may grow to `bytes`, `step` by `step`.
    pub(super) fn reserve(bytes: u64, step: u64, source: &mut dyn Source) -> Option<Self> {
        let range = PagedRange::reserve(bytes, step, source)?;
        Some(Self { range, chunk: None })
    }

    /// The last piece, if it is free.
    pub(super) fn free_end(&self, pieces: &Pieces) -> Option<PieceId> {
        let last = pieces.last_of(self.chunk?)?;
        pieces.get(last).is_free().then_some(last)
    }

    /// Commits memory until the free end has `bytes`; it is listed in `free` afterwards. False where memory is refused,
    /// or is more than `available`.
    pub(super) fn grow(
        &mut self,
        bytes: u64,
        available: u64,
        owner: u64,
        pieces: &mut Pieces,
        free: &mut FreePieces,
        source: &mut dyn Source,
    ) -> bool {
        let end = self.free_end(pieces);
        let there = end.map_or(0, |id| pieces.get(id).size);
        let more = bytes.saturating_sub(there).max(1);
        let more = more.next_multiple_of(self.range.step());
        if more > available {
            return false;
        }
        let Some((address, more)) = self.range.commit(more, source) else {
            return false;
        };
        let id = match (end, self.chunk) {
            (Some(end), _) => {
                free.remove(pieces, end);
                pieces.grow(end, more);
                end
            }
            (None, Some(chunk)) => pieces.append(chunk, more, owner),
            (None, None) => {
                let id = pieces.add_chunk(address, more, owner);
                self.chunk = Some(pieces.get(id).chunk);
                id
            }
        };
        free.insert(pieces, id);
        true
    }

    /// Gives memory of the free end back, except for the first `kept` bytes of it; returns how many bytes went.
    pub(super) fn shrink(
        &mut self,
        kept: u64,
        pieces: &mut Pieces,
        free: &mut FreePieces,
        source: &mut dyn Source,
    ) -> u64 {
        let Some(end) = self.free_end(pieces) else {
            return 0;
        };
        let piece = *pieces.get(end);
        let less = piece.size.saturating_sub(kept) / self.range.step() * self.range.step();
        if less == 0 {
            return 0;
        }
        free.remove(pieces, end);
        let less = self.range.decommit(less, source);
        if less < piece.size {
            pieces.shrink(end, less);
            free.insert(pieces, end);
        } else if piece.is_whole_chunk() {
            pieces.remove_chunk(end);
            self.chunk = None;
        } else {
            pieces.drop_last(piece.chunk);
        }
        less
    }
}

/// Free pieces by size, then by address.
#[derive(Debug, Default)]
pub(super) struct FreePieces {
    by_size: BTreeSet<(u64, u64, PieceId)>,
}

impl FreePieces {
    pub(super) fn insert(&mut self, pieces: &Pieces, id: PieceId) {
        let piece = pieces.get(id);
        self.by_size.insert((piece.size, piece.address, id));
    }

    pub(super) fn remove(&mut self, pieces: &Pieces, id: PieceId) {
        let piece = pieces.get(id);
        let found = self.by_size.remove(&(piece.size, piece.address, id));
        debug_assert!(found, "a free piece is listed");
    }

    /// Pieces of at least `size` bytes, the smallest first.
    pub(super) fn at_least(&self, size: u64) -> impl Iterator<Item = PieceId> {
        let range = self.by_size.range((size, 0, PieceId(0))..);
        range.map(|(_, _, id)| *id)
    }

    /// The smallest piece with room for `size` bytes at a multiple of `alignment`, and how many of its bytes lie before
    /// that: none, or at least `least`, which then are a piece of their own.
    pub(super) fn find(
        &self,
        pieces: &Pieces,
        size: u64,
        alignment: u64,
        least: u64,
    ) -> Option<(PieceId, u64)> {
        self.find_before_end(pieces, None, size, alignment, least)
    }

    /// The same, with a piece that is taken only if no other fits: the free end of a heap.
    pub(super) fn find_before_end(
        &self,
        pieces: &Pieces,
        end: Option<PieceId>,
        size: u64,
        alignment: u64,
        least: u64,
    ) -> Option<(PieceId, u64)> {
        let fits = |id| room(pieces, id, size, alignment, least);
        let mut inner = self.at_least(size).filter(|id| Some(*id) != end);
        inner.find_map(fits).or_else(|| end.and_then(fits))
    }

    /// Takes a piece off the list, with the `gap` bytes in front of it left there.
    pub(super) fn take(&mut self, pieces: &mut Pieces, id: PieceId, gap: u64) -> PieceId {
        self.remove(pieces, id);
        if gap == 0 {
            return id;
        }
        let rest = pieces.split(id, gap);
        self.insert(pieces, id);
        rest
    }

    /// Cuts what is behind the first `size` bytes of an unlisted piece off, and lists it.
    pub(super) fn trim_to(&mut self, pieces: &mut Pieces, id: PieceId, size: u64) {
        let rest = pieces.split(id, size);
        self.insert(pieces, rest);
    }

    /// Gives whole free chunks back to the source, those that `may_go`; returns them.
    pub(super) fn give_back(
        &mut self,
        pieces: &mut Pieces,
        source: &mut dyn Source,
        may_go: impl Fn(&Piece) -> bool,
    ) -> Vec<Piece> {
        let whole: Vec<PieceId> = self
            .iter()
            .filter(|id| {
                let piece = pieces.get(*id);
                piece.is_whole_chunk() && may_go(piece)
            })
            .collect();
        let gone = whole.into_iter().map(|id| {
            self.remove(pieces, id);
            let chunk = pieces.remove_chunk(id);
            source.give_back(chunk.address, chunk.size);
            chunk
        });
        gone.collect()
    }

    /// All, the largest last.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = PieceId> {
        self.by_size.iter().map(|(_, _, id)| *id)
    }

    /// The size of the largest piece; 0 for an empty list.
    pub(super) fn largest(&self) -> u64 {
        self.by_size.last().map_or(0, |(size, _, _)| *size)
    }

    /// Frees a block that has just ended: joins it with its free neighbours and lists the result.
    pub(super) fn release(&mut self, pieces: &mut Pieces, mut id: PieceId) -> PieceId {
        let (before, behind) = pieces.free_neighbours(id);
        if let Some(behind) = behind {
            self.remove(pieces, behind);
            pieces.join_behind(id);
        }
        if let Some(before) = before {
            self.remove(pieces, before);
            pieces.join_behind(before);
            id = before;
        }
        self.insert(pieces, id);
        id
    }
}

/// A free piece with room for `size` bytes, and how many of its bytes lie before them; see [`FreePieces::find`].
pub(super) fn room(
    pieces: &Pieces,
    id: PieceId,
    size: u64,
    alignment: u64,
    least: u64,
) -> Option<(PieceId, u64)> {
    let piece = pieces.get(id);
    let gap = gap_of(piece.address, alignment, least);
    (piece.size >= size + gap).then_some((id, gap))
}

/// How many bytes lie before the next address that is a multiple of `alignment`: none, or at least `least`.
pub(super) fn gap_of(address: u64, alignment: u64, least: u64) -> u64 {
    let aligned = address.next_multiple_of(alignment);
    if aligned == address {
        return 0;
    }
    // Both are powers of two, so the sum is aligned as well.
    let step = alignment.max(least);
    if aligned - address < least {
        aligned - address + step
    } else {
        aligned - address
    }
}
