//! The binary buddy allocator (Knowlton, "A fast storage allocator", CACM 1965).

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Allocator, BlockRequest, CHUNK_ALIGNMENT, MemoryFigures, NotInUse, OutOfMemory, Source,
    options::options, pages::PagedRange, pieces::AddressMap,
};

options! {
    /// Options of the buddy allocator.
    BuddyOptions {
        /// the smallest block, a power of two
        min_block: u64 = 256;
        /// the smallest chunk that is taken from the source, a power of two; `none` is one range of addresses, with memory up to the highest block so far
        chunk: Option<u64> = None;
    }
}

/// The range of all addresses has two to this.
const RANGE_ORDER: u32 = 40;

#[derive(Clone, Copy, Debug)]
struct BuddyBlock {
    requested: u64,
    order: u32,
    chunk: u64,
}

/// The binary buddy allocator: sizes are powers of two, and a free block joins its other half as soon as that is free.
#[derive(Debug)]
pub(super) struct Buddy {
    min_order: u32,
    /// `None` for one range.
    chunk_order: Option<u32>,
    /// That range, once there is one.
    range: Option<PagedRange>,
    /// Chunks by address, with their orders.
    chunks: BTreeMap<u64, u32>,
    /// Free blocks of each order: address, and that of their chunk.
    free: BTreeMap<u32, BTreeSet<(u64, u64)>>,
    in_use: AddressMap<BuddyBlock>,
    figures: MemoryFigures,
}

/// The exponent of the smallest power of two that is not below `bytes`.
const fn order_of(bytes: u64) -> u32 {
    u64::BITS - (bytes.saturating_sub(1)).leading_zeros()
}

impl Buddy {
    pub(super) fn new(options: &BuddyOptions) -> Self {
        Self {
            min_order: order_of(options.min_block.max(1)),
            chunk_order: options.chunk.map(|bytes| order_of(bytes.max(1))),
            range: None,
            chunks: BTreeMap::new(),
            free: BTreeMap::new(),
            in_use: AddressMap::default(),
            figures: MemoryFigures::default(),
        }
    }

    /// The lowest block of the smallest order that is large enough, cut to size.
    fn find(&mut self, order: u32) -> Option<(u64, u64)> {
        let (&from, blocks) = self
            .free
            .range_mut(order..)
            .find(|(_, blocks)| !blocks.is_empty())?;
        let (address, chunk) = blocks.pop_first()?;
        for half in order..from {
            let upper = address + (1 << half);
            self.free.entry(half).or_default().insert((upper, chunk));
        }
        Some((address, chunk))
    }

    /// A free block joins its other half as soon as that is free.
    fn put_back(&mut self, mut start: u64, mut order: u32, chunk: u64) {
        let chunk_order = self.chunks.get(&chunk).copied().unwrap_or(order);
        while order < chunk_order {
            let buddy = chunk + ((start - chunk) ^ (1 << order));
            let free = self.free.entry(order).or_default();
            if !free.remove(&(buddy, chunk)) {
                break;
            }
            start = start.min(buddy);
            order += 1;
        }
        self.free.entry(order).or_default().insert((start, chunk));
    }

    /// Another chunk, or the range of all addresses.
    fn grow(&mut self, order: u32, source: &mut dyn Source) -> Option<()> {
        let (address, chunk_order) = if let Some(least) = self.chunk_order {
            let chunk_order = order.max(least);
            let address = source.take(1 << chunk_order)?;
            self.figures.reserved += 1 << chunk_order;
            (address, chunk_order)
        } else if self.range.is_none() && order <= RANGE_ORDER {
            let range = PagedRange::reserve(1 << RANGE_ORDER, self.granularity(), source)?;
            let address = range.address();
            self.range = Some(range);
            (address, RANGE_ORDER)
        } else {
            return None;
        };
        self.chunks.insert(address, chunk_order);
        let blocks = self.free.entry(chunk_order).or_default();
        blocks.insert((address, address));
        Some(())
    }

    /// What memory is committed by.
    const fn granularity(&self) -> u64 {
        1 << self.min_order
    }

    /// Memory up to the end of a block, in the range of all addresses; false where it is refused.
    fn commit(&mut self, end: u64, source: &mut dyn Source) -> bool {
        let Some(range) = self.range.as_mut() else {
            return true;
        };
        let Some(more) = end.checked_sub(range.end()).filter(|more| *more > 0) else {
            return true;
        };
        let Some((_, more)) = range.commit(more, source) else {
            return false;
        };
        self.figures.reserved += more;
        true
    }

    /// A block whose alignment is beyond that of chunks: in a chunk of twice its size, which it has for itself.
    fn place_apart(
        &mut self,
        order: u32,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Option<u64> {
        let order = order + 1;
        let chunk = source.take(1 << order)?;
        self.chunks.insert(chunk, order);
        self.figures.reserved += 1 << order;
        let address = chunk.next_multiple_of(request.alignment);
        let block = BuddyBlock {
            requested: request.bytes,
            order,
            chunk,
        };
        self.in_use.insert(address, block);
        self.figures.in_use += request.bytes;
        self.figures.padding += (1 << order) - request.bytes;
        Some(address)
    }

    /// Takes the memory behind the last block of the range back.
    fn shrink(&mut self, source: &mut dyn Source) {
        let Some(range) = self.range.as_mut() else {
            return;
        };
        let chunk = range.address();
        let blocks = self.in_use.iter().filter(|(_, block)| block.chunk == chunk);
        let end = blocks
            .map(|(address, block)| address + (1 << block.order))
            .max();
        let idle = range.end() - end.unwrap_or(chunk);
        self.figures.reserved -= range.decommit(idle, source);
    }

    /// Gives chunks back that are free as a whole.
    fn give_back(&mut self, source: &mut dyn Source) {
        let (chunks, free, figures) = (&mut self.chunks, &mut self.free, &mut self.figures);
        let range = self.range.as_ref().map(PagedRange::address);
        chunks.retain(|address, order| {
            if Some(*address) == range {
                return true;
            }
            let blocks = free.entry(*order).or_default();
            let whole = blocks.remove(&(*address, *address));
            if whole {
                figures.reserved -= 1 << *order;
                source.give_back(*address, 1 << *order);
            }
            !whole
        });
    }
}

impl Allocator for Buddy {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        let out_of_memory = request.refused();
        // A block is aligned to its own size within its chunk, and a chunk to what the source aligns.
        let beyond = request.alignment > CHUNK_ALIGNMENT;
        let order = order_of(request.bytes.max(request.alignment)).max(self.min_order);
        if order >= 62 {
            return Err(out_of_memory);
        }
        let mut found = if beyond { None } else { self.find(order) };
        if found.is_none() && beyond {
            return self
                .place_apart(order, request, source)
                .ok_or(out_of_memory);
        }
        if found.is_none() {
            self.grow(order, source).ok_or(out_of_memory)?;
            found = self.find(order);
        }
        let (address, chunk) = found.ok_or(out_of_memory)?;
        if !self.commit(address + (1 << order), source) {
            self.put_back(address, order, chunk);
            return Err(out_of_memory);
        }
        self.in_use.insert(
            address,
            BuddyBlock {
                requested: request.bytes,
                order,
                chunk,
            },
        );
        self.figures.in_use += request.bytes;
        self.figures.padding += (1 << order) - request.bytes;
        Ok(address)
    }

    fn free(&mut self, address: u64, _: &mut dyn Source) -> Result<u64, NotInUse> {
        let block = self.in_use.remove(&address).ok_or(NotInUse { address })?;
        let BuddyBlock {
            requested,
            order,
            chunk,
        } = block;
        self.figures.in_use -= requested;
        self.figures.padding -= (1 << order) - requested;
        // A block that lies apart is its chunk.
        let chunk_order = self.chunks.get(&chunk).copied().unwrap_or(order);
        let start = if order == chunk_order { chunk } else { address };
        self.put_back(start, order, chunk);
        Ok(requested)
    }

    fn trim(&mut self, source: &mut dyn Source) {
        self.give_back(source);
        self.shrink(source);
    }

    fn figures(&self) -> MemoryFigures {
        self.figures
    }

    fn largest_free(&self) -> u64 {
        let mut orders = self.free.iter().rev();
        let largest = orders.find(|(_, blocks)| !blocks.is_empty());
        largest.map_or(0, |(order, _)| 1 << *order)
    }
}
