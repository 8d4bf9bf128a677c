//! An instance's own allocator over memory of the system, for configurations that name one.
//!
//! The runs of an instance take their blocks from it, and a block may be freed later, on any thread: a list of all its
//! memory by address leads from a block to its allocator. What no block needs goes back to the system when the instance
//! ends, and when it has not run for [`IDLE`].

use std::{
    ptr::NonNull,
    sync::{Arc, LazyLock, Mutex, MutexGuard, Weak},
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use skep_host::lock;
use skep_layout::{
    ALIGNMENT,
    allocator::{Allocator, BlockRequest, ContractFault, MemoryFigures, Source},
};

use crate::sources::MappedSource;

/// After so long without a run, an instance's allocator gives back what no block needs.
pub const IDLE: Duration = Duration::from_secs(5);

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Served {
    /// A block.
    Block(NonNull<u8>),
    /// There is no memory, or none that the allocator's options allow.
    Refused,
    /// The allocator broke its contract before, or with this very request.
    Broken,
}

/// The allocator of an instance, whose handle is a [`RunAllocator`].
#[derive(Debug)]
pub(crate) struct InstanceAllocator {
    state: Mutex<ServedState>,
}

#[derive(Debug)]
struct ServedState {
    /// Declared before its memory, so dropped before it.
    allocator: Box<dyn Allocator>,
    source: MappedSource,
    /// Bytes that the source has given, and the most since the last run ended.
    held: HeldBytes,
    /// The instance is gone: memory goes with the last block.
    retired: bool,
    /// When the last run ended; `None` if what was free then has gone back.
    idle_since: Option<Instant>,
}

/// Bytes of a source, and their peak.
#[derive(Debug, Clone, Copy, Default)]
struct HeldBytes {
    now: u64,
    peak: u64,
}

impl HeldBytes {
    fn add(&mut self, bytes: u64) {
        self.now += bytes;
        self.peak = self.peak.max(self.now);
    }
}

/// Memory of an allocator.
#[derive(Debug, Clone)]
struct ServedRange {
    start: u64,
    end: u64,
    owner: Arc<InstanceAllocator>,
}

/// The memory of all allocators, in order of address: readers do not wait.
static RANGES: LazyLock<ArcSwap<Vec<ServedRange>>> = LazyLock::new(ArcSwap::default);

/// The source of an allocator; it keeps the list of its memory, and counts it.
struct ListedSource<'a> {
    source: &'a mut MappedSource,
    held: &'a mut HeldBytes,
    owner: &'a Arc<InstanceAllocator>,
}

impl ListedSource<'_> {
    fn list(&self, start: u64, bytes: u64) {
        RANGES.rcu(|ranges| {
            let mut ranges = Vec::clone(ranges);
            let position = ranges.partition_point(|other| other.start < start);
            let range = ServedRange {
                start,
                end: start.saturating_add(bytes),
                owner: Arc::clone(self.owner),
            };
            ranges.insert(position, range);
            ranges
        });
    }

    fn unlist(start: u64) {
        RANGES.rcu(|ranges| {
            let mut ranges = Vec::clone(ranges);
            ranges.retain(|range| range.start != start);
            ranges
        });
    }
}

impl Source for ListedSource<'_> {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let address = self.source.take(bytes)?;
        self.list(address, bytes);
        self.held.add(bytes);
        Some(address)
    }

    fn give_back(&mut self, address: u64, bytes: u64) {
        Self::unlist(address);
        self.held.now -= bytes;
        self.source.give_back(address, bytes);
    }

    fn reserve(&mut self, bytes: u64) -> Option<u64> {
        let address = self.source.reserve(bytes)?;
        self.list(address, bytes);
        Some(address)
    }

    fn release(&mut self, address: u64, bytes: u64) {
        Self::unlist(address);
        self.source.release(address, bytes);
    }

    fn commit(&mut self, pages: std::ops::Range<u64>) -> bool {
        let bytes = pages.end - pages.start;
        let is_given = self.source.commit(pages);
        if is_given {
            self.held.add(bytes);
        }
        is_given
    }

    fn decommit(&mut self, pages: std::ops::Range<u64>) {
        self.held.now -= pages.end - pages.start;
        self.source.decommit(pages);
    }

    fn page(&self) -> u64 {
        self.source.page()
    }

    fn available(&self) -> Option<u64> {
        self.source.available()
    }

    fn wait(&mut self) {
        self.source.wait();
    }

    fn now(&self) -> u64 {
        self.source.now()
    }
}

impl ServedState {
    fn with<T>(
        &mut self,
        owner: &Arc<InstanceAllocator>,
        call: impl FnOnce(&mut dyn Allocator, &mut dyn Source) -> T,
    ) -> T {
        let mut source = ListedSource {
            source: &mut self.source,
            held: &mut self.held,
            owner,
        };
        call(&mut *self.allocator, &mut source)
    }

    fn is_over(&self) -> bool {
        self.retired && self.allocator.figures().in_use == 0
    }
}

impl InstanceAllocator {
    fn state(&self) -> MutexGuard<'_, ServedState> {
        // Nothing below panics between two changes that belong together.
        lock(&self.state)
    }

    /// A block of `bytes`, aligned to [`ALIGNMENT`].
    pub(crate) fn malloc(self: &Arc<Self>, bytes: u64) -> Served {
        let request = BlockRequest {
            bytes,
            alignment: ALIGNMENT,
            stream: 0,
        };
        let mut state = self.state();
        let placed = state.with(self, |allocator, source| allocator.malloc(request, source));
        match placed {
            Ok(address) => {
                match NonNull::new(std::ptr::with_exposed_provenance_mut(address as usize)) {
                    Some(block) => Served::Block(block),
                    None => Served::Refused,
                }
            }
            Err(_) if state.allocator.fault().is_some() => Served::Broken,
            Err(_) => Served::Refused,
        }
    }

    /// Frees the block at `address`, if it is one of this allocator's, and returns its size.
    pub(crate) fn free(self: &Arc<Self>, address: usize) -> Option<u64> {
        let (freed, over) = {
            let mut state = self.state();
            let free = |allocator: &mut dyn Allocator, source: &mut dyn Source| {
                allocator.free(address as u64, source)
            };
            let freed = state.with(self, free);
            (freed.ok(), state.is_over())
        };
        if over {
            self.forget();
        }
        freed
    }

    /// Takes all memory off the list; the last reference unmaps it.
    fn forget(&self) {
        RANGES.rcu(|ranges| {
            let mut ranges = Vec::clone(ranges);
            ranges.retain(|range| !std::ptr::eq(&raw const *range.owner, self));
            ranges
        });
    }

    /// Gives back what no block needs, if no run has begun since `before`.
    fn trim_idle(self: &Arc<Self>, before: Instant) {
        let mut state = self.state();
        if state.idle_since.is_some_and(|since| since <= before) {
            state.idle_since = None;
            state.with(self, |allocator, source| allocator.trim(source));
        }
    }
}

/// Frees the block at `address`, if it is of an instance's allocator, and returns its size.
pub(crate) fn free_anywhere(address: usize) -> Option<u64> {
    let ranges = RANGES.load();
    let position = ranges.partition_point(|range| range.start <= address as u64);
    let range = ranges.get(position.checked_sub(1)?)?;
    if address as u64 >= range.end {
        return None;
    }
    let owner = Arc::clone(&range.owner);
    drop(ranges);
    owner.free(address)
}

/// An instance's allocator. Dropped, it gives back all memory without blocks at once, and the rest with the last block.
#[derive(Debug)]
pub struct RunAllocator(Arc<InstanceAllocator>);

impl RunAllocator {
    /// An allocator without memory yet.
    #[must_use]
    pub fn new(allocator: Box<dyn Allocator>) -> Self {
        let owned = Self::unwatched(allocator);
        watch(owned.get());
        owned
    }

    /// An allocator that keeps its idle memory.
    fn unwatched(allocator: Box<dyn Allocator>) -> Self {
        Self(Arc::new(InstanceAllocator {
            state: Mutex::new(ServedState {
                allocator,
                source: MappedSource::default(),
                held: HeldBytes::default(),
                retired: false,
                idle_since: None,
            }),
        }))
    }

    pub(crate) const fn get(&self) -> &Arc<InstanceAllocator> {
        &self.0
    }

    /// What it holds now.
    #[must_use]
    pub fn figures(&self) -> MemoryFigures {
        self.0.state().allocator.figures()
    }

    /// How it broke its contract, if it did.
    #[must_use]
    pub fn fault(&self) -> Option<ContractFault> {
        self.0.state().allocator.fault().cloned()
    }

    /// A run has ended: the most that the allocator had from the system meanwhile, in bytes, and its fault, if it broke its
    /// contract.
    pub(crate) fn end_run(&self) -> (u64, Option<ContractFault>) {
        let mut state = self.0.state();
        state.idle_since = Some(Instant::now());
        let peak = state.held.peak;
        state.held.peak = state.held.now;
        drop(state);
        (peak, self.fault())
    }
}

impl Drop for RunAllocator {
    fn drop(&mut self) {
        let over = {
            let mut state = self.0.state();
            state.retired = true;
            state.with(&self.0, |allocator, source| allocator.trim(source));
            state.is_over()
        };
        if over {
            self.0.forget();
        }
    }
}

/// Bytes that all instances' own allocators in this process have from the system.
#[must_use]
pub fn allocator_bytes() -> u64 {
    let watched = lock(&WATCHED);
    let allocators: Vec<_> = watched
        .allocators
        .iter()
        .filter_map(Weak::upgrade)
        .collect();
    drop(watched);
    let reserved =
        |allocator: &Arc<InstanceAllocator>| allocator.state().allocator.figures().reserved;
    allocators.iter().map(reserved).sum()
}

/// All allocators of instances, and whether a thread looks after them.
#[derive(Debug, Default)]
struct Watched {
    allocators: Vec<Weak<InstanceAllocator>>,
    is_watched: bool,
}

static WATCHED: Mutex<Watched> = Mutex::new(Watched {
    allocators: Vec::new(),
    is_watched: false,
});

/// How often the thread looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Gives the allocator's idle memory back from now on.
fn watch(allocator: &Arc<InstanceAllocator>) {
    let mut watched = lock(&WATCHED);
    watched.allocators.push(Arc::downgrade(allocator));
    if !watched.is_watched {
        let look = || {
            while trim_idle(Instant::now()) {
                thread::sleep(PERIOD);
            }
        };
        let started = thread::Builder::new()
            .name("idle-memory".to_owned())
            .spawn(look);
        // Without the thread, memory stays until the instance ends.
        watched.is_watched = started.is_ok();
    }
}

/// Trims the allocators that are idle at `now`. Returns whether any allocator is left to look after.
fn trim_idle(now: Instant) -> bool {
    let mut watched = lock(&WATCHED);
    watched.allocators.retain(|weak| weak.strong_count() > 0);
    watched.is_watched = !watched.allocators.is_empty();
    let allocators: Vec<_> = watched
        .allocators
        .iter()
        .filter_map(Weak::upgrade)
        .collect();
    let goes_on = watched.is_watched;
    drop(watched);
    if let Some(before) = now.checked_sub(IDLE) {
        allocators
            .iter()
            .for_each(|allocator| allocator.trim_idle(before));
    }
    goes_on
}

#[cfg(test)]
mod tests {
    use std::sync::PoisonError;

    use super::*;

    /// The list of memory is the process's: tests that look at it take turns.
    static ALONE: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allocator(text: &str) -> RunAllocator {
        let spec: skep_layout::allocator::AllocatorSpec = text.parse().expect("valid");
        RunAllocator::unwatched(spec.build())
    }

    fn block(own: &RunAllocator, bytes: u64) -> usize {
        match own.get().malloc(bytes) {
            Served::Block(block) => block.as_ptr() as usize,
            other => panic!("{other:?}"),
        }
    }

    /// Ranges of memory of all allocators.
    fn ranges() -> usize {
        RANGES.load().len()
    }

    #[test]
    fn a_block_may_be_freed_after_its_instance_is_gone() {
        let _alone = alone();
        // It keeps its chunks for ever.
        let own = allocator("bfc");
        let blocks = [block(&own, 100), block(&own, 3 << 20)];
        assert_eq!(ranges(), 2);
        assert_eq!(free_anywhere(blocks[0] + 64), None, "no block begins there");
        drop(own);
        assert_eq!(free_anywhere(blocks[0]), Some(100));
        assert_eq!(free_anywhere(blocks[0]), None, "once");
        assert_eq!(ranges(), 2, "a block is in use");
        assert_eq!(free_anywhere(blocks[1]), Some(3 << 20));
        assert_eq!(ranges(), 0, "all memory went back");
        let own = allocator("bfc");
        assert_eq!(own.get().free(block(&own, 100)), Some(100));
        drop(own);
        assert_eq!(ranges(), 0);
    }

    #[test]
    fn memory_goes_back_when_an_instance_is_idle() {
        let _alone = alone();
        let own = allocator("contiguous_best_fit");
        let kept = block(&own, 1000);
        let freed = block(&own, 10 << 20);
        assert_eq!(own.get().free(freed), Some(10 << 20));
        let before = own.figures().reserved;
        let (peak, fault) = own.end_run();
        assert_eq!((peak, fault), (before, None));
        let now = Instant::now();
        own.get()
            .trim_idle(now.checked_sub(IDLE).expect("a moment"));
        assert_eq!(
            own.figures().reserved,
            before,
            "its last run has just ended"
        );
        own.get().trim_idle(now);
        let after = own.figures().reserved;
        assert!((1000..5000).contains(&after), "{before} {after}");
        assert_eq!(own.end_run().0, before, "the trim came after the run");
        assert_eq!(own.end_run().0, after);
        own.get().trim_idle(Instant::now());
        let freed = block(&own, 10 << 20);
        own.get().free(freed);
        let again = own.figures().reserved;
        own.get().trim_idle(now);
        assert_eq!(own.figures().reserved, again, "no run has ended since");
        own.get().free(kept);
    }

    #[test]
    fn an_allocator_that_has_no_more_refuses() {
        let _alone = alone();
        let own = allocator("bfc:limit=1MiB");
        assert!(matches!(own.get().malloc(2 << 20), Served::Refused));
        assert!(matches!(own.get().malloc(1 << 62), Served::Refused));
        assert!(matches!(own.get().malloc(1 << 10), Served::Block(_)));
    }
}
