//! An arena: one run at a time.

use std::sync::Arc;

use skep_layout::{Recording, RunPlan};
use skep_tensor::{RunCharge, RunRefused};

use crate::{
    RunAllocator,
    region::Region,
    scope::{self, CurrentRun},
};

/// Where the blocks of a run come from.
#[derive(Clone, Copy, Debug)]
pub enum RunMode<'a> {
    /// The heap.
    Heap,
    /// Memory of this run alone, and the sequence is written down.
    Record,
    /// The places of a plan.
    Replay(&'a Arc<RunPlan>),
    /// An allocator.
    Allocator(&'a RunAllocator),
}

/// The report of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunReport {
    /// The most bytes that were in use at once, in the arena and on the heap.
    pub peak: u64,
    /// The sequence of a run with [`RunMode::Record`]; `None` if it had too many blocks.
    pub recording: Option<Recording>,
    /// Of a run with [`RunMode::Replay`]: the number of the first allocation that deviated from the plan.
    pub deviation: Option<usize>,
    /// How many blocks came from the heap because of that.
    pub unplanned: u64,
    /// Blocks of the arena are still in use: their memory stays theirs.
    pub outlived: bool,
    /// The first block that the run was refused; it got a null pointer.
    pub refused: Option<RunRefused>,
}

/// An arena: memory of planned runs that is kept from one to the next.
#[derive(Debug, Default)]
pub struct Arena {
    region: Option<Arc<Region>>,
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Arena {
    /// An arena without memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of address space that the arena holds; those that no run has written take no memory.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.region
            .as_ref()
            .map_or(0, |region| region.length() as u64)
    }

    /// Gives the memory back; the next planned run maps new memory.
    pub fn give_back(&mut self) {
        if let Some(region) = self.region.take() {
            region.retire();
        }
    }

    /// Runs `run` on this thread with [`crate::malloc`] serving it as `how` says, as far as `charge` allows. If there
    /// is no memory for the plan, the heap serves it, as a deviation at block 0. Runs do not nest: within one, another
    /// has none.
    pub fn run<T>(
        &mut self,
        how: RunMode<'_>,
        charge: &mut RunCharge,
        run: impl FnOnce() -> T,
    ) -> (T, RunReport) {
        let mut without_plan = None;
        let mut current = CurrentRun::new(std::mem::take(charge));
        match how {
            RunMode::Heap => {}
            RunMode::Record => current.recorded = Some(Box::default()),
            RunMode::Replay(plan) => {
                current.region = self.prepare(plan);
                without_plan = current.region.is_none().then_some(0);
            }
            RunMode::Allocator(own) => current.allocator = Some(Arc::clone(own.get())),
        }
        let region = current.region.clone();
        let installed = InstalledRun::enter(current);
        let result = run();
        let mut run = installed.leave();
        *charge = std::mem::take(&mut run.charge);
        let mut report = RunReport {
            peak: run.peak,
            recording: run.recorded.as_mut().and_then(|run| run.finish()),
            deviation: without_plan,
            unplanned: run.unplanned,
            outlived: false,
            refused: run.refused,
        };
        if let Some(region) = region {
            report.deviation = region.deviation();
            report.outlived = region.in_use();
            if report.outlived {
                self.give_back();
            }
        }
        (result, report)
    }

    /// The region, with a run by `plan` started in it.
    fn prepare(&mut self, plan: &Arc<RunPlan>) -> Option<Arc<Region>> {
        // It may be too small, and a run that ended by a panic may have left blocks in use.
        let fits = |region: &Arc<Region>| region.restart(plan);
        if !self.region.as_ref().is_some_and(fits) {
            self.give_back();
        }
        if self.region.is_none() {
            self.region = Region::planned(plan).ok();
        }
        self.region.clone()
    }
}

/// A run that is installed in the calling thread until this is dropped.
struct InstalledRun {
    outer: Option<CurrentRun>,
    left: bool,
}

impl InstalledRun {
    fn enter(run: CurrentRun) -> Self {
        Self {
            outer: scope::install(Some(run)),
            left: false,
        }
    }

    fn leave(mut self) -> CurrentRun {
        self.left = true;
        scope::install(self.outer.take()).unwrap_or_default()
    }
}

impl Drop for InstalledRun {
    fn drop(&mut self) {
        if !self.left {
            scope::install(self.outer.take());
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "freeing is unsafe")]
mod tests;
