//! The memory of runs: regions straight from the system, and a list of all regions by address.
#![allow(unsafe_code, reason = "memory straight from the system (invariant 5)")]

use std::{
    io,
    ptr::{self, NonNull},
    sync::{Arc, LazyLock, Mutex, MutexGuard},
};

use arc_swap::ArcSwap;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use skep_host::lock;
use skep_layout::{BestFit, BlockLayout, BlockPlace, FreedBlock, Placement, Replay, RunPlan};

use crate::OVERRUN;

/// Memory mapped for one arena or for one run: a chunk of its layout. Pages take memory once they are written.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    length: usize,
    /// The region's number in its layout.
    chunk: usize,
    state: Arc<Mutex<LayoutState>>,
}

/// The layouts that runs use.
#[derive(Debug)]
enum RunLayout {
    Planned(Replay),
    Dynamic(BestFit),
}

impl BlockLayout for RunLayout {
    fn malloc(&mut self, size: u64) -> Placement {
        match self {
            Self::Planned(replay) => replay.malloc(size),
            Self::Dynamic(best_fit) => best_fit.malloc(size),
        }
    }

    fn add_chunk(&mut self, length: u64) -> usize {
        match self {
            Self::Planned(replay) => replay.add_chunk(length),
            Self::Dynamic(best_fit) => best_fit.add_chunk(length),
        }
    }

    fn refused(&mut self, size: u64, wanted: u64) -> Placement {
        match self {
            Self::Planned(replay) => replay.refused(size, wanted),
            Self::Dynamic(best_fit) => best_fit.refused(size, wanted),
        }
    }

    fn free(&mut self, place: BlockPlace) -> Option<FreedBlock> {
        match self {
            Self::Planned(replay) => replay.free(place),
            Self::Dynamic(best_fit) => best_fit.free(place),
        }
    }

    fn blocks(&self, chunk: usize) -> Vec<(u64, u64)> {
        match self {
            Self::Planned(replay) => replay.blocks(chunk),
            Self::Dynamic(best_fit) => best_fit.blocks(chunk),
        }
    }

    fn in_use(&self, chunk: usize) -> bool {
        match self {
            Self::Planned(replay) => replay.in_use(chunk),
            Self::Dynamic(best_fit) => best_fit.in_use(chunk),
        }
    }
}

/// A layout, and whether runs still use it.
#[derive(Debug)]
struct LayoutState {
    layout: RunLayout,
    /// No run will use its regions any more: each goes when its last block is freed.
    retired: bool,
}

impl LayoutState {
    fn shared(layout: RunLayout) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            layout,
            retired: false,
        }))
    }
}

// SAFETY: the region owns its mapping, which is not bound to a thread; blocks in it are disjoint.
unsafe impl Send for Region {}
// SAFETY: what changes is behind a mutex; the memory itself belongs to the holders of its blocks.
unsafe impl Sync for Region {}

/// Every region that is not free, in order of address: readers do not wait.
static REGIONS: LazyLock<ArcSwap<Vec<Arc<Region>>>> = LazyLock::new(ArcSwap::default);

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no block in it is in use: a region is dropped after its last block.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}

impl Region {
    /// Maps a region that `plan` fits into, and lists it.
    pub(crate) fn planned(plan: &Arc<RunPlan>) -> io::Result<Arc<Self>> {
        let replay = Replay::new(Arc::clone(plan));
        Self::map(
            &LayoutState::shared(RunLayout::Planned(replay)),
            plan.size(),
        )
    }

    /// Maps a region of at least `at_least` bytes, lists it, and adds it to a layout.
    fn map(state: &Arc<Mutex<LayoutState>>, at_least: u64) -> io::Result<Arc<Self>> {
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
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let chunk = lock(state).layout.add_chunk(length as u64 - OVERRUN);
        let region = Arc::new(Self {
            base,
            length,
            chunk,
            state: Arc::clone(state),
        });
        REGIONS.rcu(|regions| {
            let mut regions = Vec::clone(regions);
            let position = regions.partition_point(|other| other.base < region.base);
            regions.insert(position, Arc::clone(&region));
            regions
        });
        Ok(region)
    }

    /// Bytes of the mapping.
    pub(crate) const fn length(&self) -> usize {
        self.length
    }

    fn state(&self) -> MutexGuard<'_, LayoutState> {
        // Nothing below panics between two changes that belong together.
        lock(&self.state)
    }

    /// Starts a run by `plan`, if the plan fits and no block is in use.
    pub(crate) fn restart(&self, plan: &Arc<RunPlan>) -> bool {
        match &mut self.state().layout {
            RunLayout::Planned(replay) => replay.restart(plan),
            RunLayout::Dynamic(_) => false,
        }
    }

    /// The number of the first allocation of a planned run that was not the plan's.
    pub(crate) fn deviation(&self) -> Option<usize> {
        match &self.state().layout {
            RunLayout::Planned(replay) => replay.deviation(),
            RunLayout::Dynamic(_) => None,
        }
    }

    /// Whether a block is in use.
    pub(crate) fn in_use(&self) -> bool {
        self.state().layout.in_use(self.chunk)
    }

    /// The address of the next planned place, or why the block lies elsewhere.
    pub(crate) fn malloc(&self, size: u64) -> Result<NonNull<u8>, Placement> {
        match self.state().layout.malloc(size) {
            Placement::At(place) => Ok(self.address(place)),
            elsewhere => Err(elsewhere),
        }
    }

    /// The address of a block that the layout placed in this region.
    fn address(&self, place: BlockPlace) -> NonNull<u8> {
        debug_assert_eq!(place.chunk, self.chunk);
        // SAFETY: a layout places blocks within its chunks, and the mapping is as long as the chunk.
        unsafe { self.base.add(place.offset as usize) }
    }

    fn contains(&self, address: usize) -> bool {
        let base = self.base.as_ptr() as usize;
        (base..base + self.length).contains(&address)
    }

    /// Frees the block at `address`, if that is in this region, and returns its size.
    pub(crate) fn free(&self, address: usize) -> Option<u64> {
        if !self.contains(address) {
            return None;
        }
        let place = BlockPlace {
            chunk: self.chunk,
            offset: (address - self.base.as_ptr() as usize) as u64,
        };
        let (size, over) = {
            let mut state = self.state();
            let freed = state.layout.free(place);
            if let Some(FreedBlock { released, .. }) = &freed
                && !released.is_empty()
            {
                let page = rustix::param::page_size() as u64;
                let (start, end) = (released.start, released.end);
                self.release(start.next_multiple_of(page), end - end % page);
            }
            let over = state.retired && !state.layout.in_use(self.chunk);
            (freed.map_or(0, |freed| freed.size), over)
        };
        if over {
            self.forget();
        }
        Some(size)
    }

    /// No run will use the region any more: it is unmapped at once, or when the last of its blocks is freed. Until then
    /// only the pages of these blocks take memory.
    pub(crate) fn retire(&self) {
        let over = {
            let mut state = self.state();
            state.retired = true;
            let over = !state.layout.in_use(self.chunk);
            if !over {
                self.release_around(&state.layout.blocks(self.chunk));
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
            // SAFETY: the pages are the region's, and no block lies on them: the caller has checked it, and holds the
            // lock under which blocks are handed out.
            let _ = unsafe {
                let start = self.base.add(from as usize).as_ptr().cast();
                madvise(start, (until - from) as usize, Advice::LinuxDontNeed)
            };
        }
    }

    /// Takes the region off the list; dropping its last reference unmaps it.
    fn forget(&self) {
        REGIONS.rcu(|regions| {
            let others = regions.iter().filter(|other| other.base != self.base);
            others.cloned().collect::<Vec<_>>()
        });
    }
}

/// Regions of one run that grow as its layout asks.
#[derive(Debug)]
pub(crate) struct GrowingRegions {
    state: Arc<Mutex<LayoutState>>,
    regions: Vec<Arc<Region>>,
}

impl Default for GrowingRegions {
    fn default() -> Self {
        Self {
            state: LayoutState::shared(RunLayout::Dynamic(BestFit::new())),
            regions: Vec::new(),
        }
    }
}

impl GrowingRegions {
    /// A block of `size` bytes; `None` where there is no memory.
    pub(crate) fn malloc(&mut self, size: u64) -> Option<NonNull<u8>> {
        let mut placement = lock(&self.state).layout.malloc(size);
        loop {
            match placement {
                Placement::At(place) => return Some(self.regions[place.chunk].address(place)),
                Placement::Grow(wanted) => {
                    placement = match Region::map(&self.state, wanted) {
                        Ok(region) => {
                            self.regions.push(region);
                            lock(&self.state).layout.malloc(size)
                        }
                        Err(_) => lock(&self.state).layout.refused(size, wanted),
                    };
                }
                Placement::Elsewhere | Placement::Deviating => return None,
            }
        }
    }

    /// Frees the block at `address` if it lies in one of the regions, and returns its size.
    pub(crate) fn free(&self, address: usize) -> Option<u64> {
        self.regions.iter().find_map(|region| region.free(address))
    }
}

impl Drop for GrowingRegions {
    fn drop(&mut self) {
        for region in &self.regions {
            region.retire();
        }
    }
}

/// Frees the block at `address` if it lies in any region, and returns its size.
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
    use skep_layout::{BlockEvent, Recording};

    #[test]
    fn large_blocks_of_unplanned_runs_give_their_pages_back() {
        // As large as the layout releases, and just below.
        const RELEASED_BYTES: u64 = 1 << 18;
        let first_page_again = |size: u64| {
            let mut regions = GrowingRegions::default();
            let block = regions.malloc(size).expect("room");
            // SAFETY: the block is ours, and has so many bytes.
            unsafe { block.as_ptr().write_bytes(7, size as usize) };
            regions.free(block.as_ptr() as usize);
            let again = regions.malloc(size).expect("room");
            assert_eq!(block, again);
            // SAFETY: as above; written before, or zero.
            let value = unsafe { again.as_ptr().read() };
            regions.free(again.as_ptr() as usize);
            value
        };
        assert_eq!(first_page_again(RELEASED_BYTES), 0);
        assert_eq!(first_page_again(RELEASED_BYTES - 1), 7);
    }

    #[test]
    fn pages_that_another_block_lies_on_are_not_given_back() {
        // Neither begins nor ends with a page.
        let sizes = [100, (1 << 18) + 100, 100];
        let mut regions = GrowingRegions::default();
        let blocks = sizes.map(|size| regions.malloc(size).expect("room"));
        for (block, size) in blocks.into_iter().zip(sizes) {
            // SAFETY: the block is ours, and has so many bytes.
            unsafe { block.as_ptr().write_bytes(7, size as usize) };
        }
        let page = rustix::param::page_size();
        regions.free(blocks[1].as_ptr() as usize);
        for (block, size) in [(blocks[0], sizes[0]), (blocks[2], sizes[2])] {
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), size as usize) };
            assert!(bytes.iter().all(|&byte| byte == 7));
        }
        // All whole pages of the middle one are.
        let first = (blocks[1].as_ptr() as usize).next_multiple_of(page);
        let end = blocks[1].as_ptr() as usize + sizes[1] as usize;
        for at in [first, end - end % page - page] {
            // SAFETY: in the region, whose memory nobody else has.
            assert_eq!(unsafe { (at as *const u8).read() }, 0);
        }
    }

    /// Bytes of address space that the process has mapped.
    fn address_space() -> u64 {
        let text = std::fs::read_to_string("/proc/self/statm").expect("the system's figures");
        let pages = text
            .split(' ')
            .next()
            .and_then(|pages| pages.parse::<u64>().ok());
        pages.expect("a number") * rustix::param::page_size() as u64
    }

    #[test]
    fn a_retired_region_is_mapped_no_more() {
        let before = address_space();
        for _ in 0..200 {
            let state = LayoutState::shared(RunLayout::Dynamic(BestFit::new()));
            Region::map(&state, 256 << 20).expect("memory").retire();
        }
        // Other tests map far less, the 200 regions have 50 GiB.
        assert!(address_space() < before + (10 << 30));
    }

    #[test]
    fn no_block_ends_where_the_mapping_does() {
        let page = rustix::param::page_size() as u64;
        let state = LayoutState::shared(RunLayout::Dynamic(BestFit::new()));
        let region = Region::map(&state, page).expect("memory");
        let room = region.length() as u64 - OVERRUN;
        assert!(matches!(region.malloc(room + 1), Err(Placement::Grow(_))));
        let block = region.malloc(room).expect("room");
        assert!(region.free(block.as_ptr() as usize).is_some());
        region.retire();

        let recording = Recording::new(vec![BlockEvent::Malloc(page), BlockEvent::Free(0)]);
        let plan = RunPlan::new(&recording.expect("a recording"), &[Some(0)]).expect("a plan");
        let region = Region::planned(&Arc::new(plan)).expect("memory");
        assert_eq!(region.length() as u64, 2 * page);
        region.retire();
    }
}
