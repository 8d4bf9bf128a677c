//! The allocator that a runtime is given: it knows the run that the calling thread is in.
#![allow(
    unsafe_code,
    reason = "an allocator is made of raw memory (invariant 5)"
)]

use std::{cell::RefCell, ptr, sync::Arc};

use skep_layout::{Placement, Recorder, Recording};
use skep_tensor::{Limit, RunCharge, RunRefused};

use crate::{
    heap, load,
    region::{self, GrowingRegions, Region},
    served::{self, InstanceAllocator, Served},
};

/// The run of a thread. Without a region or a recording it takes its blocks from the heap.
#[derive(Debug, Default)]
pub(crate) struct CurrentRun {
    /// Of a planned run.
    pub(crate) region: Option<Arc<Region>>,
    /// Of a recorded run; the others are as small as they can be, since they move.
    pub(crate) recorded: Option<Box<RecordedRun>>,
    /// Of a run with the instance's own allocator.
    pub(crate) allocator: Option<Arc<InstanceAllocator>>,
    in_use: u64,
    /// How many blocks those are.
    live: u64,
    /// The most bytes in use at once.
    pub(crate) peak: u64,
    /// Blocks that came from the heap although the run has a plan.
    pub(crate) unplanned: u64,
    /// What it may allocate.
    pub(crate) charge: RunCharge,
    /// The first block that it was refused. The runtime then ends the run in its own way.
    pub(crate) refused: Option<RunRefused>,
}

/// The recording of a run, and its memory, which goes back to the system when the run ends.
#[derive(Debug, Default)]
pub(crate) struct RecordedRun {
    recorder: Recorder,
    regions: GrowingRegions,
}

/// What a small block costs beside its bytes: the runtime's object for the tensor, the allocator's note of the block,
/// and what is lost to alignment. As measured with a loop that keeps a row of 4 bytes of each round.
const BLOCK_BYTES: u64 = 256;

/// This many blocks of a run are counted as their bytes alone: a model has hundreds of tensors, a hostile loop
/// millions.
const UNCOUNTED_BLOCKS: u64 = 1024;

impl RecordedRun {
    fn malloc(&mut self, size: u64) -> Option<*mut u8> {
        Some(self.regions.malloc(size)?.as_ptr())
    }

    /// The sequence, unless it was too long.
    pub(crate) fn finish(&mut self) -> Option<Recording> {
        std::mem::take(&mut self.recorder).finish()
    }
}

thread_local! {
    static CURRENT: RefCell<Option<CurrentRun>> = const { RefCell::new(None) };
}

/// Makes `run` the calling thread's; the one before it is handed back.
pub(crate) fn install(run: Option<CurrentRun>) -> Option<CurrentRun> {
    CURRENT.with(|current| current.replace(run))
}

impl CurrentRun {
    pub(crate) fn new(charge: RunCharge) -> Self {
        Self {
            charge,
            ..Self::default()
        }
    }

    fn malloc(&mut self, size: usize) -> *mut u8 {
        let bytes = size as u64;
        let beside = self.live.saturating_sub(UNCOUNTED_BLOCKS) * BLOCK_BYTES;
        let total = self.in_use.saturating_add(bytes).saturating_add(beside);
        // Check before taking a place: the system maps more address space than any machine has memory.
        if let Err(refused) = self.charge.admit(total) {
            self.refused.get_or_insert(refused);
            return ptr::null_mut();
        }
        let own = match self.allocator.as_ref().map(|own| own.malloc(bytes)) {
            Some(Served::Block(block)) => Some(block.as_ptr()),
            Some(Served::Refused) => {
                let limit = Limit::Allocator;
                self.refused.get_or_insert(RunRefused {
                    bytes: total,
                    limit,
                });
                return ptr::null_mut();
            }
            Some(Served::Broken) => {
                self.unplanned += 1;
                None
            }
            None => self.of_plan(bytes),
        };
        let block = own.unwrap_or_else(|| heap::malloc(size));
        if !block.is_null() {
            self.in_use += bytes;
            self.live += 1;
            self.peak = self.peak.max(self.in_use);
            if let Some(run) = &mut self.recorded {
                run.recorder.malloc(block as usize, bytes);
            }
        }
        block
    }

    /// A block of a planned or recorded run; `None` where the heap serves it.
    fn of_plan(&mut self, bytes: u64) -> Option<*mut u8> {
        match self.region.as_ref().map(|region| region.malloc(bytes)) {
            Some(Ok(block)) => Some(block.as_ptr()),
            Some(Err(place)) => {
                self.unplanned += u64::from(place == Placement::Deviating);
                None
            }
            None => self.recorded.as_mut().and_then(|run| run.malloc(bytes)),
        }
    }

    /// Frees a block of the run's own memory, and returns its size.
    fn free(&self, address: usize) -> Option<u64> {
        match (&self.allocator, &self.region, &self.recorded) {
            (Some(own), _, _) => own.free(address),
            (None, Some(region), _) => region.free(address),
            (None, None, Some(run)) => run.regions.free(address),
            (None, None, None) => None,
        }
    }

    fn freed(&mut self, block: usize, size: u64) {
        // A block of an earlier run may end in this one.
        self.in_use = self.in_use.saturating_sub(size);
        self.live = self.live.saturating_sub(1);
        if let Some(run) = &mut self.recorded {
            run.recorder.free(block);
        }
    }
}

/// `size` bytes, aligned to [`crate::ALIGNMENT`]: out of the calling thread's run, or of the heap where it is in none.
/// Null for 0 bytes, when there is no memory, and when the run's charge does not allow it. Never panics.
#[must_use]
pub fn malloc(size: usize) -> *mut u8 {
    if size == 0 {
        return ptr::null_mut();
    }
    // A thread that ends has no run any more. A free within `malloc` finds the cell borrowed; no runtime does it.
    let in_run = CURRENT.try_with(|current| {
        let mut current = current.try_borrow_mut().ok()?;
        current.as_mut().map(|run| run.malloc(size))
    });
    in_run
        .ok()
        .flatten()
        .or_else(|| load::malloc(size))
        .unwrap_or_else(|| heap::malloc(size))
}

/// Frees a block; null is ignored. On any thread, in any run or none. Never panics.
///
/// # Safety
/// `block` is null, or comes from [`malloc`], is live, and is not used again.
pub unsafe fn free(block: *mut u8) {
    if block.is_null() {
        return;
    }
    let address = block as usize;
    let own = CURRENT.try_with(|current| {
        let mut current = current.try_borrow_mut().ok()?;
        let run = current.as_mut()?;
        let size = run.free(address)?;
        run.freed(address, size);
        Some(())
    });
    if own.ok().flatten().is_some() {
        return;
    }
    let mapped = region::free_anywhere(address)
        .or_else(|| served::free_anywhere(address))
        .or_else(|| load::free(address));
    let size = mapped.unwrap_or_else(|| {
        // SAFETY: the block is in no region, so it comes from the heap; the caller promises the rest.
        unsafe {
            let size = heap::size(block) as u64;
            heap::free(block);
            size
        }
    });
    let _ = CURRENT.try_with(|current| {
        if let Ok(mut current) = current.try_borrow_mut()
            && let Some(run) = current.as_mut()
        {
            run.freed(address, size);
        }
    });
}
