//! How much a planner may spend, and on which threads: the caller decides both.

/// A limit in search nodes, and the caller's own word, such as a deadline.
#[derive(Clone, Copy)]
pub struct Budget<'a> {
    /// Decisions of exact searches and tries of local ones, all together. The same limit gives the same plan.
    pub nodes: u64,
    /// Asked every few microseconds to milliseconds of work; true ends it with what has been found.
    pub should_stop: &'a (dyn Fn() -> bool + Sync),
}

impl Budget<'_> {
    /// This many nodes, and no other limit.
    pub const fn nodes(nodes: u64) -> Self {
        Self {
            nodes,
            should_stop: &|| false,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        (self.should_stop)()
    }
}

/// Runs jobs that do not depend on each other.
pub trait JobRunner: Sync {
    /// Calls `job` once with each number below `jobs`, in any order and on any thread, and returns when all are done.
    fn run(&self, jobs: usize, job: &(dyn Fn(usize) + Sync));
}

/// One job after another, in the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct InTurn;

impl JobRunner for InTurn {
    fn run(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        (0..jobs).for_each(job);
    }
}

/// Steps of work between two questions to the caller: some tens of microseconds.
const STEPS: usize = 1 << 14;

/// Counts steps of work, such as entries of a list looked at, and asks the caller now and then.
pub(crate) struct WorkMeter<'a> {
    should_stop: &'a dyn Fn() -> bool,
    steps: usize,
    is_over: bool,
}

impl<'a> WorkMeter<'a> {
    pub(crate) fn new(should_stop: &'a dyn Fn() -> bool) -> Self {
        Self {
            should_stop,
            steps: 0,
            is_over: false,
        }
    }

    /// Notes `steps`. Returns whether the caller has ended the work, now or before.
    pub(crate) fn spend(&mut self, steps: usize) -> bool {
        self.steps += steps;
        if self.steps >= STEPS && !self.is_over {
            self.steps = 0;
            self.is_over = (self.should_stop)();
        }
        self.is_over
    }

    /// Whether the caller has ended the work.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_caller_says_when_it_is_over() {
        assert!(!Budget::nodes(0).is_over());
        let budget = Budget {
            nodes: u64::MAX,
            should_stop: &|| true,
        };
        assert!(budget.is_over());
    }

    #[test]
    fn the_caller_is_asked_once_for_so_many_steps() {
        let asked = Cell::new(0);
        let should_stop = || {
            asked.set(asked.get() + 1);
            asked.get() == 3
        };
        let mut meter = WorkMeter::new(&should_stop);
        for steps in 0..3 * STEPS - 1 {
            assert!(!meter.spend(1) && !meter.is_over(), "{steps}");
        }
        assert!(meter.spend(1) && meter.is_over());
        assert!(meter.spend(10 * STEPS), "what is over stays over");
        assert_eq!(asked.get(), 3);
    }
}
