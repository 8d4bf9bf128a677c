//! The memory of runs: regions straight from the system, and the list of all of them by address.
#![allow(unsafe_code, reason = "memory straight from the system (invariant 5)")]

use std::{
    io,
    ptr::{self, NonNull},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::{
    OVERRUN, RunPlan,
    best_fit::BestFit,
    replay::{Place, Replay},
};

/// Memory mapped for one arena or for one run, and the run that goes on in it. Pages take memory once they are written.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    length: usize,
    state: Mutex<State>,
}

/// Where blocks lie in a region.
#[derive(Debug)]
enum Layout {
    Planned(Replay),
    Dynamic(BestFit),
}

impl Layout {
    fn free(&mut self, offset: u64) -> Option<u64> {
        match self {
            Self::Planned(replay) => replay.free(offset),
            Self::Dynamic(best_fit) => best_fit.free(offset),
        }
    }

    fn blocks(&self) -> Vec<(u64, u64)> {
        match self {
            Self::Planned(replay) => replay.blocks(),
            Self::Dynamic(best_fit) => best_fit.blocks(),
        }
    }

    fn in_use(&self) -> bool {
        match self {
            Self::Planned(replay) => replay.in_use(),
            Self::Dynamic(best_fit) => best_fit.in_use(),
        }
    }
}

#[derive(Debug)]
struct State {
    layout: Layout,
    /// No run will use it any more: it goes when its last block is freed.
    retired: bool,
}

// SAFETY: the region owns its mapping, which is not bound to a thread; blocks in it are disjoint.
unsafe impl Send for Region {}
// SAFETY: what changes is behind a mutex; the memory itself belongs to whoever got blocks of it.
unsafe impl Sync for Region {}

/// Every region that is not free, in order of address: readers do not wait.
static REGIONS: LazyLock<ArcSwap<Vec<Arc<Region>>>> = LazyLock::new(ArcSwap::default);

/// Blocks of this size and more give their pages back when they are freed in a run that is not planned yet: such a run
/// then takes hardly more than what is in use, at the price of new pages for the next blocks.
const RELEASED_BYTES: u64 = 1 << 18;

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody has a block of it: regions are let go when none is in use.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}

impl Region {
    /// Maps a region that `plan` fits into, and lists it.
    pub(crate) fn planned(plan: &Arc<RunPlan>) -> io::Result<Arc<Self>> {
        let layout = |_| Layout::Planned(Replay::new(Arc::clone(plan)));
        Self::map(plan.size(), layout)
    }

    /// Maps a region of at least so many bytes for blocks wherever they fit, and lists it.
    pub(crate) fn dynamic(at_least: u64) -> io::Result<Arc<Self>> {
        Self::map(at_least, |length| Layout::Dynamic(BestFit::new(length)))
    }

    fn map(at_least: u64, layout: impl FnOnce(u64) -> Layout) -> io::Result<Arc<Self>> {
        let length = at_least
            .checked_add(OVERRUN)
            .and_then(|length| usize::try_from(length).ok())
            .and_then(|length| length.checked_next_multiple_of(rustix::param::page_size()))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new anonymous mapping, wherever the system likes.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let region = Arc::new(Self {
            base: NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            length,
            state: Mutex::new(State {
                layout: layout(length as u64 - OVERRUN),
                retired: false,
            }),
        });
        REGIONS.rcu(|regions| {
            let mut regions = Vec::clone(regions);
            let position = regions.partition_point(|other| other.base < region.base);
            regions.insert(position, Arc::clone(&region));
            regions
        });
        Ok(region)
    }

    /// Bytes of it.
    pub(crate) const fn length(&self) -> usize {
        self.length
    }

    /// Bytes of it that blocks may lie on.
    const fn room(&self) -> u64 {
        self.length as u64 - OVERRUN
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing below panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a run by `plan`, if that fits and no block is in use.
    pub(crate) fn restart(&self, plan: &Arc<RunPlan>) -> bool {
        match &mut self.state().layout {
            Layout::Planned(replay) if plan.size() <= self.room() && !replay.in_use() => {
                replay.restart(plan);
                true
            }
            _ => false,
        }
    }

    /// The number of the first allocation of a planned run that was not the plan's.
    pub(crate) fn deviation(&self) -> Option<usize> {
        match &self.state().layout {
            Layout::Planned(replay) => replay.deviation(),
            Layout::Dynamic(_) => None,
        }
    }

    /// Whether a block is in use.
    pub(crate) fn in_use(&self) -> bool {
        self.state().layout.in_use()
    }

    /// The next planned place, or any other that fits, as an address; or why there is none.
    pub(crate) fn malloc(&self, size: u64) -> Result<NonNull<u8>, Place> {
        let place = match &mut self.state().layout {
            Layout::Planned(replay) => replay.malloc(size),
            Layout::Dynamic(best_fit) => best_fit.malloc(size).map_or(Place::Heap, Place::Offset),
        };
        match place {
            // SAFETY: the plan's size, and with it each of its blocks, fits the mapping; the other layout knows its
            // length.
            Place::Offset(offset) => Ok(unsafe { self.base.add(offset as usize) }),
            elsewhere => Err(elsewhere),
        }
    }

    fn contains(&self, address: usize) -> bool {
        let base = self.base.as_ptr() as usize;
        (base..base + self.length).contains(&address)
    }

    /// Frees the block at `address`, if that is in this region, and says its size.
    pub(crate) fn free(&self, address: usize) -> Option<u64> {
        if !self.contains(address) {
            return None;
        }
        let offset = (address - self.base.as_ptr() as usize) as u64;
        let (size, over) = {
            let mut state = self.state();
            let size = state.layout.free(offset);
            if let (Layout::Dynamic(_), Some(size)) = (&state.layout, size)
                && size >= RELEASED_BYTES
            {
                // Gaps that the next blocks do not fit into would keep their pages until the run ends.
                let page = rustix::param::page_size() as u64;
                let end = offset + size;
                self.release(offset.next_multiple_of(page), end - end % page);
            }
            (size, state.retired && !state.layout.in_use())
        };
        if over {
            self.forget();
        }
        Some(size.unwrap_or(0))
    }

    /// No run will use the region any more: it is unmapped at once, or when the last of its blocks is freed. Until then
    /// only the pages of these blocks take memory.
    pub(crate) fn retire(&self) {
        let over = {
            let mut state = self.state();
            state.retired = true;
            let over = !state.layout.in_use();
            if !over {
                self.release_around(&state.layout.blocks());
            }
            over
        };
        if over {
            self.forget();
        }
    }

    /// Gives back the memory of all pages that none of the blocks, in order of address, lies on.
    fn release_around(&self, blocks: &[(u64, u64)]) {
        let page = rustix::param::page_size() as u64;
        let mut from = 0;
        for (offset, size) in blocks.iter().copied().chain([(self.length as u64, 0)]) {
            let until = offset - offset % page;
            self.release(from, until);
            from = (offset + size).next_multiple_of(page);
        }
    }

    /// Gives back the memory of these pages, which no block lies on; they are zero when they are written again.
    fn release(&self, from: u64, until: u64) {
        if until > from {
            // SAFETY: the pages are the region's, and nobody has a block on them: the caller knows, and holds the lock
            // under which blocks are handed out.
            let _ = unsafe {
                let start = self.base.add(from as usize).as_ptr().cast();
                madvise(start, (until - from) as usize, Advice::LinuxDontNeed)
            };
        }
    }

    /// Takes the region off the list; whoever lets go of it last unmaps it.
    fn forget(&self) {
        REGIONS.rcu(|regions| {
            let others = regions.iter().filter(|other| other.base != self.base);
            others.cloned().collect::<Vec<_>>()
        });
    }
}

/// Frees the block at `address` if it lies in any region, and says its size.
pub(crate) fn free_anywhere(address: usize) -> Option<u64> {
    let regions = REGIONS.load();
    let behind = regions.partition_point(|region| region.base.as_ptr() as usize <= address);
    regions.get(behind.checked_sub(1)?)?.free(address)
}

/// Bytes of address space that all arenas of the process hold, idle ones included.
#[must_use]
pub fn reserved_bytes() -> u64 {
    let regions = REGIONS.load();
    regions.iter().map(|region| region.length as u64).sum()
}

/// Whether the address lies in a region.
#[cfg(test)]
pub(crate) fn is_mapped(address: usize) -> bool {
    REGIONS.load().iter().any(|region| region.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event, Recording};

    #[test]
    fn large_blocks_of_unplanned_runs_give_their_pages_back() {
        let first_page_again = |size: u64| {
            let region = Region::dynamic(8 * RELEASED_BYTES).expect("memory");
            let block = region.malloc(size).expect("room");
            // SAFETY: the block is ours, and has so many bytes.
            unsafe { block.as_ptr().write_bytes(7, size as usize) };
            region.free(block.as_ptr() as usize);
            let again = region.malloc(size).expect("room");
            assert_eq!(block, again);
            // SAFETY: as above; written before, or zero.
            let value = unsafe { again.as_ptr().read() };
            region.free(again.as_ptr() as usize);
            region.retire();
            value
        };
        assert_eq!(first_page_again(RELEASED_BYTES), 0);
        assert_eq!(first_page_again(RELEASED_BYTES - 1), 7);
    }

    #[test]
    fn no_block_ends_where_the_mapping_does() {
        let page = rustix::param::page_size() as u64;
        let region = Region::dynamic(page).expect("memory");
        assert_eq!(region.room() + OVERRUN, region.length() as u64);
        assert_eq!(region.malloc(region.room() + 1), Err(Place::Heap));
        let block = region.malloc(region.room()).expect("room");
        assert!(region.free(block.as_ptr() as usize).is_some());
        region.retire();

        let recording = Recording::new(vec![Event::Malloc(page), Event::Free(0)]);
        let plan = RunPlan::new(&recording.expect("a recording"), &[Some(0)]).expect("a plan");
        let region = Region::planned(&Arc::new(plan)).expect("memory");
        assert_eq!(region.length() as u64, 2 * page);
        region.retire();
    }
}
