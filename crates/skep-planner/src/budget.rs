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
