//! What a run allocated, in its order.

use std::collections::HashMap;

/// One step of a run's allocations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockEvent {
    /// Allocates a block of this many bytes; the n-th `Malloc` makes block n.
    Malloc(u64),
    /// Frees the block of this number.
    Free(u32),
}

/// The allocations of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    events: Vec<BlockEvent>,
}

/// A block's part of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedBlock {
    /// Bytes.
    pub size: u64,
    /// The step that allocates it.
    pub start: u64,
    /// The step that frees it; `None` where it outlives the run.
    pub end: Option<u64>,
}

impl Recording {
    /// A recording of these events, `None` where a block is freed before it is allocated, or twice.
    #[must_use]
    pub fn new(events: Vec<BlockEvent>) -> Option<Self> {
        let mut live = Vec::new();
        for event in &events {
            match *event {
                BlockEvent::Malloc(_) => live.push(true),
                BlockEvent::Free(block) => {
                    let block = live.get_mut(usize::try_from(block).ok()?)?;
                    if !std::mem::replace(block, false) {
                        return None;
                    }
                }
            }
        }
        Some(Self { events })
    }

    /// The recording of blocks with these live ranges, in order of allocation; their steps order the events and need not
    /// be consecutive. `None` where a block is freed before it is allocated, or blocks are too many to be numbered.
    #[must_use]
    pub fn of_blocks(blocks: &[RecordedBlock]) -> Option<Self> {
        let mut steps: Vec<(u64, BlockEvent)> = Vec::with_capacity(2 * blocks.len());
        for (number, block) in blocks.iter().enumerate() {
            steps.push((block.start, BlockEvent::Malloc(block.size)));
            if let Some(end) = block.end {
                steps.push((end, BlockEvent::Free(u32::try_from(number).ok()?)));
            }
        }
        steps.sort_by_key(|(step, _)| *step);
        Self::new(steps.into_iter().map(|(_, event)| event).collect())
    }

    /// The events, in their order.
    #[must_use]
    pub fn events(&self) -> &[BlockEvent] {
        &self.events
    }

    /// Each block's size and live range, in steps of the run.
    #[must_use]
    pub fn blocks(&self) -> Vec<RecordedBlock> {
        let mut blocks: Vec<RecordedBlock> = Vec::new();
        for (step, event) in (0..).zip(&self.events) {
            match *event {
                BlockEvent::Malloc(size) => blocks.push(RecordedBlock {
                    size,
                    start: step,
                    end: None,
                }),
                BlockEvent::Free(block) => blocks[block as usize].end = Some(step),
            }
        }
        blocks
    }

    /// The most bytes in use at once.
    #[must_use]
    pub fn peak(&self) -> u64 {
        let mut sizes = Vec::new();
        let (mut live, mut peak) = (0_u64, 0);
        for event in &self.events {
            match *event {
                BlockEvent::Malloc(size) => {
                    sizes.push(size);
                    live = live.saturating_add(size);
                    peak = peak.max(live);
                }
                BlockEvent::Free(block) => live = live.saturating_sub(sizes[block as usize]),
            }
        }
        peak
    }
}

/// A recording in the making: blocks are known by their addresses.
#[derive(Debug, Default)]
pub struct Recorder {
    recording: Recording,
    blocks: u32,
    live: HashMap<usize, u32>,
    /// The run has more blocks than a recording can count, so there is no recording.
    overflowed: bool,
}

/// A run that allocates more often than this is not planned: a recording of it would be as large as its tensors.
const MAX_BLOCKS: u32 = 1 << 17;

impl Recorder {
    /// Writes down that the block of `size` bytes at address `block` was allocated.
    pub fn malloc(&mut self, block: usize, size: u64) {
        if self.blocks == MAX_BLOCKS {
            // There will be no recording: take no memory for the rest of the run.
            *self = Self {
                blocks: MAX_BLOCKS,
                overflowed: true,
                ..Self::default()
            };
            return;
        }
        self.recording.events.push(BlockEvent::Malloc(size));
        self.live.insert(block, self.blocks);
        self.blocks += 1;
    }

    /// Writes down that the block at address `block` was freed; one of an earlier run is left out.
    pub fn free(&mut self, block: usize) {
        if let Some(block) = self.live.remove(&block) {
            self.recording.events.push(BlockEvent::Free(block));
        }
    }

    /// The recording; `None` of a run with more blocks than are counted.
    #[must_use]
    pub fn finish(self) -> Option<Recording> {
        (!self.overflowed).then_some(self.recording)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorder_names_blocks_by_their_order_and_forgets_addresses_that_are_freed() {
        let mut recorder = Recorder::default();
        recorder.malloc(0x1000, 300);
        recorder.malloc(0x2000, 200);
        // A block of an earlier run.
        recorder.free(0x9000);
        recorder.free(0x1000);
        recorder.malloc(0x1000, 250);
        recorder.free(0x1000);
        recorder.free(0x1000);
        let recording = recorder.finish().expect("a recording");
        let expected = [
            BlockEvent::Malloc(300),
            BlockEvent::Malloc(200),
            BlockEvent::Free(0),
            BlockEvent::Malloc(250),
            BlockEvent::Free(2),
        ];
        assert_eq!(recording.events(), expected);
        assert_eq!(recording.peak(), 500);
    }

    #[test]
    fn a_run_with_too_many_blocks_has_no_recording_and_takes_no_more_memory() {
        let recorder_of = |blocks: u32| {
            let mut recorder = Recorder::default();
            for block in 0..blocks {
                recorder.malloc(block as usize, 1);
            }
            recorder
        };
        let most = recorder_of(MAX_BLOCKS).finish().expect("a recording");
        assert_eq!(most.events().len(), MAX_BLOCKS as usize);
        let too_many = recorder_of(MAX_BLOCKS + 3);
        assert!(too_many.recording.events.is_empty() && too_many.live.is_empty());
        assert_eq!(too_many.finish(), None);
    }
}
