//! A plan that is known before the run, with an allocator behind it for what the plan does not foresee.

use std::sync::Arc;

use super::{
    Allocator, AllocatorSpec, BlockRequest, CHUNK_ALIGNMENT, MemoryFigures, NotInUse, OutOfMemory,
    Source, rounded,
};
use crate::{ALIGNMENT, BlockLayout, BlockPlace, Placement, Replay, RunPlan};

/// Serves runs by a plan: the n-th request gets the n-th place ([`Replay`]). What deviates goes to another allocator.
/// When a run has made all its requests and freed all its blocks, the next request begins another run.
#[derive(Debug)]
pub struct PlannedAllocator {
    plan: Arc<RunPlan>,
    replay: Replay,
    /// The plan's memory: address and bytes.
    memory: Option<(u64, u64)>,
    in_use: u64,
    padding: u64,
    fallback: Box<dyn Allocator>,
}

impl PlannedAllocator {
    /// An allocator by `plan`, with `fallback` for everything else.
    #[must_use]
    pub fn new(plan: Arc<RunPlan>, fallback: &AllocatorSpec) -> Self {
        Self {
            replay: Replay::new(Arc::clone(&plan)),
            plan,
            memory: None,
            in_use: 0,
            padding: 0,
            fallback: fallback.build(),
        }
    }

    fn planned(&mut self, request: BlockRequest, source: &mut dyn Source) -> Option<u64> {
        if self.replay.deviation().is_none() {
            let began = self.replay.restart(&self.plan);
            debug_assert!(began || self.replay.in_use(0));
        }
        let mut placement = self.replay.malloc(request.bytes);
        if let Placement::Grow(wanted) = placement {
            let bytes = wanted.next_multiple_of(CHUNK_ALIGNMENT);
            placement = match source.take(bytes) {
                Some(address) => {
                    self.memory = Some((address, bytes));
                    self.replay.add_chunk(bytes);
                    self.replay.malloc(request.bytes)
                }
                None => self.replay.refused(request.bytes, wanted),
            };
        }
        match placement {
            Placement::At(BlockPlace { offset, .. }) => {
                let (base, _) = self.memory?;
                self.in_use += request.bytes;
                self.padding += request.bytes.next_multiple_of(ALIGNMENT) - request.bytes;
                Some(base + offset)
            }
            Placement::Grow(_) | Placement::Elsewhere | Placement::Deviating => None,
        }
    }
}

impl Allocator for PlannedAllocator {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        if request.alignment <= ALIGNMENT
            && rounded(request.bytes, ALIGNMENT).is_some()
            && let Some(address) = self.planned(request, source)
        {
            return Ok(address);
        }
        self.fallback.malloc(request, source)
    }

    fn free(&mut self, address: u64, source: &mut dyn Source) -> Result<u64, NotInUse> {
        if let Some((base, bytes)) = self.memory
            && (base..base + bytes).contains(&address)
        {
            let place = BlockPlace {
                chunk: 0,
                offset: address - base,
            };
            let freed = self.replay.free(place).ok_or(NotInUse { address })?;
            self.in_use -= freed.size;
            self.padding -= freed.size.next_multiple_of(ALIGNMENT) - freed.size;
            return Ok(freed.size);
        }
        self.fallback.free(address, source)
    }

    /// The plan's memory goes when no block lies in it.
    fn trim(&mut self, source: &mut dyn Source) {
        if !self.replay.in_use(0)
            && let Some((base, bytes)) = self.memory.take()
        {
            source.give_back(base, bytes);
            self.replay = Replay::new(Arc::clone(&self.plan));
        }
        self.fallback.trim(source);
    }

    fn figures(&self) -> MemoryFigures {
        let fallback = self.fallback.figures();
        MemoryFigures {
            in_use: fallback.in_use + self.in_use,
            padding: fallback.padding + self.padding,
            reserved: fallback.reserved + self.memory.map_or(0, |(_, bytes)| bytes),
        }
    }

    fn largest_free(&self) -> u64 {
        self.fallback.largest_free()
    }
}
