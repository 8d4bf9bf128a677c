//! The live range of every block of a trace, and the least memory that they need if all is known beforehand.

use std::sync::Arc;

use skep_layout::{RecordedBlock, Recording, RunPlan, recorded_buffer};
use skep_planner::{BoundedPlan, Budget, JobRunner, Problem, auto_with};
use skep_trace::TraceEvent;

/// Sizes and live ranges, as they come.
#[derive(Clone, Debug, Default)]
pub struct Lifetimes {
    blocks: Vec<RecordedBlock>,
    steps: u64,
    live: u64,
    peak: u64,
}

/// Blocks of a trace whose optimum is computed at most: planning takes minutes beyond.
const MAX_BLOCKS: usize = 1 << 18;

/// The least that any allocator could have reserved.
#[derive(Clone, Debug)]
pub struct OfflineOptimum {
    /// Bytes of the best plan that was found.
    pub bytes: u64,
    /// What no plan can do without.
    pub lower_bound: u64,
    /// The plan, by which a run can be replayed.
    pub plan: Option<Arc<RunPlan>>,
}

impl Lifetimes {
    /// Takes an event in. Blocks of 0 bytes take no memory.
    pub fn take(&mut self, event: TraceEvent) {
        let step = self.steps;
        self.steps += 1;
        match event {
            TraceEvent::Malloc { block, bytes, .. } => {
                debug_assert_eq!(block.0 as usize, self.blocks.len());
                self.blocks.push(RecordedBlock {
                    size: bytes,
                    start: step,
                    end: None,
                });
                self.live = self.live.saturating_add(bytes);
                self.peak = self.peak.max(self.live);
            }
            TraceEvent::Free { block } => {
                if let Some(found) = self.blocks.get_mut(block.0 as usize) {
                    found.end = Some(step);
                    self.live = self.live.saturating_sub(found.size);
                }
            }
        }
    }

    /// The most bytes that were live at once.
    #[must_use]
    pub const fn peak(&self) -> u64 {
        self.peak
    }

    /// Events so far.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.steps
    }

    /// Blocks so far.
    #[must_use]
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Plans all blocks; `None` for a trace without blocks, or with too many or too large ones.
    #[must_use]
    pub fn optimum(&self, budget: &Budget<'_>, workers: &dyn JobRunner) -> Option<OfflineOptimum> {
        if self.blocks.len() > MAX_BLOCKS {
            return None;
        }
        // Blocks of 0 bytes take no memory; what is left is freed at the end.
        let sized = self.blocks.iter().filter(|block| block.size > 0);
        let blocks: Vec<RecordedBlock> = sized
            .map(|block| RecordedBlock {
                end: Some(block.end.unwrap_or(self.steps)),
                ..*block
            })
            .collect();
        let buffers = blocks.iter().filter_map(recorded_buffer);
        let problem = Problem::new(buffers.collect()).ok()?;
        if problem.is_empty() {
            return None;
        }
        let BoundedPlan {
            plan, lower_bound, ..
        } = auto_with(&problem, budget, workers);
        Some(OfflineOptimum {
            bytes: plan.size,
            lower_bound,
            plan: run_plan(&blocks, &plan.offsets),
        })
    }
}

/// The plan as an allocator follows it.
fn run_plan(blocks: &[RecordedBlock], offsets: &[u64]) -> Option<Arc<RunPlan>> {
    let recording = Recording::of_blocks(blocks)?;
    let places: Vec<Option<u64>> = offsets.iter().copied().map(Some).collect();
    RunPlan::new(&recording, &places).ok().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use skep_planner::InTurn;
    use skep_trace::BlockId;

    use super::*;

    #[test]
    fn the_optimum_knows_what_comes() {
        let mut lifetimes = Lifetimes::default();
        let malloc = |block, bytes| TraceEvent::Malloc {
            block: BlockId(block),
            bytes,
            stream: 0,
        };
        let free = |block| TraceEvent::Free {
            block: BlockId(block),
        };
        for event in [
            malloc(0, 640),
            malloc(1, 64),
            malloc(2, 0),
            free(0),
            malloc(3, 1280),
            free(1),
            free(3),
            malloc(4, 10),
        ] {
            lifetimes.take(event);
        }
        assert_eq!(
            (
                lifetimes.peak(),
                lifetimes.block_count(),
                lifetimes.events()
            ),
            (1344, 5, 8)
        );
        let optimum = lifetimes
            .optimum(&Budget::nodes(1000), &InTurn)
            .expect("a plan");
        assert_eq!((optimum.bytes, optimum.lower_bound), (1344, 1344));
        assert_eq!(
            optimum.plan.map(|plan| (plan.size(), plan.block_count())),
            Some((1344, 4))
        );
    }
}
