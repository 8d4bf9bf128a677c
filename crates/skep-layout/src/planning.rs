//! From the recording of a run to the plan that later runs replay.

use skep_planner::{Budget, Buffer, Problem, auto};

use crate::{ALIGNMENT, RecordedBlock, Recording, RunPlan};

/// A run that allocates more often is not planned: planning would take longer than half a second, in which its request
/// waits.
const MAX_BLOCKS: usize = 1 << 16;

/// The buffer to plan for a recorded block; `None` for a block that outlives its run: it stays on the heap, or belongs to
/// the caller.
#[must_use]
pub fn recorded_buffer(block: &RecordedBlock) -> Option<Buffer> {
    Some(Buffer::new(block.size, block.start, block.end?).aligned(ALIGNMENT))
}

/// Plans the blocks that a run allocated and freed; blocks that outlive it stay on the heap. `None` if there is nothing to
/// plan, or too much.
#[must_use]
pub fn plan_recording(recording: &Recording, budget: &Budget<'_>) -> Option<RunPlan> {
    let blocks = recording.blocks();
    if blocks.len() > MAX_BLOCKS {
        return None;
    }
    let problem = Problem::new(blocks.iter().filter_map(recorded_buffer).collect()).ok()?;
    if problem.is_empty() {
        return None;
    }
    let planned = auto(&problem, budget);
    let mut offsets = planned.plan.offsets.iter();
    let places: Vec<Option<u64>> = blocks
        .iter()
        .map(|block| block.end.and_then(|_| offsets.next().copied()))
        .collect();
    RunPlan::new(recording, &places).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockEvent;

    fn planned(events: Vec<BlockEvent>) -> Option<RunPlan> {
        let recording = Recording::new(events).expect("a recording");
        plan_recording(&recording, &Budget::nodes(10_000))
    }

    #[test]
    fn what_outlives_a_run_has_no_place_and_a_run_beyond_measure_no_plan() {
        let plan = planned(vec![
            BlockEvent::Malloc(100),
            BlockEvent::Malloc(50),
            BlockEvent::Free(0),
            BlockEvent::Malloc(10),
            BlockEvent::Free(2),
        ]);
        let plan = plan.expect("a plan");
        assert_eq!((plan.size(), plan.sum(), plan.block_count()), (100, 110, 3));
        assert_eq!(planned(vec![BlockEvent::Malloc(100)]), None);
        let pair = |block| [BlockEvent::Malloc(1), BlockEvent::Free(block)];
        let most = planned((0..MAX_BLOCKS as u32).flat_map(pair).collect());
        assert_eq!(most.map(|plan| plan.size()), Some(1));
        assert_eq!(
            planned((0..=MAX_BLOCKS as u32).flat_map(pair).collect()),
            None
        );
    }
}
