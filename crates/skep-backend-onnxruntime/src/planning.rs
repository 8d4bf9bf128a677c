//! How this backend plans runs: when two runs allocate alike, and how long planning may take.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use skep_alloc::{
    AllocatorFactory, ArenaPool, InvalidAllocator, Recording, RunPlan, RunPlans, ShapeClass,
};
use skep_backend::OutputSlot;
use skep_config::{ExecutionOptions, MemoryPlanner};
use skep_layout::plan_recording;
use skep_planner::Budget;
use skep_tensor::TensorView;

/// Plans of usual models need fewer nodes and less time; the first run of a class with thousands of allocations waits at
/// most this long.
const PLANNING_NODES: u64 = 20_000;
const PLANNING_TIME: Duration = Duration::from_millis(50);

/// The plans of a model; `None` if ONNX Runtime places tensors by its own means.
///
/// # Errors
/// [`InvalidAllocator`] if the options name an allocator that does not exist.
pub(crate) fn plans(
    execution: &ExecutionOptions,
    pool: &Arc<ArenaPool>,
) -> Result<Option<RunPlans>, InvalidAllocator> {
    Ok(match execution.memory_planner {
        MemoryPlanner::Runtime => None,
        MemoryPlanner::Planned => Some(RunPlans::new(Some(plan), pool)),
        MemoryPlanner::Malloc => Some(RunPlans::new(None, pool)),
        MemoryPlanner::Allocator => {
            let name = execution.allocator.as_deref().unwrap_or_default();
            Some(RunPlans::by_allocators(
                AllocatorFactory::named(name)?,
                pool,
            ))
        }
    })
}

fn plan(recording: &Recording) -> Option<RunPlan> {
    let began = Instant::now();
    let budget = Budget {
        nodes: PLANNING_NODES,
        should_stop: &|| began.elapsed() > PLANNING_TIME,
    };
    plan_recording(recording, &budget)
}

/// The class of a run. `in_place`: prepared outputs are written where they lie.
pub(crate) fn run_class(
    inputs: &[TensorView<'_>],
    outputs: &mut [OutputSlot],
    in_place: bool,
) -> ShapeClass {
    let inputs = inputs.iter().flat_map(|input| {
        let dims = input.shape().dims();
        std::iter::once(dims.len()).chain(dims.iter().copied())
    });
    let outputs = outputs.iter_mut().map(|output| {
        let prepared = in_place && output.prepared_mut().is_some();
        2 * output.index() + usize::from(prepared)
    });
    ShapeClass::new(inputs.chain(outputs))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            run_class(&views, outputs, in_place)
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
