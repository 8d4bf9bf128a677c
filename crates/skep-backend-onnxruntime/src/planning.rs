//! The memory of runs: what a run of each shape class allocates, planned once and replayed by every instance.
//!
//! A *shape class* is what decides the sequence of a run's allocations: the shapes of its inputs, and which outputs it
//! fills, where. The first run of a class is recorded; its plan is made before it is answered, takes below a
//! millisecond for usual models, and is shared by all instances of the model. A run replays it in an arena that it
//! takes for its time: there are as many as runs at once, of all models.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use skep_alloc::{
    ALIGNMENT, Arena, ArenaNeed, ArenaPool, RecordedBlock, Recording, RunMode, RunPlan, RunReport,
};
use skep_backend::{OutputSlot, RunMemory};
use skep_config::MemoryPlanner;
use skep_planner::{Budget, Buffer, Problem, auto};
use skep_tensor::{RunBound, RunCharge, TensorView};
use smallvec::SmallVec;

use crate::{error, ffi::ApiError};

/// Plans of one model at most: those of its batch sizes, or of its usual shapes. One of a model with 300 allocations takes
/// 15 KB.
const MAX_CLASSES: usize = 64;

/// A class makes room for another one when it was not used in so many runs of its model: where shapes take turns that are
/// too many, some are planned and others are not, and at most 64 in so many runs are recorded, which takes longer.
const IDLE_RUNS: u64 = 1024;

/// Recordings of one class at most. Where its runs differ for the same shapes, as data decides, the last plan stays.
const MAX_RECORDINGS: u32 = 4;

/// A run that allocates more often is not planned: that would take longer than half a second, in which its request waits.
const MAX_BLOCKS: usize = 1 << 16;

/// Plans of usual models need fewer; a run that allocates thousands of times may wait for so long at its first time.
const PLANNING_NODES: u64 = 20_000;
const PLANNING_TIME: Duration = Duration::from_millis(50);

/// What decides the sequence of a run's allocations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ShapeClass(SmallVec<[usize; 16]>);

impl ShapeClass {
    /// The class of a run; `in_place`: whether prepared outputs are written where they lie.
    pub(crate) fn of(
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
        in_place: bool,
    ) -> Self {
        let mut key = SmallVec::new();
        for input in inputs {
            let dims = input.shape().dims();
            key.push(dims.len());
            key.extend_from_slice(dims);
        }
        for output in outputs {
            let prepared = in_place && output.prepared_mut().is_some();
            key.push(2 * output.index() + usize::from(prepared));
        }
        Self(key)
    }
}

/// What is known of a class.
#[derive(Debug)]
struct Class {
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
struct Classes {
    known: Vec<Class>,
    runs: u64,
}

impl Classes {
    fn find(&mut self, key: &ShapeClass) -> Option<&mut Class> {
        self.known.iter_mut().rfind(|class| class.key == *key)
    }

    /// The class of another run; `None` where there is no room for a new one.
    fn next_run(&mut self, key: &ShapeClass) -> Option<&mut Class> {
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
                self.known.push(Class {
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
pub(crate) struct Plans {
    classes: Mutex<Classes>,
    pool: Arc<ArenaPool>,
    /// What the largest plan needs.
    need: ArenaNeed,
    makes_plans: bool,
}

impl Plans {
    /// `None` where the runtime's own means place tensors.
    pub(crate) fn new(planner: MemoryPlanner, pool: &Arc<ArenaPool>) -> Option<Self> {
        (planner != MemoryPlanner::Runtime).then(|| Self {
            classes: Mutex::default(),
            need: pool.need(),
            pool: Arc::clone(pool),
            makes_plans: planner == MemoryPlanner::Planned,
        })
    }

    fn classes(&self) -> MutexGuard<'_, Classes> {
        // Nothing panics while it holds this lock.
        self.classes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan of a run's class, and whether this run is to be recorded.
    fn begin(&self, key: &ShapeClass) -> (Option<Arc<RunPlan>>, bool) {
        if !self.makes_plans {
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
        let plan = recording.and_then(plan).map(Arc::new);
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
pub(crate) struct Runs {
    figures: RunMemory,
    /// CPU time of the last run, where it was measured.
    cpu_time: Option<Duration>,
    /// Kept from run to run.
    charge: Option<RunCharge>,
}

impl Runs {
    /// The last run took so much CPU time, where that was measured.
    pub(crate) const fn took(&mut self, cpu_time: Option<Duration>) {
        self.cpu_time = cpu_time;
    }

    pub(crate) const fn cpu_time(&self) -> Option<Duration> {
        self.cpu_time
    }

    pub(crate) const fn figures(&self) -> RunMemory {
        self.figures
    }

    /// Carries out a run of this class, with its intermediate tensors where its plan has them, and as many as `bound` allows
    /// beside so many bytes; always the same bound.
    pub(crate) fn run<T>(
        &mut self,
        plans: &Plans,
        key: &ShapeClass,
        (bound, beside): (&RunBound, u64),
        run: impl FnOnce() -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let (plan, record) = plans.begin(key);
        let charge = self.charge.get_or_insert_with(|| bound.begin(0));
        charge.renew(beside);
        let (result, outcome) = match &plan {
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
            // The library knows of a lack of memory alone.
            Some(refused) => error::refused(refused),
            None => failure,
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

/// What is planned of a recorded block; `None` of one that outlives its run: it stays on the heap, or is the caller's.
#[must_use]
pub fn buffer(usage: &RecordedBlock) -> Option<Buffer> {
    Some(Buffer::new(usage.size, usage.start, usage.end?).aligned(ALIGNMENT))
}

/// The places of what a run allocated and freed; what outlives it stays on the heap. `None` if nothing is left, or too
/// much.
pub(crate) fn plan(recording: &Recording) -> Option<RunPlan> {
    let usages = recording.blocks();
    if usages.len() > MAX_BLOCKS {
        return None;
    }
    let problem = Problem::new(usages.iter().filter_map(buffer).collect()).ok()?;
    if problem.is_empty() {
        return None;
    }
    let began = Instant::now();
    let answer = auto(
        &problem,
        &Budget {
            nodes: PLANNING_NODES,
            should_stop: &|| began.elapsed() > PLANNING_TIME,
        },
    );
    let mut offsets = answer.plan.offsets.iter();
    let places: Vec<Option<u64>> = usages
        .iter()
        .map(|usage| usage.end.and_then(|_| offsets.next().copied()))
        .collect();
    RunPlan::new(recording, &places).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_alloc::BlockEvent;

    /// Reserved bytes are those of the process: tests that map memory take turns.
    static REGIONS: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        REGIONS.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn class(shape: usize) -> ShapeClass {
        ShapeClass(SmallVec::from_slice(&[1, shape]))
    }

    fn run(runs: &mut Runs, plans: &Plans, shape: usize) {
        let run = || {
            allocate(shape);
            Ok(())
        };
        runs.run(plans, &class(shape), (&RunBound::default(), 0), run)
            .expect("no error");
    }

    fn allocate(shape: usize) {
        let blocks = [64 * shape, 32 * shape].map(skep_alloc::malloc);
        #[allow(unsafe_code, reason = "freeing is unsafe")]
        for block in blocks {
            // SAFETY: the block was just handed out, and is not used again.
            unsafe { skep_alloc::free(block) };
        }
    }

    #[test]
    fn plans_are_bounded_and_what_they_needed_is_given_back() {
        let _alone = alone();
        let pool = Arc::new(ArenaPool::default());
        let plans = Plans::new(MemoryPlanner::Planned, &pool).expect("plans");
        let mut runs = Runs::default();
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
        assert!(skep_alloc::reserved_bytes() >= 960_000);

        // All of the others stay in use, and there is no room for one more.
        for shape in (1..MAX_CLASSES).cycle().take(IDLE_RUNS as usize - 1) {
            run(&mut runs, &plans, shape);
        }
        run(&mut runs, &plans, MAX_CLASSES);
        assert_eq!(runs.figures().unplanned_runs, 1);
        assert!(skep_alloc::reserved_bytes() >= 960_000);
        run(&mut runs, &plans, MAX_CLASSES);
        assert_eq!(
            (runs.figures().unplanned_runs, runs.figures().recorded_runs),
            (1, MAX_CLASSES as u64 + 1),
            "in the place of the large one"
        );
        assert_eq!(plans.classes().known.len(), MAX_CLASSES);
        assert_eq!(skep_alloc::reserved_bytes(), 0, "of the large one");
        run(&mut runs, &plans, large);
        assert_eq!(runs.figures().unplanned_runs, 2, "forgotten");
        run(&mut runs, &plans, 1);
        assert!(skep_alloc::reserved_bytes() > 0);
        drop((plans, runs));
        assert_eq!(skep_alloc::reserved_bytes(), 0);
    }

    #[test]
    fn runs_too_long_to_be_written_down_are_not_recorded_for_ever() {
        let plans = Plans::new(MemoryPlanner::Planned, &Arc::default()).expect("plans");
        for _ in 0..MAX_RECORDINGS {
            assert_eq!(plans.begin(&class(1)), (None, true));
            assert_eq!(plans.recorded(&class(1), None, None), None);
        }
        assert_eq!(plans.begin(&class(1)), (None, false));
    }

    #[test]
    fn runs_that_fail_are_not_counted() {
        let _alone = alone();
        let plans = Plans::new(MemoryPlanner::Planned, &Arc::default()).expect("plans");
        let mut runs = Runs::default();
        let fail = |runs: &mut Runs| {
            let failed = || Err::<(), _>(error::inconsistent("on purpose"));
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
        assert_eq!(runs.figures().planned_runs, 1, "nothing to record anew");
    }

    #[test]
    fn what_outlives_a_run_has_no_place_and_a_run_beyond_measure_no_plan() {
        let events = vec![
            BlockEvent::Malloc(100),
            BlockEvent::Malloc(50),
            BlockEvent::Free(0),
            BlockEvent::Malloc(10),
            BlockEvent::Free(2),
        ];
        let recording = Recording::new(events).expect("a recording");
        let plan = plan(&recording).expect("a plan");
        assert_eq!((plan.size(), plan.sum(), plan.block_count()), (100, 110, 3));
        let nothing = Recording::new(vec![BlockEvent::Malloc(100)]).expect("a recording");
        assert_eq!(super::plan(&nothing), None);
        let pair = |block| [BlockEvent::Malloc(1), BlockEvent::Free(block)];
        let many = (0..=MAX_BLOCKS as u32).flat_map(pair).collect();
        assert_eq!(
            super::plan(&Recording::new(many).expect("a recording")),
            None
        );
    }

    #[test]
    fn the_class_of_a_run_is_its_shapes_and_what_it_fills() {
        let data = [0_u8; 24];
        let of = |dims: [&[usize]; 2], outputs: &mut [OutputSlot], in_place| {
            let views = dims.map(|dims| {
                let shape = skep_types::Shape::new(dims).expect("a shape");
                let bytes = 4 * shape.element_count();
                (shape, bytes)
            });
            let views: Vec<TensorView<'_>> = views
                .iter()
                .map(|(shape, bytes)| {
                    let datatype = skep_types::DataType::Fp32;
                    TensorView::new(datatype, shape, &data[..*bytes]).expect("a view")
                })
                .collect();
            ShapeClass::of(&views, outputs, in_place)
        };
        let slots = || [OutputSlot::new(1)];
        let prepared = || {
            let shape = skep_types::Shape::new(&[2]).expect("a shape");
            [OutputSlot::prepared(1, skep_types::DataType::Fp32, shape).expect("memory")]
        };
        let base = of([&[2, 3], &[1]], &mut slots(), true);
        assert_eq!(of([&[2, 3], &[1]], &mut slots(), false), base);
        assert_ne!(of([&[3, 2], &[1]], &mut slots(), true), base);
        assert_ne!(of([&[2], &[3, 1]], &mut slots(), true), base);
        assert_ne!(of([&[2, 3], &[1]], &mut [OutputSlot::new(0)], true), base);
        assert_ne!(of([&[2, 3], &[1]], &mut prepared(), true), base);
        assert_eq!(of([&[2, 3], &[1]], &mut prepared(), false), base);
    }
}
