//! MXNet's pools of whole blocks, naive and rounded.
//!
//! Source: MXNet 1.9's documentation of `MXNET_GPU_MEM_POOL_TYPE` and its sizes (`env_var.md`). A block is a chunk of the
//! source, and is reused for the same rounded size alone.

use super::{
    Allocator, BlockRequest, CHUNK_ALIGNMENT, MemoryFigures, NotInUse, OutOfMemory, Source,
    options::options, rounded, segregated::SizeLists,
};

options! {
    /// Options of MXNet's naive pool.
    MxnetNaiveOptions {
        /// sizes are multiples of this (`MXNET_GPU_MEM_POOL_PAGE_SIZE`)
        page_size: u64 = 4096;
        /// larger sizes than this are multiples of it (`MXNET_GPU_MEM_LARGE_ALLOC_ROUND_SIZE`)
        large_round_size: u64 = 2 << 20;
        /// bytes of the device that the pool may take; it gives everything back before it exceeds them
        limit: Option<u64> = None;
    }
}

options! {
    /// Options of MXNet's rounded pool.
    MxnetRoundedOptions {
        /// the smallest size (`MXNET_GPU_MEM_POOL_PAGE_SIZE`)
        page_size: u64 = 4096;
        /// sizes up to two to this are powers of two, larger ones multiples of it (`MXNET_GPU_MEM_POOL_ROUND_LINEAR_CUTOFF`)
        round_linear_cutoff: u32 = 24;
        /// bytes of the device that the pool may take; it gives everything back before it exceeds them
        limit: Option<u64> = None;
    }
}

#[derive(Debug)]
enum SizeRule {
    Naive { page: u64, large: u64 },
    Rounded { page: u64, cutoff: u32 },
}

impl SizeRule {
    fn round(&self, bytes: u64) -> Option<u64> {
        match *self {
            Self::Naive { page, large } if bytes > large => rounded(bytes, large.max(page)),
            Self::Naive { page, .. } => rounded(bytes, page),
            Self::Rounded { cutoff, .. } if bytes > 1 << cutoff => rounded(bytes, 1 << cutoff),
            Self::Rounded { page, .. } => Some(bytes.next_power_of_two().max(page)),
        }
    }
}

/// One of MXNet's pools.
#[derive(Debug)]
pub(super) struct MxnetPool {
    rule: SizeRule,
    limit: Option<u64>,
    lists: SizeLists,
}

impl MxnetPool {
    pub(super) fn naive(options: &MxnetNaiveOptions) -> Self {
        Self::new(
            SizeRule::Naive {
                page: options.page_size.max(1),
                large: options.large_round_size.max(1),
            },
            options.limit,
        )
    }

    pub(super) fn rounded(options: &MxnetRoundedOptions) -> Self {
        Self::new(
            SizeRule::Rounded {
                page: options.page_size.max(1).next_power_of_two(),
                cutoff: options.round_linear_cutoff.min(40),
            },
            options.limit,
        )
    }

    fn new(rule: SizeRule, limit: Option<u64>) -> Self {
        Self {
            rule,
            limit,
            lists: SizeLists::default(),
        }
    }

    fn take(&mut self, size: u64, source: &mut dyn Source) -> Option<u64> {
        if let Some(limit) = self.limit
            && self.lists.figures.reserved + size > limit
        {
            self.release(source);
            if self.lists.figures.reserved + size > limit {
                return None;
            }
        }
        let address = source.take(size).or_else(|| {
            self.release(source);
            source.take(size)
        })?;
        self.lists.figures.reserved += size;
        Some(address)
    }

    fn release(&mut self, source: &mut dyn Source) {
        for (size, address) in self.lists.drain() {
            self.lists.figures.reserved -= size;
            source.give_back(address, size);
        }
    }
}

impl Allocator for MxnetPool {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        let out_of_memory = request.refused();
        // A block begins where the source's chunk does.
        if request.alignment > CHUNK_ALIGNMENT {
            return Err(out_of_memory);
        }
        let size = self
            .rule
            .round(request.bytes)
            .filter(|size| *size < 1 << 62);
        let size = size.ok_or(out_of_memory)?;
        let address = match self.lists.pop(size) {
            Some(address) => address,
            None => self.take(size, source).ok_or(out_of_memory)?,
        };
        self.lists.begin_use(address, request.bytes, size);
        Ok(address)
    }

    fn free(&mut self, address: u64, _: &mut dyn Source) -> Result<u64, NotInUse> {
        let (requested, size) = self.lists.end_use(address)?;
        self.lists.push(size, address);
        Ok(requested)
    }

    /// Gives all free blocks back.
    fn trim(&mut self, source: &mut dyn Source) {
        self.release(source);
    }

    fn figures(&self) -> MemoryFigures {
        self.lists.figures
    }

    fn largest_free(&self) -> u64 {
        self.lists.largest()
    }
}
