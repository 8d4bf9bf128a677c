//! The planned layout: the n-th block of a run lies in the n-th place of a plan.

use std::sync::Arc;

use crate::{BlockLayout, BlockPlace, FreedBlock, Placement, RunPlan};

/// One run by a plan, in one chunk. Requests are matched with the plan by their number and size.
///
/// After the first request that does not fit the plan (another size, one too many, a place whose predecessor is still
/// in use), every block of the run goes [elsewhere](Placement::Deviating).
#[derive(Debug)]
pub struct Replay {
    plan: Arc<RunPlan>,
    /// Bytes of the chunk, once there is one.
    room: u64,
    next: usize,
    deviation: Option<usize>,
    /// By block: whether it is in use.
    live: Vec<bool>,
    /// Blocks in use, by their offsets; few at a time, and mostly the last ones are freed first.
    open: Vec<(u64, usize)>,
}

impl Replay {
    /// A run by `plan`, without a chunk.
    #[must_use]
    pub fn new(plan: Arc<RunPlan>) -> Self {
        let blocks = plan.block_count();
        Self {
            plan,
            room: 0,
            next: 0,
            deviation: None,
            live: vec![false; blocks],
            open: Vec::new(),
        }
    }

    /// Starts another run, by this plan, in the chunk that is there. False, and no run starts, where the plan does not
    /// fit the chunk or a block is in use.
    #[must_use]
    pub fn restart(&mut self, plan: &Arc<RunPlan>) -> bool {
        if plan.size() > self.room || !self.open.is_empty() {
            return false;
        }
        if !Arc::ptr_eq(&self.plan, plan) {
            self.live.clear();
            self.live.resize(plan.block_count(), false);
            self.plan = Arc::clone(plan);
        }
        self.next = 0;
        self.deviation = None;
        true
    }

    /// The number of the first request that did not follow the plan, or of the first planned block that the run did not
    /// ask for.
    #[must_use]
    pub fn deviation(&self) -> Option<usize> {
        let early = (self.next < self.plan.block_count()).then_some(self.next);
        self.deviation.or(early)
    }
}

impl BlockLayout for Replay {
    fn malloc(&mut self, size: u64) -> Placement {
        if self.deviation.is_some() {
            return Placement::Deviating;
        }
        if self.plan.size() > self.room {
            return Placement::Grow(self.plan.size());
        }
        let number = self.next;
        self.next += 1;
        let is_free = |block: &u32| !self.live[*block as usize];
        match self.plan.block(number) {
            Some((planned, None)) if planned == size => Placement::Elsewhere,
            Some((planned, Some(offset)))
                if planned == size && self.plan.predecessors(number).iter().all(is_free) =>
            {
                self.live[number] = true;
                self.open.push((offset, number));
                Placement::At(BlockPlace { chunk: 0, offset })
            }
            _ => {
                self.deviation = Some(number);
                Placement::Deviating
            }
        }
    }

    /// Takes the one chunk over; a plan has no use for another.
    fn add_chunk(&mut self, length: u64) -> usize {
        self.room = length;
        0
    }

    fn refused(&mut self, _: u64, _: u64) -> Placement {
        self.deviation = Some(self.next);
        Placement::Deviating
    }

    fn free(&mut self, place: BlockPlace) -> Option<FreedBlock> {
        let BlockPlace { chunk: _, offset } = place;
        let position = self.open.iter().rposition(|(at, _)| *at == offset)?;
        let (_, number) = self.open.swap_remove(position);
        self.live[number] = false;
        let (size, _) = self.plan.block(number)?;
        Some(FreedBlock {
            size,
            // The next run takes the same places.
            released: offset..offset,
        })
    }

    fn blocks(&self, _: usize) -> Vec<(u64, u64)> {
        let size = |number| self.plan.block(number).map_or(0, |(size, _)| size);
        let mut blocks: Vec<_> = self.open.iter().map(|(at, n)| (*at, size(*n))).collect();
        blocks.sort_unstable();
        blocks
    }

    fn in_use(&self, _: usize) -> bool {
        !self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{BlockEvent, InvalidRunPlan, Recording};

    fn at(offset: u64) -> Placement {
        Placement::At(BlockPlace { chunk: 0, offset })
    }

    /// A run by `plan` in a chunk as large as the plan.
    fn replay_of(plan: &Arc<RunPlan>) -> Replay {
        let mut replay = Replay::new(Arc::clone(plan));
        replay.add_chunk(plan.size());
        replay
    }

    fn free(replay: &mut Replay, offset: u64) -> Option<u64> {
        let freed = replay.free(BlockPlace { chunk: 0, offset })?;
        Some(freed.size)
    }

    fn plan(events: &[BlockEvent], places: &[Option<u64>]) -> Arc<RunPlan> {
        let recording = Recording::new(events.to_vec()).expect("a recording");
        Arc::new(RunPlan::new(&recording, places).expect("a plan"))
    }

    const EVENTS: [BlockEvent; 6] = [
        BlockEvent::Malloc(300),
        BlockEvent::Malloc(200),
        BlockEvent::Free(0),
        BlockEvent::Malloc(250),
        BlockEvent::Free(1),
        BlockEvent::Free(2),
    ];

    #[test]
    fn a_run_as_recorded_gets_its_planned_places() {
        let plan = plan(&EVENTS, &[Some(0), Some(320), Some(0)]);
        assert_eq!((plan.size(), plan.sum(), plan.block_count()), (520, 750, 3));
        let mut replay = replay_of(&plan);
        for _ in 0..2 {
            assert!(replay.restart(&plan));
            assert_eq!(replay.malloc(300), at(0));
            assert_eq!(replay.malloc(200), at(320));
            assert_eq!(free(&mut replay, 0), Some(300));
            assert_eq!(free(&mut replay, 0), None, "it is free");
            assert_eq!(replay.deviation(), Some(2), "if it ended here");
            assert_eq!(replay.malloc(250), at(0));
            assert_eq!(
                (free(&mut replay, 320), free(&mut replay, 0)),
                (Some(200), Some(250))
            );
            assert_eq!((replay.deviation(), replay.in_use(0)), (None, false));
        }
    }

    #[test]
    fn after_a_deviation_every_block_goes_elsewhere() {
        let plan = plan(&EVENTS, &[Some(0), None, Some(0)]);
        let mut replay = replay_of(&plan);
        assert_eq!(replay.malloc(300), at(0));
        assert_eq!(replay.malloc(200), Placement::Elsewhere);
        // Its place is still taken by the first block.
        assert_eq!(replay.malloc(250), Placement::Deviating);
        assert_eq!(replay.malloc(250), Placement::Deviating);
        assert_eq!(replay.deviation(), Some(2));
        assert!(replay.in_use(0) && !replay.restart(&plan));
        assert_eq!(free(&mut replay, 0), Some(300));

        let plan = self::plan(&EVENTS, &[Some(0), Some(320), Some(0)]);
        assert!(!replay.restart(&plan), "its chunk is too small");
        assert_eq!(replay.add_chunk(plan.size()), 0);
        assert!(replay.restart(&plan));
        assert_eq!(replay.malloc(301), Placement::Deviating);
        assert_eq!(replay.malloc(200), Placement::Deviating);
        assert_eq!(replay.deviation(), Some(0));
    }

    #[test]
    fn a_run_without_memory_is_a_deviation() {
        let plan = plan(&EVENTS, &[Some(0), Some(320), Some(0)]);
        let mut replay = Replay::new(plan);
        assert_eq!(replay.malloc(300), Placement::Grow(520));
        assert_eq!(replay.refused(300, 520), Placement::Deviating);
        assert_eq!(replay.malloc(200), Placement::Deviating);
        assert_eq!(replay.deviation(), Some(0));
    }

    #[test]
    fn plans_that_do_not_fit_the_recording_say_why() {
        let recording = Recording::new(EVENTS.to_vec()).expect("a recording");
        let why = |places: &[Option<u64>]| RunPlan::new(&recording, places).expect_err("invalid");
        assert_eq!(
            why(&[Some(0)]),
            InvalidRunPlan::Count {
                blocks: 3,
                places: 1
            }
        );
        assert_eq!(
            why(&[Some(0), Some(256), None]),
            InvalidRunPlan::Overlap {
                first: 0,
                second: 1
            }
        );
        assert_eq!(
            why(&[Some(32), None, None]).to_string(),
            "block 0 of 300 bytes at offset 32, expected a multiple of 64 that leaves room for it"
        );
        assert!(matches!(
            why(&[Some(u64::MAX - 63), None, None]),
            InvalidRunPlan::Offset { .. }
        ));
        let outlives = Recording::new(vec![BlockEvent::Malloc(1)]).expect("a recording");
        assert_eq!(
            RunPlan::new(&outlives, &[Some(0)]),
            Err(InvalidRunPlan::Outlives { block: 0 })
        );
        assert_eq!(Recording::new(vec![BlockEvent::Free(0)]), None);
    }

    /// Events of a run, and places for its blocks that are disjoint while they are live: first fit.
    fn runs() -> impl Strategy<Value = (Vec<BlockEvent>, Vec<Option<u64>>)> {
        proptest::collection::vec((0_u64..500, any::<prop::sample::Index>(), 0_u8..8), 1..60)
            .prop_map(|steps| {
                let (mut events, mut places) = (Vec::new(), Vec::new());
                let mut live: Vec<(u32, u64, u64)> = Vec::new();
                for (size, which, kind) in steps {
                    if kind < 3 && !live.is_empty() {
                        events.push(BlockEvent::Free(live.remove(which.index(live.len())).0));
                        continue;
                    }
                    let number = u32::try_from(places.len()).expect("few");
                    let fits =
                        |at: &u64| live.iter().all(|(_, o, s)| at + size <= *o || o + s <= *at);
                    let offset = (0..).step_by(64).find(fits).expect("above all");
                    events.push(BlockEvent::Malloc(size));
                    places.push((kind != 7).then_some(offset));
                    if kind != 7 && size > 0 {
                        live.push((number, offset, size));
                    } else {
                        events.push(BlockEvent::Free(number));
                    }
                }
                events.extend(live.iter().map(|(number, ..)| BlockEvent::Free(*number)));
                (events, places)
            })
    }

    proptest! {
        /// Whatever a run does, no two of its blocks in the arena share a byte.
        #[test]
        fn live_blocks_are_disjoint(
            (events, places) in runs(),
            steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>(), 0_u64..3), 0..120),
        ) {
            let plan = plan(&events, &places);
            let sizes: Vec<u64> = (0..plan.block_count()).filter_map(|n| plan.block(n)).map(|(size, _)| size).collect();
            let mut replay = replay_of(&plan);
            let mut live: Vec<(u64, u64)> = Vec::new();
            let mut mallocs = 0;
            for (malloc, which, odd) in steps {
                if malloc {
                    let planned = sizes.get(mallocs).copied().unwrap_or(1);
                    // Mostly as planned, so that runs get far before they deviate.
                    let size = if odd == 0 && which.index(20) == 0 { planned + 1 } else { planned };
                    mallocs += 1;
                    if let Placement::At(BlockPlace { offset, .. }) = replay.malloc(size) {
                        prop_assert!(offset + size <= plan.size());
                        prop_assert!(live.iter().all(|(o, s)| offset + size <= *o || o + s <= offset));
                        live.push((offset, size));
                    }
                } else if !live.is_empty() {
                    let (offset, size) = live.swap_remove(which.index(live.len()));
                    prop_assert_eq!(free(&mut replay, offset), Some(size));
                }
            }
            prop_assert_eq!(replay.in_use(0), !live.is_empty());
        }

        /// A run as it was recorded never deviates.
        #[test]
        fn recorded_runs_go_as_planned((events, places) in runs()) {
            let plan = plan(&events, &places);
            let mut replay = replay_of(&plan);
            let mut at = Vec::new();
            for event in &events {
                match *event {
                    BlockEvent::Malloc(size) => at.push(replay.malloc(size)),
                    BlockEvent::Free(block) => if let Placement::At(BlockPlace { offset, .. }) = at[block as usize] {
                        prop_assert!(free(&mut replay, offset).is_some());
                    },
                }
            }
            prop_assert_eq!(replay.deviation(), None);
            prop_assert!(!replay.in_use(0));
        }
    }

    #[test]
    fn another_plan_takes_over_with_the_next_run() {
        let first = plan(&EVENTS, &[Some(0), Some(320), Some(0)]);
        let events = [BlockEvent::Malloc(128), BlockEvent::Free(0)];
        let second = plan(&events, &[Some(64)]);
        let mut replay = replay_of(&first);
        assert!(replay.restart(&second));
        assert_eq!(replay.malloc(128), at(64));
        assert_eq!(replay.deviation(), None);
    }

    #[test]
    fn a_heap_block_of_another_size_deviates() {
        let events = [
            BlockEvent::Malloc(100),
            BlockEvent::Malloc(64),
            BlockEvent::Free(1),
        ];
        let plan = plan(&events, &[None, Some(0)]);
        let mut replay = replay_of(&plan);
        assert_eq!(replay.malloc(100), Placement::Elsewhere);
        let mut replay = replay_of(&plan);
        assert_eq!(replay.malloc(99), Placement::Deviating);
        assert_eq!(replay.deviation(), Some(0));
    }

    #[test]
    fn blocks_in_use_are_listed_by_address() {
        let plan = plan(&EVENTS, &[Some(256), Some(0), Some(576)]);
        let mut replay = replay_of(&plan);
        assert_eq!((replay.malloc(300), replay.malloc(200)), (at(256), at(0)));
        assert_eq!(replay.blocks(0), [(0, 200), (256, 300)]);
    }
}
