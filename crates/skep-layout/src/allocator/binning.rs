//! Bins of fixed sizes (`rmm::mr::binning_memory_resource` over `fixed_size_memory_resource`).
//!
//! Source: rapidsai/rmm, commit 5d50a37b9612. Blocks up to the largest bin come from the bin of the next power of two,
//! which takes chunks of many equal blocks; larger blocks are chunks of their own and go back when they are freed.

use super::{
    Allocator, BlockRequest, CHUNK_ALIGNMENT, MemoryFigures, NotInUse, OutOfMemory, Source,
    options::options, rounded, segregated::SizeLists,
};

options! {
    /// Options of the bins.
    BinningOptions {
        /// the smallest bin holds blocks of two to this
        min_exponent: u32 = 18;
        /// the largest bin holds blocks of two to this
        max_exponent: u32 = 22;
        /// blocks that a bin takes from the source at a time
        blocks_to_preallocate: u32 = 128;
    }
}

/// Bins of fixed sizes.
#[derive(Debug)]
pub(super) struct Binning {
    min: u32,
    max: u32,
    blocks: u64,
    lists: SizeLists,
}

impl Binning {
    pub(super) fn new(options: &BinningOptions) -> Self {
        let min = options.min_exponent.clamp(9, 40);
        Self {
            min,
            max: options.max_exponent.clamp(min, 40),
            blocks: u64::from(options.blocks_to_preallocate.max(1)),
            lists: SizeLists::default(),
        }
    }

    /// The size of the bin; `None` for blocks beyond the largest.
    fn bin(&self, bytes: u64) -> Option<u64> {
        (bytes <= 1 << self.max).then(|| bytes.next_power_of_two().max(1 << self.min))
    }

    fn take_of_bin(&mut self, size: u64, source: &mut dyn Source) -> Option<u64> {
        if let Some(address) = self.lists.pop(size) {
            return Some(address);
        }
        let chunk = size * self.blocks;
        let start = source.take(chunk)?;
        self.lists.figures.reserved += chunk;
        // The first block is taken first.
        for number in (0..self.blocks).rev() {
            self.lists.push(size, start + number * size);
        }
        self.lists.pop(size)
    }
}

impl Allocator for Binning {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        let out_of_memory = request.refused();
        if request.alignment > CHUNK_ALIGNMENT {
            return Err(out_of_memory);
        }
        let (address, size) = if let Some(size) = self.bin(request.bytes) {
            (self.take_of_bin(size, source), size)
        } else {
            let size = rounded(request.bytes, 256).ok_or(out_of_memory)?;
            let address = source.take(size);
            self.lists.figures.reserved += address.map_or(0, |_| size);
            (address, size)
        };
        let address = address.ok_or(out_of_memory)?;
        self.lists.begin_use(address, request.bytes, size);
        Ok(address)
    }

    fn free(&mut self, address: u64, source: &mut dyn Source) -> Result<u64, NotInUse> {
        let (requested, size) = self.lists.end_use(address)?;
        if size > 1 << self.max {
            self.lists.figures.reserved -= size;
            source.give_back(address, size);
        } else {
            self.lists.push(size, address);
        }
        Ok(requested)
    }

    /// Gives nothing back: bins keep their blocks.
    fn trim(&mut self, _: &mut dyn Source) {}

    fn figures(&self) -> MemoryFigures {
        self.lists.figures
    }

    fn largest_free(&self) -> u64 {
        self.lists.largest()
    }
}
