//! The binary buddy allocator (Knowlton, "A fast storage allocator", CACM 1965).

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Allocator, BlockRequest, CHUNK_ALIGNMENT, MemoryFigures, NotInUse, OutOfMemory, Source,
    options::options, pieces::AddressMap,
};

options! {
    /// Options of the buddy allocator.
    BuddyOptions {
        /// the smallest block, a power of two
        min_block: u64 = 256;
        /// the smallest chunk that is taken from the source; chunks are powers of two
        chunk: u64 = 256;
    }
}

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
    chunk_order: u32,
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
            chunk_order: order_of(options.chunk.max(1)),
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

    /// Gives chunks back that are free as a whole.
    fn give_back(&mut self, source: &mut dyn Source) {
        let (chunks, free, figures) = (&mut self.chunks, &mut self.free, &mut self.figures);
        chunks.retain(|address, order| {
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
        let out_of_memory = OutOfMemory {
            bytes: request.bytes,
        };
        // A block is aligned to its own size within its chunk, and a chunk to what the source aligns.
        let beyond = request.alignment > CHUNK_ALIGNMENT;
        let order = order_of(request.bytes.max(request.alignment)).max(self.min_order);
        if order >= 62 {
            return Err(out_of_memory);
        }
        let mut found = if beyond { None } else { self.find(order) };
        if found.is_none() {
            // A chunk may begin anywhere: one of twice the size has an aligned part, which is all that is used of it.
            let chunk_order = if beyond {
                order + 1
            } else {
                order.max(self.chunk_order)
            };
            let address = source.take(1 << chunk_order).ok_or(out_of_memory)?;
            self.chunks.insert(address, chunk_order);
            self.figures.reserved += 1 << chunk_order;
            if beyond {
                let at = address.next_multiple_of(request.alignment);
                self.in_use.insert(
                    at,
                    BuddyBlock {
                        requested: request.bytes,
                        order: chunk_order,
                        chunk: address,
                    },
                );
                self.figures.in_use += request.bytes;
                self.figures.padding += (1 << chunk_order) - request.bytes;
                return Ok(at);
            }
            let whole = (address, address);
            self.free.entry(chunk_order).or_default().insert(whole);
            found = self.find(order);
        }
        let (address, chunk) = found.ok_or(out_of_memory)?;
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
            mut order,
            chunk,
        } = block;
        self.figures.in_use -= requested;
        self.figures.padding -= (1 << order) - requested;
        let chunk_order = self.chunks.get(&chunk).copied().unwrap_or(order);
        let mut start = if order == chunk_order { chunk } else { address };
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
        Ok(requested)
    }

    fn trim(&mut self, source: &mut dyn Source) {
        self.give_back(source);
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
