//! A run's way through its plan: pure, in offsets.

use std::sync::Arc;

use crate::RunPlan;

/// What a malloc gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A planned place, bytes from the region's beginning.
    Offset(u64),
    /// The heap, as planned.
    Heap,
    /// The heap, since the run has left its plan.
    Deviating,
}

/// One run. Mallocs are matched with the plan by their number and size.
#[derive(Debug)]
pub(crate) struct Replay {
    plan: Arc<RunPlan>,
    next: usize,
    deviation: Option<usize>,
    /// By block: whether it is in use.
    live: Vec<bool>,
    /// Blocks in use, by their offsets; few at a time, and mostly the last ones are freed first.
    open: Vec<(u64, usize)>,
}

impl Replay {
    pub(crate) fn new(plan: Arc<RunPlan>) -> Self {
        let blocks = plan.block_count();
        Self {
            plan,
            next: 0,
            deviation: None,
            live: vec![false; blocks],
            open: Vec::new(),
        }
    }

    /// Begins anew, by this plan. No block may be in use.
    pub(crate) fn restart(&mut self, plan: &Arc<RunPlan>) {
        debug_assert!(self.open.is_empty());
        if !Arc::ptr_eq(&self.plan, plan) {
            self.live.clear();
            self.live.resize(plan.block_count(), false);
            self.plan = Arc::clone(plan);
        }
        self.next = 0;
        self.deviation = None;
    }

    pub(crate) fn malloc(&mut self, size: u64) -> Place {
        if self.deviation.is_some() {
            return Place::Deviating;
        }
        let number = self.next;
        self.next += 1;
        let free = |block: &u32| !self.live[*block as usize];
        match self.plan.block(number) {
            Some((planned, None)) if planned == size => Place::Heap,
            Some((planned, Some(offset)))
                if planned == size && self.plan.predecessors(number).iter().all(free) =>
            {
                self.live[number] = true;
                self.open.push((offset, number));
                Place::Offset(offset)
            }
            _ => {
                self.deviation = Some(number);
                Place::Deviating
            }
        }
    }

    /// Frees the block at `offset` and says its size; `None` when none is in use there.
    pub(crate) fn free(&mut self, offset: u64) -> Option<u64> {
        let position = self.open.iter().rposition(|(at, _)| *at == offset)?;
        let (_, number) = self.open.swap_remove(position);
        self.live[number] = false;
        self.plan.block(number).map(|(size, _)| size)
    }

    /// Offset and size of each block in use, in order of address.
    pub(crate) fn blocks(&self) -> Vec<(u64, u64)> {
        let size = |number| self.plan.block(number).map_or(0, |(size, _)| size);
        let mut blocks: Vec<_> = self.open.iter().map(|(at, n)| (*at, size(*n))).collect();
        blocks.sort_unstable();
        blocks
    }

    /// Whether a block is in use.
    pub(crate) fn in_use(&self) -> bool {
        !self.open.is_empty()
    }

    /// The number of the first allocation that was not the plan's: the run's own, or one that the run did without.
    pub(crate) fn deviation(&self) -> Option<usize> {
        let early = (self.next < self.plan.block_count()).then_some(self.next);
        self.deviation.or(early)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Event, InvalidPlan, Recording};

    fn plan(events: &[Event], places: &[Option<u64>]) -> Arc<RunPlan> {
        let recording = Recording::new(events.to_vec()).expect("a recording");
        Arc::new(RunPlan::new(&recording, places).expect("a plan"))
    }

    const EVENTS: [Event; 6] = [
        Event::Malloc(300),
        Event::Malloc(200),
        Event::Free(0),
        Event::Malloc(250),
        Event::Free(1),
        Event::Free(2),
    ];

    #[test]
    fn a_run_as_recorded_gets_its_planned_places() {
        let plan = plan(&EVENTS, &[Some(0), Some(320), Some(0)]);
        assert_eq!((plan.size(), plan.sum(), plan.block_count()), (520, 750, 3));
        let mut replay = Replay::new(Arc::clone(&plan));
        for _ in 0..2 {
            replay.restart(&plan);
            assert_eq!(replay.malloc(300), Place::Offset(0));
            assert_eq!(replay.malloc(200), Place::Offset(320));
            assert_eq!(replay.free(0), Some(300));
            assert_eq!(replay.free(0), None, "it is free");
            assert_eq!(replay.deviation(), Some(2), "if it ended here");
            assert_eq!(replay.malloc(250), Place::Offset(0));
            assert_eq!((replay.free(320), replay.free(0)), (Some(200), Some(250)));
            assert_eq!((replay.deviation(), replay.in_use()), (None, false));
        }
    }

    #[test]
    fn what_is_not_as_planned_goes_to_the_heap_from_there_on() {
        let plan = plan(&EVENTS, &[Some(0), None, Some(0)]);
        let mut replay = Replay::new(plan);
        assert_eq!(replay.malloc(300), Place::Offset(0));
        assert_eq!(replay.malloc(200), Place::Heap);
        // Its place is still taken by the first block.
        assert_eq!(replay.malloc(250), Place::Deviating);
        assert_eq!(replay.malloc(250), Place::Deviating);
        assert_eq!(replay.deviation(), Some(2));
        assert!(replay.in_use());
        assert_eq!(replay.free(0), Some(300));

        let plan = self::plan(&EVENTS, &[Some(0), Some(320), Some(0)]);
        replay.restart(&plan);
        assert_eq!(replay.malloc(301), Place::Deviating);
        assert_eq!(replay.malloc(200), Place::Deviating);
        assert_eq!(replay.deviation(), Some(0));
    }

    #[test]
    fn plans_that_do_not_fit_the_recording_say_why() {
        let recording = Recording::new(EVENTS.to_vec()).expect("a recording");
        let why = |places: &[Option<u64>]| RunPlan::new(&recording, places).expect_err("invalid");
        assert_eq!(
            why(&[Some(0)]),
            InvalidPlan::Count {
                blocks: 3,
                places: 1
            }
        );
        assert_eq!(
            why(&[Some(0), Some(256), None]),
            InvalidPlan::Overlap {
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
            InvalidPlan::Offset { .. }
        ));
        let outlives = Recording::new(vec![Event::Malloc(1)]).expect("a recording");
        assert_eq!(
            RunPlan::new(&outlives, &[Some(0)]),
            Err(InvalidPlan::Outlives { block: 0 })
        );
        assert_eq!(Recording::new(vec![Event::Free(0)]), None);
    }

    /// Events of a run, and places for its blocks that are disjoint while they are live: first fit.
    fn runs() -> impl Strategy<Value = (Vec<Event>, Vec<Option<u64>>)> {
        proptest::collection::vec((0_u64..500, any::<prop::sample::Index>(), 0_u8..8), 1..60)
            .prop_map(|steps| {
                let (mut events, mut places) = (Vec::new(), Vec::new());
                let mut live: Vec<(u32, u64, u64)> = Vec::new();
                for (size, which, kind) in steps {
                    if kind < 3 && !live.is_empty() {
                        events.push(Event::Free(live.remove(which.index(live.len())).0));
                        continue;
                    }
                    let number = u32::try_from(places.len()).expect("few");
                    let fits =
                        |at: &u64| live.iter().all(|(_, o, s)| at + size <= *o || o + s <= *at);
                    let offset = (0..).step_by(64).find(fits).expect("above all");
                    events.push(Event::Malloc(size));
                    places.push((kind != 7).then_some(offset));
                    if kind != 7 && size > 0 {
                        live.push((number, offset, size));
                    } else {
                        events.push(Event::Free(number));
                    }
                }
                events.extend(live.iter().map(|(number, ..)| Event::Free(*number)));
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
            let mut replay = Replay::new(Arc::clone(&plan));
            let mut live: Vec<(u64, u64)> = Vec::new();
            let mut mallocs = 0;
            for (malloc, which, odd) in steps {
                if malloc {
                    let planned = sizes.get(mallocs).copied().unwrap_or(1);
                    // Mostly as planned, so that runs get far before they deviate.
                    let size = if odd == 0 && which.index(20) == 0 { planned + 1 } else { planned };
                    mallocs += 1;
                    if let Place::Offset(offset) = replay.malloc(size) {
                        prop_assert!(offset + size <= plan.size());
                        prop_assert!(live.iter().all(|(o, s)| offset + size <= *o || o + s <= offset));
                        live.push((offset, size));
                    }
                } else if !live.is_empty() {
                    let (offset, size) = live.swap_remove(which.index(live.len()));
                    prop_assert_eq!(replay.free(offset), Some(size));
                }
            }
            prop_assert_eq!(replay.in_use(), !live.is_empty());
        }

        /// A run as it was recorded never deviates.
        #[test]
        fn recorded_runs_go_as_planned((events, places) in runs()) {
            let plan = plan(&events, &places);
            let mut replay = Replay::new(plan);
            let mut at = Vec::new();
            for event in &events {
                match *event {
                    Event::Malloc(size) => at.push(replay.malloc(size)),
                    Event::Free(block) => if let Place::Offset(offset) = at[block as usize] {
                        prop_assert!(replay.free(offset).is_some());
                    },
                }
            }
            prop_assert_eq!(replay.deviation(), None);
            prop_assert!(!replay.in_use());
        }
    }
}
