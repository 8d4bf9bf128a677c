//! Skep's own allocator: learns what a workload repeats, and places it by a plan.
//!
//! ```text
//! period 1       period 2        period 3 and later
//! heap           heap            arena, each block at its planned place; what outlives a period on the heap
//!                       ^ the same sizes a second time: the planner gets them
//! ```
//!
//! *Learning.* [`PeriodFinder`] watches sizes. A period that was seen twice is planned with the sizes and live ranges of
//! its blocks, and the next one that begins is served from an arena of the plan's size.
//!
//! *Following.* The n-th request of a period gets the n-th place, if it has the planned size and the blocks that lay there
//! before are free. The first request that differs ends that: the heap serves it and all others, and the finder learns
//! again. Blocks in the arena stay there until they are freed.
//!
//! *Without a plan*, blocks lie in two heaps of pages ([`PagedHeap`]), one for small blocks and one for others. Before the
//! allocator takes more from its source than ever before, it takes the memory of pages that no block lies on.
//!
//! *Giving back.* What was idle during a whole delay goes back to the source, and all that is idle with
//! [`Allocator::trim`].

mod committed;
mod heap;
mod period;

use std::{cmp::Ordering, ops::Range, sync::Arc};

use skep_planner::Budget;

use self::{
    committed::CommittedPages,
    heap::PagedHeap,
    period::{FoundPeriod, PeriodFinder},
};
use super::{
    Allocator, BlockRequest, MemoryFigures, NotInUse, OutOfMemory, Source, options::options,
    pieces::AddressMap, rounded,
};
use crate::{RecordedBlock, Recording, RunPlan, plan_recording};

options! {
    /// Options of Skep's allocator.
    SkepOptions {
        /// sizes are multiples of this power of two
        unit: u64 = 64;
        /// larger blocks have a heap of their own
        small: u64 = 16 << 10;
        /// the longest period that is learned, in allocations
        max_period: u32 = 1 << 16;
        /// how long the planner searches, in nodes
        plan_nodes: u32 = 20_000;
        /// memory that was idle for so many milliseconds goes back
        decay_ms: u32 = 10_000;
        /// the share of the most bytes in use by which more may be reserved than ever before, rather than taking back idle memory
        slack: f64 = 0.01;
        /// addresses of each heap
        addresses: u64 = 1 << 40;
    }
}

/// The number of a block that the finder was not told of.
const UNNUMBERED: u64 = u64::MAX;

/// Calls from one look at the clock to the next.
const CALLS: u32 = 64;

/// Where a block lies.
#[derive(Clone, Copy, Debug)]
enum BlockHome {
    Small,
    Large,
    /// The arena's number, and the block's number in its plan.
    Arena(u32, u32),
}

#[derive(Clone, Copy, Debug)]
struct LiveBlock {
    /// The finder's number.
    number: u64,
    requested: u64,
    size: u64,
    home: BlockHome,
}

/// Addresses of a plan, with memory behind the pages that its blocks have lain on.
#[derive(Debug)]
struct PlanArena {
    base: u64,
    bytes: u64,
    committed: CommittedPages,
    plan: Arc<RunPlan>,
    /// By block of the plan: whether it is in use.
    live: Vec<bool>,
    /// By block of the plan: whether all its pages have memory, as far as is known.
    backed: Vec<bool>,
    in_use: usize,
}

impl PlanArena {
    /// Takes the memory of pages that no block lies on back, until so many bytes came back; returns how many did.
    fn reclaim(&mut self, wanted: u64, source: &mut dyn Source) -> u64 {
        let page = source.page();
        let live = (0..self.live.len()).filter(|block| self.live[*block]);
        let places = live.filter_map(|block| {
            let (size, offset) = self.plan.block(block)?;
            Some((offset?, size))
        });
        let mut places: Vec<(u64, u64)> = places.collect();
        places.sort_unstable();
        let (mut from, mut reclaimed) = (0, 0);
        for (offset, size) in places.into_iter().chain([(self.bytes, 0)]) {
            let until = offset - offset % page;
            if from < until && reclaimed < wanted {
                let pages = self.base + from..self.base + until;
                reclaimed += self.committed.reclaim(pages, wanted - reclaimed, source);
            }
            from = (offset + size).next_multiple_of(page).max(from);
        }
        if reclaimed > 0 {
            self.backed.fill(false);
        }
        reclaimed
    }
}

/// What a plan says of a block.
enum Planned {
    /// There is no plan, or none any more.
    Nothing,
    /// The block outlives its period.
    OnHeap,
    /// It has a place.
    At(u64, BlockHome),
}

/// Serving by a plan.
#[derive(Debug)]
struct Following {
    plan: Arc<RunPlan>,
    /// The plan's bytes over the most that are in use of them.
    waste: f64,
    length: u64,
    /// The number of the malloc with which it begins.
    begins: u64,
    /// Whether it has begun: from then on the finder is not asked.
    begun: bool,
    /// The next block of the plan.
    next: usize,
    /// The number of the arena, once a period has begun.
    arena: Option<u32>,
}

/// Skep's allocator.
#[derive(Debug)]
pub(super) struct ProfileGuided {
    options: SkepOptions,
    unit: u64,
    small: PagedHeap,
    large: PagedHeap,
    finder: PeriodFinder,
    following: Option<Following>,
    arenas: Vec<Option<PlanArena>>,
    live: AddressMap<LiveBlock>,
    in_use: u64,
    padding: u64,
    most_reserved: u64,
    most_in_use: u64,
    calls: u32,
    /// Since when the idle bytes are watched, and the fewest since.
    watched_since: Option<u64>,
    least_idle: u64,
}

impl ProfileGuided {
    pub(super) fn new(options: SkepOptions) -> Self {
        let unit = options
            .unit
            .max(1)
            .next_power_of_two()
            .max(crate::ALIGNMENT);
        Self {
            unit,
            small: PagedHeap::new(unit, options.addresses),
            large: PagedHeap::new(unit, options.addresses),
            finder: PeriodFinder::new(options.max_period as usize),
            following: None,
            arenas: Vec::new(),
            live: AddressMap::default(),
            in_use: 0,
            padding: 0,
            most_reserved: 0,
            most_in_use: 0,
            calls: 0,
            watched_since: None,
            least_idle: u64::MAX,
            options,
        }
    }

    fn reserved(&self) -> u64 {
        let heaps = self.small.figures().reserved + self.large.figures().reserved;
        let arenas = self.arenas.iter().flatten();
        heaps + arenas.map(|arena| arena.committed.bytes()).sum::<u64>()
    }

    /// Takes the memory of pages without a block back, until so many bytes came back.
    fn reclaim(&mut self, wanted: u64, source: &mut dyn Source) {
        let mut left = wanted;
        left = left.saturating_sub(self.large.reclaim(left, source));
        left = left.saturating_sub(self.small.reclaim(left, source));
        for arena in self.arenas.iter_mut().flatten() {
            if left > 0 {
                left = left.saturating_sub(arena.reclaim(left, source));
            }
        }
    }

    /// Commits all pages of a block; false if the source refuses the memory.
    fn back(&mut self, home: BlockHome, block: Range<u64>, source: &mut dyn Source) -> bool {
        let page = source.page();
        let size = block.end - block.start;
        let Some(committed) = self.committed(home) else {
            return false;
        };
        let (_, bytes) = committed.missing(block.start, size, page);
        if bytes == 0 {
            return true;
        }
        self.make_room(bytes, source);
        for _ in 0..2 {
            // Idle pages may have been the block's own.
            let Some(committed) = self.committed(home) else {
                return false;
            };
            let (pages, _) = committed.missing(block.start, size, page);
            if committed.commit(&pages, source) {
                self.most_reserved = self.most_reserved.max(self.reserved());
                return true;
            }
            self.reclaim(u64::MAX, source);
        }
        false
    }

    fn committed(&mut self, home: BlockHome) -> Option<&mut CommittedPages> {
        match home {
            BlockHome::Small => Some(&mut self.small.committed),
            BlockHome::Large => Some(&mut self.large.committed),
            BlockHome::Arena(arena, _) => {
                let arena = self.arenas.get_mut(arena as usize)?.as_mut();
                arena.map(|arena| &mut arena.committed)
            }
        }
    }

    /// Before so many bytes more are taken: idle memory makes up for what would be more than ever before. A little more
    /// is allowed, and what the plan cannot do without: where a plan needs a page more than there was, memory would be
    /// taken back and forth in every period.
    fn make_room(&mut self, more: u64, source: &mut dyn Source) {
        #[expect(clippy::cast_sign_loss, reason = "a share of bytes is positive")]
        let allowed = {
            let waste = self
                .following
                .as_ref()
                .map_or(1.0, |following| following.waste);
            (self.most_in_use as f64 * waste * (1.0 + self.options.slack)) as u64
        };
        let most = self.most_reserved.max(allowed);
        let excess = (self.reserved() + more).saturating_sub(most);
        if excess > 0 {
            self.reclaim(excess, source);
        }
    }

    /// A place on one of the heaps.
    fn on_heap(
        &mut self,
        size: u64,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Option<(u64, BlockHome)> {
        let is_small = size <= self.options.small;
        let home = if is_small {
            BlockHome::Small
        } else {
            BlockHome::Large
        };
        let address = self.heap(is_small).place(size, request, source)?;
        if self.back(home, address..address + size, source) {
            return Some((address, home));
        }
        let freed = self.heap(is_small).free(address);
        debug_assert!(freed.is_ok(), "the block was placed");
        None
    }

    fn heap(&mut self, is_small: bool) -> &mut PagedHeap {
        if is_small {
            &mut self.small
        } else {
            &mut self.large
        }
    }

    /// What the plan says of the next block. Where it does not say anything, or anything any more, the block is the
    /// finder's.
    fn planned(&mut self, request: BlockRequest, source: &mut dyn Source) -> Planned {
        let number = self.finder.next_number();
        let Some(following) = self.following.as_mut() else {
            return Planned::Nothing;
        };
        if !following.begun {
            match number.cmp(&following.begins) {
                Ordering::Less => return Planned::Nothing,
                Ordering::Equal => following.begun = true,
                Ordering::Greater => {
                    self.deviate(source);
                    return Planned::Nothing;
                }
            }
        }
        let begins = following.next == 0;
        if begins && !self.begin_period(source) {
            return Planned::Nothing;
        }
        self.next_of_plan(request, source).unwrap_or_else(|| {
            self.deviate(source);
            Planned::Nothing
        })
    }

    /// The next block's place; `None` where the request differs from the plan.
    fn next_of_plan(&mut self, request: BlockRequest, source: &mut dyn Source) -> Option<Planned> {
        let following = self.following.as_mut()?;
        let (block, arena) = (following.next, following.arena?);
        let memory = self.arenas[arena as usize].as_mut()?;
        let (bytes, place) = following.plan.block(block)?;
        let is_free = |before: &u32| !memory.live[*before as usize];
        let follows = bytes == request.bytes
            && request.alignment <= crate::ALIGNMENT
            && (place.is_none() || following.plan.predecessors(block).iter().all(is_free));
        if !follows {
            return None;
        }
        following.next += 1;
        if following.next == following.plan.block_count() {
            following.next = 0;
        }
        let Some(offset) = place else {
            return Some(Planned::OnHeap);
        };
        let address = memory.base + offset;
        let backed = memory.backed[block];
        memory.live[block] = true;
        memory.in_use += 1;
        let home = BlockHome::Arena(arena, u32::try_from(block).expect("plans are bounded"));
        if !backed {
            if !self.back(home, address..address + request.bytes, source) {
                self.end_planned(arena, block);
                return None;
            }
            if let Some(memory) = self.arenas[arena as usize].as_mut() {
                memory.backed[block] = true;
            }
        }
        Some(Planned::At(address, home))
    }

    /// A block of the plan is not in use any more.
    fn end_planned(&mut self, arena: u32, block: usize) {
        if let Some(arena) = self.arenas[arena as usize].as_mut() {
            arena.live[block] = false;
            arena.in_use -= 1;
        }
    }

    /// Another period begins: its arena is there, and empty. False where that cannot be.
    fn begin_period(&mut self, source: &mut dyn Source) -> bool {
        let Some(following) = self.following.as_ref() else {
            return false;
        };
        if let Some(arena) = following.arena {
            let is_empty = self.arenas[arena as usize]
                .as_ref()
                .is_some_and(|arena| arena.in_use == 0);
            if !is_empty {
                self.deviate(source);
            }
            return is_empty;
        }
        let plan = Arc::clone(&following.plan);
        let bytes = plan.size().next_multiple_of(source.page());
        let Some(base) = source.reserve(bytes) else {
            // Without addresses there is no plan.
            self.deviate(source);
            return false;
        };
        let arena = PlanArena {
            base,
            bytes,
            committed: CommittedPages::default(),
            plan: Arc::clone(&plan),
            live: vec![false; plan.block_count()],
            backed: vec![false; plan.block_count()],
            in_use: 0,
        };
        let vacant = self.arenas.iter().position(Option::is_none);
        let number = vacant.unwrap_or_else(|| {
            self.arenas.push(None);
            self.arenas.len() - 1
        });
        self.arenas[number] = Some(arena);
        if let Some(following) = self.following.as_mut() {
            following.arena = u32::try_from(number).ok();
        }
        true
    }

    /// Requests differ from the plan: the heap serves them from now on.
    fn deviate(&mut self, source: &mut dyn Source) {
        let Some(following) = self.following.take() else {
            return;
        };
        self.finder.deviated(following.length);
        if let Some(arena) = following.arena {
            self.drop_if_empty(arena, source);
        }
    }

    /// Gives an arena that no block lies in back.
    fn drop_if_empty(&mut self, number: u32, source: &mut dyn Source) {
        let slot = &mut self.arenas[number as usize];
        if slot.as_ref().is_some_and(|arena| arena.in_use == 0)
            && let Some(mut arena) = slot.take()
        {
            arena.reclaim(u64::MAX, source);
            source.release(arena.base, arena.bytes);
        }
    }

    /// Plans a period, to follow from the next one on.
    fn follow(&mut self, length: u64, source: &mut dyn Source) {
        let period = self.finder.period(length);
        let Some((begins, plan, waste)) = period.and_then(|period| {
            let (plan, waste) = plan_period(&period, u64::from(self.options.plan_nodes))?;
            Some((period.next, plan, waste))
        }) else {
            return;
        };
        self.deviate(source);
        self.following = Some(Following {
            plan: Arc::new(plan),
            waste,
            length,
            begins,
            begun: false,
            next: 0,
            arena: None,
        });
    }

    /// Gives back what was idle throughout the delay.
    fn decay(&mut self, source: &mut dyn Source) {
        self.calls += 1;
        if self.calls < CALLS {
            return;
        }
        self.calls = 0;
        let idle = self.reserved().saturating_sub(self.in_use + self.padding);
        self.least_idle = self.least_idle.min(idle);
        let now = source.now();
        let delay = u64::from(self.options.decay_ms) * 1_000_000;
        let since = *self.watched_since.get_or_insert(now);
        if now.saturating_sub(since) >= delay {
            self.reclaim(self.least_idle, source);
            self.watched_since = Some(now);
            self.least_idle = u64::MAX;
        }
    }
}

/// The plan of a period, and its bytes over the most that are in use at once of the blocks that it places.
fn plan_period(period: &FoundPeriod, nodes: u64) -> Option<(RunPlan, f64)> {
    let plan = plan_recording(
        &Recording::of_blocks(&period.blocks)?,
        &Budget::nodes(nodes),
    )?;
    let placed = period.blocks.iter().filter(|block| block.end.is_some());
    let placed: Vec<RecordedBlock> = placed.copied().collect();
    let peak = Recording::of_blocks(&placed)?.peak();
    let waste = plan.size() as f64 / peak.max(1) as f64;
    Some((plan, waste))
}

impl Allocator for ProfileGuided {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        let out_of_memory = request.refused();
        self.decay(source);
        let size = rounded(request.bytes, self.unit)
            .filter(|size| *size <= self.options.addresses)
            .ok_or(out_of_memory)?;
        let (number, placed) = match self.planned(request, source) {
            Planned::At(address, home) => (UNNUMBERED, Some((address, home))),
            Planned::OnHeap => (UNNUMBERED, self.on_heap(size, request, source)),
            Planned::Nothing => {
                let number = self.finder.next_number();
                let seen_twice = self.finder.allocated(request.bytes);
                let placed = self.on_heap(size, request, source);
                if let Some(length) = seen_twice
                    && self.following.is_none()
                {
                    self.follow(length, source);
                }
                (number, placed)
            }
        };
        // If there is no memory, a number has no block: nobody frees it.
        let (address, home) = placed.ok_or(out_of_memory)?;
        self.in_use += request.bytes;
        self.most_in_use = self.most_in_use.max(self.in_use);
        self.padding += size - request.bytes;
        self.live.insert(
            address,
            LiveBlock {
                number,
                requested: request.bytes,
                size,
                home,
            },
        );
        Ok(address)
    }

    fn free(&mut self, address: u64, source: &mut dyn Source) -> Result<u64, NotInUse> {
        let block = self.live.remove(&address).ok_or(NotInUse { address })?;
        if block.number != UNNUMBERED {
            self.finder.freed(block.number);
        }
        self.in_use -= block.requested;
        self.padding -= block.size - block.requested;
        match block.home {
            BlockHome::Small => self.small.free(address).map(drop)?,
            BlockHome::Large => self.large.free(address).map(drop)?,
            BlockHome::Arena(number, planned) => {
                self.end_planned(number, planned as usize);
                let is_followed = self
                    .following
                    .as_ref()
                    .is_some_and(|following| following.arena == Some(number));
                if !is_followed {
                    self.drop_if_empty(number, source);
                }
            }
        }
        self.decay(source);
        Ok(block.requested)
    }

    fn trim(&mut self, source: &mut dyn Source) {
        if let Some(following) = self.following.as_mut() {
            // The next period gets a new arena. One that has begun ends with its plan.
            if following.next == 0
                && let Some(arena) = following.arena.take()
            {
                self.drop_if_empty(arena, source);
            }
        }
        self.reclaim(u64::MAX, source);
    }

    fn figures(&self) -> MemoryFigures {
        MemoryFigures {
            in_use: self.in_use,
            padding: self.padding,
            reserved: self.reserved(),
        }
    }

    fn largest_free(&self) -> u64 {
        self.small.largest_free().max(self.large.largest_free())
    }
}

#[cfg(test)]
mod tests;
