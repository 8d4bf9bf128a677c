//! PyTorch's caching allocator.
//!
//! Source: `c10/cuda/CUDACachingAllocator.cpp`, commit 001074d25084. Blocks of a stream are reused on that stream alone.
//! The events that let a block be used on a second stream are left out: a trace says when a block is really free.
//!
//! ```text
//! small pool: blocks up to 1 MiB      segments of 2 MiB
//! large pool: below 10 MiB            segments of 20 MiB
//!             from 10 MiB on          segments of the block's size, in multiples of 2 MiB
//! ```

use std::collections::BTreeMap;

use super::{
    Allocator, BlockRequest, CHUNK_ALIGNMENT, MemoryFigures, NotInUse, OutOfMemory, Source,
    available,
    options::options,
    pieces::{FreePieces, GrowingChunk, Piece, PieceId, Pieces},
    rounded,
};

const MIB: u64 = 1 << 20;
const MIN_BLOCK: u64 = 512;
const SMALL_BLOCK: u64 = MIB;
const SMALL_SEGMENT: u64 = 2 * MIB;
const LARGE_SEGMENT: u64 = 20 * MIB;
const LEAST_OWN_SEGMENT: u64 = 10 * MIB;
const ROUND_LARGE: u64 = 2 * MIB;

/// Addresses of an expandable segment where the device has no limit: the library takes 1 1/8 of the device's memory.
const UNLIMITED_SEGMENT: u64 = 1 << 40;

options! {
    /// Options of PyTorch's caching allocator, as in `PYTORCH_CUDA_ALLOC_CONF`.
    PytorchOptions {
        /// blocks of this size and larger are never split, and never serve smaller requests
        max_split_size: Option<u64> = None;
        /// a block that is never split may be larger than the request by so much
        max_non_split_rounding: u64 = LARGE_SEGMENT;
        /// sizes are rounded up to this many steps between two powers of two; 0 rounds to multiples of 512
        roundup_power2_divisions: u32 = 0;
        /// share of the limit above which unused segments are given back, the longest unused first; 0 is never
        garbage_collection_threshold: f64 = 0.0;
        /// grow one range of addresses for each pool instead of taking segments
        expandable_segments: bool = false;
        /// bytes of the device that the allocator may take
        limit: Option<u64> = None;
    }
}

/// Blocks of one stream and size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PoolKey {
    stream: u64,
    is_small: bool,
}

impl PoolKey {
    /// The same as a number, for the pieces.
    const fn owner(self) -> u64 {
        self.stream * 2 + self.is_small as u64
    }

    const fn of(piece: &Piece) -> Self {
        Self {
            stream: piece.owner / 2,
            is_small: piece.owner % 2 == 1,
        }
    }
}

/// The free blocks of a pool.
#[derive(Debug, Default)]
struct Pool {
    free: FreePieces,
    /// With expandable segments: the pool's range of addresses.
    expandable: Option<GrowingChunk>,
}

/// PyTorch's caching allocator.
#[derive(Debug)]
pub(super) struct PytorchCaching {
    options: PytorchOptions,
    pieces: Pieces,
    pools: BTreeMap<PoolKey, Pool>,
    /// Searches so far: the age of a free block is how many came since it was freed.
    searches: u64,
    /// When each free whole segment was freed, in searches, by address.
    freed_at: BTreeMap<u64, u64>,
}

impl PytorchCaching {
    pub(super) fn new(options: PytorchOptions) -> Self {
        Self {
            options,
            pieces: Pieces::default(),
            pools: BTreeMap::new(),
            searches: 0,
            freed_at: BTreeMap::new(),
        }
    }

    fn round(&self, bytes: u64) -> Option<u64> {
        let divisions = u64::from(self.options.roundup_power2_divisions);
        if divisions > 1 && bytes > MIN_BLOCK * divisions {
            let power = 1_u64 << (63 - bytes.leading_zeros());
            // Divisions are those of the interval between two powers of two.
            let step = (power / divisions.next_power_of_two()).max(MIN_BLOCK);
            return rounded(bytes, step);
        }
        rounded(bytes.max(1), MIN_BLOCK)
    }

    fn max_split(&self) -> u64 {
        self.options.max_split_size.unwrap_or(u64::MAX)
    }

    const fn segment_size(size: u64, is_small: bool) -> u64 {
        if is_small {
            SMALL_SEGMENT
        } else if size < LEAST_OWN_SEGMENT {
            LARGE_SEGMENT
        } else {
            size.next_multiple_of(ROUND_LARGE)
        }
    }

    /// The best free block of the pool.
    fn find(&mut self, key: PoolKey, size: u64, alignment: u64) -> Option<(PieceId, u64)> {
        self.searches += 1;
        let pool = self.pools.get(&key)?;
        let (id, gap) = pool.free.find(&self.pieces, size, alignment, MIN_BLOCK)?;
        let found = self.pieces.get(id).size;
        let max_split = self.max_split();
        let too_large_to_split = size < max_split && found >= max_split;
        let too_large_to_keep =
            size >= max_split && found >= size + self.options.max_non_split_rounding;
        (!too_large_to_split && !too_large_to_keep).then_some((id, gap))
    }

    fn begin(&mut self, key: PoolKey, found: (PieceId, u64), size: u64, bytes: u64) -> u64 {
        let max_split = self.max_split();
        let pool = self.pools.entry(key).or_default();
        let (id, gap) = found;
        self.freed_at.remove(&self.pieces.get(id).address);
        let id = pool.free.take(&mut self.pieces, id, gap);
        let left = self.pieces.get(id).size - size;
        let splits = if key.is_small || self.options.expandable_segments {
            left >= MIN_BLOCK
        } else {
            size < max_split && left > SMALL_BLOCK
        };
        if splits {
            pool.free.trim_to(&mut self.pieces, id, size);
        }
        self.pieces.begin_use(id, bytes, key.owner())
    }

    /// Bytes that may still be taken.
    fn available(&self, source: &dyn Source) -> u64 {
        available(self.options.limit, self.figures().reserved, source)
    }

    /// A new segment with room for the request.
    fn take_segment(
        &mut self,
        key: PoolKey,
        size: u64,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Option<(PieceId, u64)> {
        if self.options.expandable_segments {
            return self.expand(key, size, request, source);
        }
        let with_gap = size + request.slack(CHUNK_ALIGNMENT);
        let bytes = Self::segment_size(with_gap, key.is_small);
        if bytes > self.available(source) {
            return None;
        }
        let address = source.take(bytes)?;
        let id = self.pieces.add_chunk(address, bytes, key.owner());
        let pool = self.pools.entry(key).or_default();
        pool.free.insert(&self.pieces, id);
        pool.free
            .find(&self.pieces, size, request.alignment, MIN_BLOCK)
    }

    /// Commits pages behind the pool's range until its last free block has room.
    fn expand(
        &mut self,
        key: PoolKey,
        size: u64,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Option<(PieceId, u64)> {
        let page = if key.is_small {
            SMALL_SEGMENT
        } else {
            LARGE_SEGMENT
        };
        let available = self.available(source);
        let pool = self.pools.entry(key).or_default();
        if pool.expandable.is_none() {
            let addresses = source
                .available()
                .map_or(UNLIMITED_SEGMENT, |bytes| bytes + bytes / 8)
                .max(page)
                .next_multiple_of(page);
            pool.expandable = Some(GrowingChunk::reserve(addresses, page, source)?);
        }
        let range = pool.expandable.as_mut()?;
        let needs = size + request.slack(MIN_BLOCK);
        let (pieces, free) = (&mut self.pieces, &mut pool.free);
        if !range.grow(needs, available, key.owner(), pieces, free, source) {
            return None;
        }
        free.find(pieces, size, request.alignment, MIN_BLOCK)
    }

    /// Gives whole free segments back, those that `goes` says.
    fn release(&mut self, source: &mut dyn Source, goes: impl Fn(&Piece) -> bool) -> u64 {
        let mut released = 0;
        for pool in self.pools.values_mut() {
            if pool.expandable.is_some() {
                continue;
            }
            for segment in pool.free.give_back(&mut self.pieces, source, &goes) {
                self.freed_at.remove(&segment.address);
                released += segment.size;
            }
        }
        released
    }

    /// Takes pages at the ends of expandable segments back.
    fn shrink_ranges(&mut self, source: &mut dyn Source) {
        for pool in self.pools.values_mut() {
            if let Some(range) = pool.expandable.as_mut() {
                range.shrink(0, &mut self.pieces, &mut pool.free, source);
            }
        }
    }

    /// Frees segments that have not been used for longest until so many bytes below the threshold are reserved.
    fn collect_garbage(&mut self, source: &mut dyn Source) {
        let limit = match (self.options.limit, source.available()) {
            (Some(limit), _) => limit,
            (None, Some(available)) => available + self.figures().reserved,
            (None, None) => return,
        };
        #[expect(clippy::cast_sign_loss, reason = "a share of a limit is positive")]
        let threshold = (self.options.garbage_collection_threshold * limit as f64) as u64;
        let mut target = self.figures().reserved.saturating_sub(threshold);
        while target > 0 {
            let ages: Vec<u64> = self
                .pools
                .iter()
                .filter(|(key, _)| !key.is_small)
                .flat_map(|(_, pool)| pool.free.iter())
                .filter_map(|id| {
                    let piece = self.pieces.get(id);
                    let freed = self.freed_at.get(&piece.address)?;
                    piece.is_whole_chunk().then(|| self.searches - freed)
                })
                .collect();
            if ages.is_empty() {
                return;
            }
            let average = ages.iter().sum::<u64>() / ages.len() as u64;
            let (freed_at, searches) = (self.freed_at.clone(), self.searches);
            let released = self.release(source, |piece| {
                !PoolKey::of(piece).is_small
                    && freed_at
                        .get(&piece.address)
                        .is_some_and(|freed| searches - freed >= average)
            });
            if released == 0 {
                return;
            }
            target = target.saturating_sub(released);
        }
    }

    /// Before all cached segments go: large ones that are never split, until they make up for the request.
    fn release_available(&mut self, size: u64, source: &mut dyn Source) {
        let Some(max_split) = self.options.max_split_size else {
            return;
        };
        let wanted = size.max(max_split);
        let mut large: Vec<(u64, u64)> = self
            .pools
            .values()
            .flat_map(|pool| pool.free.iter())
            .map(|id| self.pieces.get(id))
            .filter(|piece| piece.is_whole_chunk() && piece.size >= max_split)
            .map(|piece| (piece.size, piece.address))
            .collect();
        large.sort_unstable();
        if let Some((_, address)) = large.iter().find(|(bytes, _)| *bytes >= wanted).copied() {
            self.release(source, |piece| piece.address == address);
            return;
        }
        let mut sum = 0;
        while let Some((bytes, address)) = large.pop() {
            self.release(source, |piece| piece.address == address);
            sum += bytes;
            if sum >= wanted {
                return;
            }
        }
    }
}

impl Allocator for PytorchCaching {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        let out_of_memory = request.refused();
        let size = self.round(request.bytes).ok_or(out_of_memory)?;
        let key = PoolKey {
            stream: request.stream,
            is_small: size <= SMALL_BLOCK,
        };
        let mut found = self.find(key, size, request.alignment);
        if found.is_none() && self.options.garbage_collection_threshold > 0.0 {
            self.collect_garbage(source);
        }
        if found.is_none() {
            found = self.take_segment(key, size, request, source);
        }
        if found.is_none() {
            self.release_available(size, source);
            found = self.take_segment(key, size, request, source);
        }
        if found.is_none() {
            source.wait();
            self.release(source, |_| true);
            self.shrink_ranges(source);
            found = self.take_segment(key, size, request, source);
        }
        let found = found.ok_or(out_of_memory)?;
        Ok(self.begin(key, found, size, request.bytes))
    }

    fn free(&mut self, address: u64, _: &mut dyn Source) -> Result<u64, NotInUse> {
        let (id, requested) = self.pieces.end_use(address)?;
        let key = PoolKey::of(self.pieces.get(id));
        let pool = self.pools.entry(key).or_default();
        let id = pool.free.release(&mut self.pieces, id);
        let piece = self.pieces.get(id);
        if piece.is_whole_chunk() {
            self.freed_at.insert(piece.address, self.searches);
        }
        Ok(requested)
    }

    /// `empty_cache`: all segments without a block in use go.
    fn trim(&mut self, source: &mut dyn Source) {
        source.wait();
        self.release(source, |_| true);
        self.shrink_ranges(source);
    }

    fn figures(&self) -> MemoryFigures {
        self.pieces.figures()
    }

    fn largest_free(&self) -> u64 {
        let pools = self.pools.values();
        pools.map(|pool| pool.free.largest()).max().unwrap_or(0)
    }
}
