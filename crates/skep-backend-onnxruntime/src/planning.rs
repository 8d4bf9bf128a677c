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

use skep_alloc::{ALIGNMENT, Arena, Need, Outcome, Pool, Recording, RunPlan, Use};
use skep_backend::{OutputSlot, RunMemory};
use skep_config::MemoryPlanner;
use skep_planner::{Budget, Buffer, Problem, auto};
use skep_tensor::TensorView;
use smallvec::SmallVec;

/// Plans of one model at most: those of its batch sizes, or of its most recent shapes. One of a model with 300
/// allocations takes 15 KB.
const MAX_CLASSES: usize = 64;

/// Recordings of one class at most. Where its runs differ for the same shapes, as data decides, the last plan stays.
const MAX_RECORDINGS: u32 = 4;

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
#[derive(Debug, Default)]
struct Class {
    plan: Option<Arc<RunPlan>>,
    recordings: u32,
    /// A run left the plan: the next one is to be recorded.
    left: bool,
}

/// The plans of a model, the one used last behind the others.
#[derive(Debug)]
pub(crate) struct Plans {
    classes: Mutex<Vec<(ShapeClass, Arc<Mutex<Class>>)>>,
    pool: Arc<Pool>,
    /// What the largest plan needs.
    need: Need,
    makes_plans: bool,
}

impl Plans {
    /// `None` where the runtime's own means place tensors.
    pub(crate) fn new(planner: MemoryPlanner, pool: &Arc<Pool>) -> Option<Self> {
        (planner != MemoryPlanner::Runtime).then(|| Self {
            classes: Mutex::default(),
            need: pool.need(),
            pool: Arc::clone(pool),
            makes_plans: planner == MemoryPlanner::Planned,
        })
    }

    fn class(&self, key: &ShapeClass) -> Arc<Mutex<Class>> {
        let mut classes = lock(&self.classes);
        let known = classes.iter().position(|(other, _)| other == key);
        let found = match known {
            Some(position) => classes.remove(position),
            None => {
                if classes.len() == MAX_CLASSES {
                    classes.remove(0);
                    self.need.set(largest(&classes));
                }
                (key.clone(), Arc::default())
            }
        };
        classes.push(found.clone());
        found.1
    }

    /// The class's plan, and whether this run is to be recorded.
    fn begin(&self, class: &Mutex<Class>) -> (Option<Arc<RunPlan>>, bool) {
        let mut class = lock(class);
        let wanted = class.plan.is_none() || std::mem::take(&mut class.left);
        let record = self.makes_plans && wanted && class.recordings < MAX_RECORDINGS;
        (class.plan.clone(), record)
    }

    /// Plans what was recorded by a run that had the plan `before`; the plan from now on.
    fn recorded(
        &self,
        class: &Mutex<Class>,
        recording: &Recording,
        before: Option<Arc<RunPlan>>,
    ) -> Option<Arc<RunPlan>> {
        // Runs that began together are all recorded; the first one's plan is as good as the others'.
        if before.is_none()
            && let Some(plan) = &lock(class).plan
        {
            return Some(Arc::clone(plan));
        }
        let plan = plan(recording).map(Arc::new);
        let plan = {
            let mut class = lock(class);
            class.recordings += 1;
            class.plan = plan.or_else(|| class.plan.take());
            class.plan.clone()
        };
        self.need.set(largest(&lock(&self.classes)));
        plan
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the largest plan of these needs.
fn largest(classes: &[(ShapeClass, Arc<Mutex<Class>>)]) -> u64 {
    let size = |class: &Mutex<Class>| lock(class).plan.as_ref().map(|plan| plan.size());
    let sizes = classes.iter().filter_map(|(_, class)| size(class));
    sizes.max().unwrap_or(0)
}

/// The runs of an instance.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    last: Option<(ShapeClass, Arc<Mutex<Class>>)>,
    figures: RunMemory,
}

impl Runs {
    pub(crate) const fn figures(&self) -> RunMemory {
        self.figures
    }

    /// Carries out a run of this class, with its intermediate tensors where its plan has them.
    pub(crate) fn run<T, E>(
        &mut self,
        plans: &Plans,
        key: ShapeClass,
        run: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let class = match &self.last {
            Some((last, class)) if *last == key => Arc::clone(class),
            _ => {
                let class = plans.class(&key);
                self.last = Some((key, Arc::clone(&class)));
                class
            }
        };
        let (plan, record) = plans.begin(&class);
        let (result, mut outcome) = match &plan {
            _ if record => Arena::new().run(Use::Record, run),
            None => Arena::new().run(Use::Heap, run),
            Some(plan) => {
                let mut arena = plans.pool.take(plan.size());
                let ran = arena.run(Use::Replay(plan), run);
                plans.pool.put(arena);
                ran
            }
        };
        let plan = match outcome.recording.take() {
            // The sequence of a run that failed is not that of its class.
            _ if result.is_err() => plan,
            Some(recording) => plans.recorded(&class, &recording, plan),
            None => {
                lock(&class).left |= outcome.deviation.is_some() || outcome.outlived;
                plan
            }
        };
        self.count(&outcome, plan.as_deref(), record);
        result
    }

    fn count(&mut self, outcome: &Outcome, plan: Option<&RunPlan>, recorded: bool) {
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

/// The places of what a run allocated and freed; what outlives it stays on the heap. `None` if nothing is left, or too much
/// to count.
pub(crate) fn plan(recording: &Recording) -> Option<RunPlan> {
    let usages = recording.usages();
    let freed = |usage: &&skep_alloc::Usage| usage.end.is_some();
    let buffers = usages.iter().filter(freed).map(|usage| {
        let end = usage.end.unwrap_or(usage.start);
        Buffer::new(usage.size, usage.start, end).aligned(ALIGNMENT)
    });
    let problem = Problem::new(buffers.collect()).ok()?;
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
    use skep_alloc::Event;

    use super::*;

    fn class(shape: usize) -> ShapeClass {
        ShapeClass(SmallVec::from_slice(&[1, shape]))
    }

    fn run(runs: &mut Runs, plans: &Plans, shape: usize) {
        let sizes = [64 * shape, 32 * shape];
        let run = || -> Result<(), ()> {
            let blocks = sizes.map(skep_alloc::malloc);
            #[allow(unsafe_code, reason = "freeing is unsafe")]
            for block in blocks {
                // SAFETY: the block was just handed out, and is not used again.
                unsafe { skep_alloc::free(block) };
            }
            Ok(())
        };
        runs.run(plans, class(shape), run).expect("no error");
    }

    #[test]
    fn plans_are_bounded_and_what_they_needed_is_given_back() {
        let pool = Arc::new(Pool::default());
        let plans = Plans::new(MemoryPlanner::Planned, &pool).expect("plans");
        let mut runs = Runs::default();
        for _ in 0..2 {
            run(&mut runs, &plans, 10_000);
        }
        let figures = runs.figures();
        assert_eq!((figures.planned_bytes, figures.recorded_runs), (960_000, 1));
        assert!(skep_alloc::reserved_bytes() >= 960_000);
        for shape in 1..=MAX_CLASSES {
            run(&mut runs, &plans, shape);
            run(&mut runs, &plans, shape);
        }
        assert_eq!(lock(&plans.classes).len(), MAX_CLASSES);
        assert!(skep_alloc::reserved_bytes() <= 65_536);
        run(&mut runs, &plans, MAX_CLASSES);
        assert_eq!(
            runs.figures().recorded_runs,
            1 + MAX_CLASSES as u64,
            "known"
        );
        run(&mut runs, &plans, 10_000);
        assert_eq!(
            runs.figures().recorded_runs,
            2 + MAX_CLASSES as u64,
            "forgotten"
        );
        drop((plans, runs));
        assert_eq!(skep_alloc::reserved_bytes(), 0);
    }

    #[test]
    fn what_outlives_a_run_has_no_place() {
        let events = vec![
            Event::Malloc(100),
            Event::Malloc(50),
            Event::Free(0),
            Event::Malloc(10),
            Event::Free(2),
        ];
        let recording = Recording::new(events).expect("a recording");
        let plan = plan(&recording).expect("a plan");
        assert_eq!((plan.size(), plan.sum(), plan.block_count()), (100, 110, 3));
        let nothing = Recording::new(vec![Event::Malloc(100)]).expect("a recording");
        assert_eq!(super::plan(&nothing), None);
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
            [OutputSlot::prepared(1, skep_types::DataType::Fp32, shape)]
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
