//! Runs whose memory is planned: the first run of a shape class is recorded, later ones replay its plan.
//!
//! A *shape class* decides the sequence of a run's allocations: the shapes of its inputs, and which outputs it fills,
//! where. The first run of a class is recorded and planned before it is answered, which takes less than a millisecond for
//! usual models; all instances of the model share the plan. A run replays it in an arena that it borrows from a pool for as
//! long as it takes. The caller provides the planner: this crate carries plans out and does not make them.

use std::sync::{Arc, Mutex, MutexGuard};

use skep_host::lock;
use skep_layout::{Recording, RunPlan};
use skep_tensor::{RunBound, RunCharge, RunRefused};
use smallvec::SmallVec;

use skep_layout::allocator::ContractFault;

use crate::{
    AllocatorFactory, Arena, ArenaNeed, ArenaPool, RunAllocator, RunMode, RunReport,
    plugin::PluginError,
};

/// Plans of one model at most: those of its batch sizes, or of its usual shapes. One of a model with 300 allocations takes
/// 15 KB.
const MAX_CLASSES: usize = 64;

/// A class makes room for another one when it was not used in so many runs of its model: where shapes take turns that are
/// too many, some are planned and others are not, and at most 64 in so many runs are recorded, which takes longer.
const IDLE_RUNS: u64 = 1024;

/// Recordings of one class at most. Where its runs differ for the same shapes, as data decides, the last plan stays.
const MAX_RECORDINGS: u32 = 4;

/// Plans a recorded run; `None` if there is nothing to plan, or too much.
pub type RunPlanner = fn(&Recording) -> Option<RunPlan>;

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunFailure<E> {
    /// It was refused memory.
    Refused(RunRefused),
    /// Another reason, its own.
    Failed(E),
}

/// The intermediate tensors of an instance's runs: bytes of the last run, and how all runs went.
/// Runs that fail have no part in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunMemory {
    /// What the plan of the last run needs; 0 where it had none yet.
    pub planned_bytes: u64,
    /// The most that was in use at once.
    pub used_bytes: u64,
    /// What the plan needs less than a buffer for each of its tensors would.
    pub saved_bytes: u64,
    /// Runs that went as planned.
    pub planned_runs: u64,
    /// Runs that were recorded to be planned: the first of their shapes.
    pub recorded_runs: u64,
    /// Runs with a plan that they left: their other tensors came from the heap.
    pub deviated_runs: u64,
    /// Runs without a plan, and without the intention to make one.
    pub unplanned_runs: u64,
    /// The most that the instance's own allocator had from the system during the last run; 0 without one.
    pub reserved_bytes: u64,
}

/// What decides the sequence of a run's allocations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShapeClass(SmallVec<[usize; 16]>);

impl ShapeClass {
    /// The class of the runs with these numbers: whatever decides how they allocate.
    pub fn new(numbers: impl IntoIterator<Item = usize>) -> Self {
        Self(numbers.into_iter().collect())
    }
}

/// What is known of a class.
#[derive(Debug)]
struct KnownClass {
    key: ShapeClass,
    plan: Option<Arc<RunPlan>>,
    recordings: u32,
    /// A run left the plan: the next one is to be recorded.
    left: bool,
    /// The number of its last run among those of the model.
    used: u64,
}

/// The classes of a model, the one used last behind the others.
#[derive(Debug, Default)]
struct ShapeClasses {
    known: Vec<KnownClass>,
    runs: u64,
}

impl ShapeClasses {
    fn find(&mut self, key: &ShapeClass) -> Option<&mut KnownClass> {
        self.known.iter_mut().rfind(|class| class.key == *key)
    }

    /// The class of another run; `None` where there is no room for a new one.
    fn next_run(&mut self, key: &ShapeClass) -> Option<&mut KnownClass> {
        self.runs += 1;
        match self.known.iter().rposition(|class| class.key == *key) {
            Some(position) => self.known[position..].rotate_left(1),
            None => {
                if self.known.len() == MAX_CLASSES {
                    if self.runs - self.known[0].used <= IDLE_RUNS {
                        return None;
                    }
                    self.known.remove(0);
                }
                self.known.push(KnownClass {
                    key: key.clone(),
                    plan: None,
                    recordings: 0,
                    left: false,
                    used: 0,
                });
            }
        }
        let class = self.known.last_mut()?;
        class.used = self.runs;
        Some(class)
    }

    /// What the largest plan needs.
    fn largest(&self) -> u64 {
        let plans = self.known.iter().filter_map(|class| class.plan.as_ref());
        plans.map(|plan| plan.size()).max().unwrap_or(0)
    }
}

/// The plans of a model.
#[derive(Debug)]
pub struct RunPlans {
    classes: Mutex<ShapeClasses>,
    pool: Arc<ArenaPool>,
    /// What the largest plan needs.
    need: ArenaNeed,
    planner: Option<RunPlanner>,
    /// Makes the allocators of instances, for which nothing is planned then.
    factory: Option<AllocatorFactory>,
}

impl RunPlans {
    /// Plans that `planner` makes of recordings, replayed in arenas of `pool`. Without a planner, every run uses the heap.
    #[must_use]
    pub fn new(planner: Option<RunPlanner>, pool: &Arc<ArenaPool>) -> Self {
        Self {
            classes: Mutex::default(),
            need: pool.need(),
            pool: Arc::clone(pool),
            planner,
            factory: None,
        }
    }

    /// No plans: each instance has an allocator of its own.
    #[must_use]
    pub fn by_allocators(factory: AllocatorFactory, pool: &Arc<ArenaPool>) -> Self {
        Self {
            factory: Some(factory),
            ..Self::new(None, pool)
        }
    }

    /// The runs of another instance, before its first one.
    ///
    /// # Errors
    /// [`PluginError`] if the library of its allocator makes none.
    pub fn instance(&self) -> Result<PlannedRuns, PluginError> {
        let allocator = self.factory.as_ref().map(AllocatorFactory::build);
        Ok(PlannedRuns {
            allocator: allocator.transpose()?.map(RunAllocator::new),
            ..PlannedRuns::default()
        })
    }

    /// The name of the instances' allocators, if they have some.
    #[must_use]
    pub fn allocator(&self) -> Option<&str> {
        self.factory.as_ref().map(AllocatorFactory::name)
    }

    fn classes(&self) -> MutexGuard<'_, ShapeClasses> {
        lock(&self.classes)
    }

    /// The plan of a run's class, and whether this run is to be recorded.
    fn begin(&self, key: &ShapeClass) -> (Option<Arc<RunPlan>>, bool) {
        if self.planner.is_none() {
            return (None, false);
        }
        let mut classes = self.classes();
        let Some(class) = classes.next_run(key) else {
            return (None, false);
        };
        let wanted = class.plan.is_none() || std::mem::take(&mut class.left);
        let record = wanted && class.recordings < MAX_RECORDINGS;
        let plan = class.plan.clone();
        if record {
            // A new class, which is always recorded, may have taken the place of the one with the largest plan.
            self.need.set(classes.largest());
        }
        (plan, record)
    }

    /// Plans what was recorded by a run that had the plan `before`, `None` where that was too long; the plan from now on.
    fn recorded(
        &self,
        key: &ShapeClass,
        recording: Option<&Recording>,
        before: Option<&Arc<RunPlan>>,
    ) -> Option<Arc<RunPlan>> {
        // Runs that began together are all recorded; the first one's plan is as good as the others'.
        if before.is_none()
            && let Some(plan) = self
                .classes()
                .find(key)
                .and_then(|class| class.plan.clone())
        {
            return Some(plan);
        }
        let plan = recording.zip(self.planner);
        let plan = plan.and_then(|(recording, planner)| planner(recording));
        let plan = plan.map(Arc::new);
        let mut classes = self.classes();
        // It may have been forgotten meanwhile.
        let class = classes.find(key)?;
        class.recordings += 1;
        class.plan = plan.or_else(|| class.plan.take());
        let plan = class.plan.clone();
        self.need.set(classes.largest());
        plan
    }

    /// A run left the plan.
    fn left(&self, key: &ShapeClass) {
        if let Some(class) = self.classes().find(key) {
            class.left = true;
        }
    }
}

/// The runs of an instance.
#[derive(Debug, Default)]
pub struct PlannedRuns {
    figures: RunMemory,
    /// Kept from run to run.
    charge: Option<RunCharge>,
    allocator: Option<RunAllocator>,
    /// How the allocator broke its contract, until somebody asks; and whether it did.
    fault: Option<ContractFault>,
    is_broken: bool,
}

impl PlannedRuns {
    /// How its runs went.
    #[must_use]
    pub const fn figures(&self) -> RunMemory {
        self.figures
    }

    /// How the instance's allocator broke its contract, told once. The heap serves all runs from then on.
    pub const fn take_fault(&mut self) -> Option<ContractFault> {
        self.fault.take()
    }

    /// Carries out a run of this class: its intermediate tensors lie where the class's plan has them. `bound`, always the
    /// same for one instance, limits them together with `beside` further bytes.
    ///
    /// # Errors
    /// [`RunFailure::Refused`] if the run failed after it was refused memory, otherwise [`RunFailure::Failed`] with `run`'s
    /// own error.
    pub fn run<T, E>(
        &mut self,
        plans: &RunPlans,
        key: &ShapeClass,
        (bound, beside): (&RunBound, u64),
        run: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, RunFailure<E>> {
        let (plan, record) = plans.begin(key);
        let charge = self.charge.get_or_insert_with(|| bound.begin(0));
        charge.renew(beside);
        let (result, outcome) = match &plan {
            _ if let Some(own) = &self.allocator => {
                let ran = Arena::new().run(RunMode::Allocator(own), charge, run);
                let (peak, fault) = own.end_run();
                self.figures.reserved_bytes = peak;
                if fault.is_some() && !std::mem::replace(&mut self.is_broken, true) {
                    self.fault = fault;
                }
                ran
            }
            _ if record => Arena::new().run(RunMode::Record, charge, run),
            None => Arena::new().run(RunMode::Heap, charge, run),
            Some(plan) => {
                let mut arena = plans.pool.take(plan.size());
                let ran = arena.run(RunMode::Replay(plan), charge, run);
                plans.pool.put(arena);
                ran
            }
        };
        charge.renew(0);
        // What a run allocated that ended early is neither its class's sequence nor a deviation from it.
        let filled = result.map_err(|failure| match outcome.refused {
            // The runtime only saw a null pointer.
            Some(refused) => RunFailure::Refused(refused),
            None => RunFailure::Failed(failure),
        })?;
        let plan = if record {
            plans.recorded(key, outcome.recording.as_ref(), plan.as_ref())
        } else {
            if outcome.deviation.is_some() || outcome.outlived {
                plans.left(key);
            }
            plan
        };
        self.count(&outcome, plan.as_deref(), record);
        Ok(filled)
    }

    fn count(&mut self, outcome: &RunReport, plan: Option<&RunPlan>, recorded: bool) {
        let figures = &mut self.figures;
        figures.used_bytes = outcome.peak;
        figures.planned_bytes = plan.map_or(0, RunPlan::size);
        figures.saved_bytes = plan.map_or(0, |plan| plan.sum().saturating_sub(plan.size()));
        let runs = match plan {
            _ if recorded => &mut figures.recorded_runs,
            None => &mut figures.unplanned_runs,
            Some(_) if outcome.deviation.is_some() => &mut figures.deviated_runs,
            Some(_) => &mut figures.planned_runs,
        };
        *runs += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_layout::plan_recording;
    use skep_planner::Budget;

    /// Reserved bytes are those of the process: tests that map memory take turns.
    static REGIONS: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        lock(&REGIONS)
    }

    fn plan(recording: &Recording) -> Option<RunPlan> {
        plan_recording(recording, &Budget::nodes(10_000))
    }

    fn class(shape: usize) -> ShapeClass {
        ShapeClass::new([1, shape])
    }

    fn run(runs: &mut PlannedRuns, plans: &RunPlans, shape: usize) {
        let run = || {
            allocate(shape);
            Ok::<_, ()>(())
        };
        runs.run(plans, &class(shape), (&RunBound::default(), 0), run)
            .expect("no error");
    }

    #[test]
    fn a_class_that_left_its_plan_is_recorded_again() {
        let _alone = alone();
        let plans = RunPlans::new(Some(plan), &Arc::default());
        let mut runs = PlannedRuns::default();
        let mut counted = |allocated: usize| {
            let run = || {
                allocate(allocated);
                Ok::<_, ()>(())
            };
            runs.run(&plans, &class(10), (&RunBound::default(), 0), run)
                .expect("no error");
            let figures = runs.figures();
            [
                figures.recorded_runs,
                figures.planned_runs,
                figures.deviated_runs,
            ]
        };
        assert_eq!(counted(10), [1, 0, 0]);
        assert_eq!(counted(10), [1, 1, 0]);
        assert_eq!(counted(30), [1, 1, 1]);
        assert_eq!(
            counted(30),
            [2, 1, 1],
            "recorded, since the last run left the plan"
        );
        assert_eq!(counted(30), [2, 2, 1], "planned as it was recorded last");
    }

    fn allocate(shape: usize) {
        let blocks = [64 * shape, 32 * shape].map(crate::malloc);
        #[allow(unsafe_code, reason = "freeing is unsafe")]
        for block in blocks {
            // SAFETY: the block was just handed out, and is not used again.
            unsafe { crate::free(block) };
        }
    }

    #[test]
    fn plans_are_bounded_and_what_they_needed_is_given_back() {
        let _alone = alone();
        let pool = Arc::new(ArenaPool::default());
        let plans = RunPlans::new(Some(plan), &pool);
        let mut runs = PlannedRuns::default();
        let large = 10_000;
        for shape in (1..MAX_CLASSES).chain([large]) {
            run(&mut runs, &plans, shape);
        }
        run(&mut runs, &plans, large);
        let first = RunMemory {
            planned_bytes: 960_000,
            used_bytes: 960_000,
            recorded_runs: MAX_CLASSES as u64,
            planned_runs: 1,
            ..RunMemory::default()
        };
        assert_eq!(runs.figures(), first);
        assert!(crate::reserved_bytes() >= 960_000);

        // All of the others stay in use, and there is no room for one more.
        for shape in (1..MAX_CLASSES).cycle().take(IDLE_RUNS as usize - 1) {
            run(&mut runs, &plans, shape);
        }
        run(&mut runs, &plans, MAX_CLASSES);
        assert_eq!(runs.figures().unplanned_runs, 1);
        assert!(crate::reserved_bytes() >= 960_000);
        run(&mut runs, &plans, MAX_CLASSES);
        assert_eq!(
            (runs.figures().unplanned_runs, runs.figures().recorded_runs),
            (1, MAX_CLASSES as u64 + 1),
            "in the place of the large one"
        );
        assert_eq!(plans.classes().known.len(), MAX_CLASSES);
        assert_eq!(crate::reserved_bytes(), 0, "of the large one");
        run(&mut runs, &plans, large);
        assert_eq!(runs.figures().unplanned_runs, 2, "forgotten");
        run(&mut runs, &plans, 1);
        assert!(crate::reserved_bytes() > 0);
        drop((plans, runs));
        assert_eq!(crate::reserved_bytes(), 0);
    }

    #[test]
    fn runs_too_long_to_be_written_down_are_not_recorded_for_ever() {
        let plans = RunPlans::new(Some(plan), &Arc::default());
        for _ in 0..MAX_RECORDINGS {
            assert_eq!(plans.begin(&class(1)), (None, true));
            assert_eq!(plans.recorded(&class(1), None, None), None);
        }
        assert_eq!(plans.begin(&class(1)), (None, false));
    }

    #[test]
    fn runs_that_fail_are_not_counted() {
        let _alone = alone();
        let plans = RunPlans::new(Some(plan), &Arc::default());
        let mut runs = PlannedRuns::default();
        let fail = |runs: &mut PlannedRuns| {
            let failed = || Err::<(), _>("on purpose");
            runs.run(&plans, &class(1), (&RunBound::default(), 0), failed)
                .is_err()
        };
        assert!(fail(&mut runs));
        assert_eq!(runs.figures(), RunMemory::default());
        run(&mut runs, &plans, 1);
        let recorded = runs.figures();
        assert_eq!((recorded.recorded_runs, recorded.used_bytes), (1, 96));
        assert!(fail(&mut runs));
        assert_eq!(runs.figures(), recorded, "it deviated as it failed");
        run(&mut runs, &plans, 1);
        assert_eq!(runs.figures().planned_runs, 1, "nothing to record again");
    }
}
