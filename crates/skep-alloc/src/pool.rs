//! Arenas for runs in flight: as many as run at once, however many models and instances take turns in them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use skep_host::lock;

use crate::{Arena, OVERRUN};

/// Idle arenas of a process.
///
/// ```text
/// needs  |######### model a, 40 MiB      a run of a or b takes the smallest idle arena that it fits into,
///        |###       model b, 12 MiB      or the largest there is, which grows; it puts it back when it ends
/// arenas |######### |#########           two runs at once: two arenas, however many instances there are
/// ```
#[derive(Debug, Default)]
pub struct ArenaPool {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Arena>,
    /// How many models need this many bytes for their largest plan.
    needs: BTreeMap<u64, usize>,
}

/// What one model needs for the largest of its plans; idle arenas that are larger than all needs are given back.
#[derive(Debug)]
pub struct ArenaNeed {
    pool: Arc<ArenaPool>,
    bytes: Mutex<u64>,
}

/// How much larger than its plan an arena may be: a page of any usual size.
const LARGEST_PAGE: u64 = 1 << 16;

impl ArenaPool {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// An arena for a run that needs this many bytes: the smallest idle one that is large enough, else the largest,
    /// which will grow, else a new one.
    #[must_use]
    pub fn take(&self, bytes: u64) -> Arena {
        let mut state = self.state();
        let idle = state.idle.iter().enumerate();
        let by_size = idle.map(|(position, arena)| (arena.reserved(), position));
        let fitting = by_size
            .clone()
            .filter(|(reserved, _)| *reserved >= bytes)
            .min();
        match fitting.or_else(|| by_size.max()) {
            Some((_, position)) => state.idle.swap_remove(position),
            None => Arena::new(),
        }
    }

    /// Keeps an arena for the next run, unless it is larger than any model needs.
    pub fn put(&self, arena: Arena) {
        let mut state = self.state();
        if arena.reserved() > 0 && arena.reserved() <= state.bound() {
            state.idle.push(arena);
        }
    }

    /// A model that has no plan yet.
    #[must_use]
    pub fn need(self: &Arc<Self>) -> ArenaNeed {
        ArenaNeed {
            pool: Arc::clone(self),
            bytes: Mutex::new(0),
        }
    }
}

impl State {
    fn bound(&self) -> u64 {
        let largest = self.needs.last_key_value();
        largest.map_or(0, |(bytes, _)| {
            bytes.saturating_add(OVERRUN).next_multiple_of(LARGEST_PAGE)
        })
    }

    fn count(&mut self, from: u64, to: u64) {
        if let Some(count) = self.needs.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                self.needs.remove(&from);
            }
        }
        if to > 0 {
            *self.needs.entry(to).or_default() += 1;
        }
        let bound = self.bound();
        self.idle.retain(|arena| arena.reserved() <= bound);
    }
}

impl ArenaNeed {
    /// The largest plan needs `bytes` bytes from now on.
    pub fn set(&self, bytes: u64) {
        let mut known = lock(&self.bytes);
        let before = std::mem::replace(&mut *known, bytes);
        if before != bytes {
            self.pool.state().count(before, bytes);
        }
    }
}

impl Drop for ArenaNeed {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use skep_tensor::RunBound;

    use super::*;
    use crate::{BlockEvent, Recording, RunMode, RunPlan};

    /// An arena that a run by a plan of so many bytes made.
    fn grown(mut arena: Arena, bytes: u64) -> Arena {
        let recording = Recording::new(vec![BlockEvent::Malloc(bytes), BlockEvent::Free(0)]);
        let recording = recording.expect("a recording");
        let plan = Arc::new(RunPlan::new(&recording, &[Some(0)]).expect("a plan"));
        arena.run(
            RunMode::Replay(&plan),
            &mut RunBound::default().begin(0),
            || (),
        );
        arena
    }

    const KIB_64: u64 = 64 << 10;

    /// The largest plan that an arena of so many times 64 KiB has room for.
    fn plan(units: u64) -> u64 {
        units * KIB_64 - OVERRUN
    }

    #[test]
    fn runs_take_the_smallest_arena_that_fits_and_else_the_largest() {
        let pool = Arc::new(ArenaPool::default());
        let need = pool.need();
        need.set(plan(10));
        for units in [2, 9, 4] {
            pool.put(grown(Arena::new(), plan(units)));
        }
        let take = |units: u64| pool.take(plan(units));
        assert_eq!(take(3).reserved(), 4 * KIB_64);
        assert_eq!(take(10).reserved(), 9 * KIB_64);
        assert_eq!(take(10).reserved(), 2 * KIB_64);
        assert_eq!(take(1).reserved(), 0, "none is left");
        pool.put(Arena::new());
        assert!(
            pool.state().idle.is_empty(),
            "an empty one is not worth keeping"
        );
    }

    #[test]
    fn an_arena_of_the_largest_plan_is_kept() {
        let pool = Arc::new(ArenaPool::default());
        let need = pool.need();
        for bytes in [1, plan(3), 3 * KIB_64] {
            need.set(bytes);
            pool.put(grown(Arena::new(), bytes));
            assert_ne!(pool.take(bytes).reserved(), 0, "{bytes}");
        }
    }

    #[test]
    fn arenas_larger_than_any_need_are_given_back() {
        let pool = Arc::new(ArenaPool::default());
        let (a, b) = (pool.need(), pool.need());
        a.set(plan(4));
        b.set(plan(2));
        for units in [4, 2, 5] {
            pool.put(grown(Arena::new(), plan(units)));
        }
        let idle = || {
            let mut sizes: Vec<u64> = pool.state().idle.iter().map(Arena::reserved).collect();
            sizes.sort_unstable();
            sizes
        };
        assert_eq!(
            idle(),
            [2 * KIB_64, 4 * KIB_64],
            "the third is larger than any plan"
        );
        drop(a);
        assert_eq!(idle(), [2 * KIB_64]);
        b.set(plan(1));
        assert_eq!(idle(), [0; 0]);
        drop(b);
        assert_eq!(pool.state().needs, BTreeMap::new());
    }
}
