//! A plan by which a run can be replayed.

use std::{collections::BTreeMap, ops::Range};

use crate::{ALIGNMENT, RecordedBlock, Recording};

/// Why offsets do not fit a recording.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRunPlan {
    /// Not one place for each block.
    #[error("{places} places for {blocks} blocks, expected one each")]
    Count {
        /// Blocks of the recording.
        blocks: usize,
        /// Places given.
        places: usize,
    },
    /// An offset that is not aligned, or so large that the block's end cannot be counted.
    #[error(
        "block {block} of {size} bytes at offset {offset}, expected a multiple of {ALIGNMENT} that leaves room for it"
    )]
    Offset {
        /// The block.
        block: usize,
        /// Its bytes.
        size: u64,
        /// Its place.
        offset: u64,
    },
    /// A block that outlives the run cannot lie in memory that the next run uses.
    #[error("block {block} outlives its run, expected no place in the arena for it")]
    Outlives {
        /// The block.
        block: usize,
    },
    /// Two blocks that are live together share bytes.
    #[error("blocks {first} and {second} are live together, and overlap")]
    Overlap {
        /// The earlier one.
        first: usize,
        /// The later one.
        second: usize,
    },
}

/// Where each block of a run lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPlan {
    blocks: Vec<PlannedBlock>,
    predecessors: Vec<u32>,
    size: u64,
    sum: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PlannedBlock {
    size: u64,
    /// `None`: on the heap.
    place: Option<PlannedPlace>,
}

/// A block's place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PlannedPlace {
    offset: u64,
    /// Where in the list of predecessors those of this block are.
    predecessors: Range<u32>,
}

impl RunPlan {
    /// The plan that puts block n of `recording` at `places[n]`, bytes from the arena's beginning, or on the heap where
    /// that is `None`.
    ///
    /// # Errors
    /// The places are not one a block, not aligned, or two blocks would share bytes while both are live.
    pub fn new(recording: &Recording, places: &[Option<u64>]) -> Result<Self, InvalidRunPlan> {
        let recorded = recording.blocks();
        if recorded.len() != places.len() {
            return Err(InvalidRunPlan::Count {
                blocks: recorded.len(),
                places: places.len(),
            });
        }
        let mut plan = Self {
            blocks: Vec::with_capacity(recorded.len()),
            predecessors: Vec::new(),
            size: 0,
            sum: 0,
        };
        let mut occupants = Occupants::default();
        for (number, (block, place)) in recorded.iter().zip(places).enumerate() {
            let place = match place {
                Some(offset) if block.size > 0 => {
                    Some(plan.place(&recorded, number, *offset, &mut occupants)?)
                }
                _ => None,
            };
            plan.blocks.push(PlannedBlock {
                size: block.size,
                place,
            });
        }
        Ok(plan)
    }

    fn place(
        &mut self,
        recorded: &[RecordedBlock],
        number: usize,
        offset: u64,
        occupants: &mut Occupants,
    ) -> Result<PlannedPlace, InvalidRunPlan> {
        let RecordedBlock { size, start, end } = recorded[number];
        if end.is_none() {
            return Err(InvalidRunPlan::Outlives { block: number });
        }
        let end_of_block = offset
            .checked_add(size)
            .filter(|end| offset.is_multiple_of(ALIGNMENT) && *end < i64::MAX as u64)
            .ok_or(InvalidRunPlan::Offset {
                block: number,
                size,
                offset,
            })?;
        let first = self.predecessors.len();
        let block = u32::try_from(number).expect("recordings are bounded");
        for last in occupants.replace(offset..end_of_block, block) {
            if recorded[last as usize].end.is_none_or(|end| end > start) {
                return Err(InvalidRunPlan::Overlap {
                    first: last as usize,
                    second: number,
                });
            }
            self.predecessors.push(last);
        }
        self.size = self.size.max(end_of_block);
        self.sum = self.sum.saturating_add(size);
        let index = |position| u32::try_from(position).expect("at most two a block");
        Ok(PlannedPlace {
            offset,
            predecessors: index(first)..index(self.predecessors.len()),
        })
    }

    /// Bytes of the arena.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that the blocks in the arena would take one beside the other.
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.sum
    }

    /// How many blocks a run allocates, on the heap or not.
    #[must_use]
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Of block `number`: its size, and its offset unless it is on the heap.
    pub(crate) fn block(&self, number: usize) -> Option<(u64, Option<u64>)> {
        let block = self.blocks.get(number)?;
        Some((block.size, block.place.as_ref().map(|place| place.offset)))
    }

    /// The blocks that were the last before this one on its bytes.
    pub(crate) fn predecessors(&self, number: usize) -> &[u32] {
        let place = self
            .blocks
            .get(number)
            .and_then(|block| block.place.as_ref());
        place.map_or(&[], |place| {
            &self.predecessors[place.predecessors.start as usize..place.predecessors.end as usize]
        })
    }
}

/// Which block was the last on each byte: disjoint ranges by their start. A new range splits at most two old ones, so
/// that all of them together are at most two a block, and so are all predecessors.
#[derive(Default)]
struct Occupants {
    ranges: BTreeMap<u64, (u64, u32)>,
}

impl Occupants {
    /// Puts `block` on `range`; returns the blocks that were there before, in order of address, each once.
    fn replace(&mut self, range: Range<u64>, block: u32) -> Vec<u32> {
        let before = self.ranges.range(..range.start).next_back();
        let from = before
            .filter(|(_, (end, _))| *end > range.start)
            .map_or(range.start, |(start, _)| *start);
        let met: Vec<(u64, (u64, u32))> = self
            .ranges
            .range(from..range.end)
            .map(|(start, rest)| (*start, *rest))
            .collect();
        let mut blocks = Vec::with_capacity(met.len());
        for (start, (end, occupant)) in met {
            self.ranges.remove(&start);
            if start < range.start {
                self.ranges.insert(start, (range.start, occupant));
            }
            if end > range.end {
                self.ranges.insert(range.end, (end, occupant));
            }
            if !blocks.contains(&occupant) {
                blocks.push(occupant);
            }
        }
        self.ranges.insert(range.start, (range.end, block));
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockEvent;

    #[test]
    fn a_new_occupant_splits_the_ranges_that_it_covers_in_part() {
        let mut occupants = Occupants::default();
        assert_eq!(occupants.replace(0..64, 0), []);
        assert_eq!(occupants.replace(64..256, 1), []);
        // As long as an old range: its neighbour stays.
        assert_eq!(occupants.replace(0..64, 2), [0]);
        assert_eq!(occupants.replace(128..192, 3), [1]);
        let ranges: Vec<_> = occupants.ranges.clone().into_iter().collect();
        let expected = [
            (0, (64, 2)),
            (64, (128, 1)),
            (128, (192, 3)),
            (192, (256, 1)),
        ];
        assert_eq!(ranges, expected);
        assert_eq!(occupants.replace(32..256, 4), [2, 1, 3]);
        let ranges: Vec<_> = occupants.ranges.into_iter().collect();
        assert_eq!(ranges, [(0, (32, 2)), (32, (256, 4))]);
    }

    #[test]
    fn a_block_ends_before_the_largest_address() {
        let events = vec![BlockEvent::Malloc(63), BlockEvent::Free(0)];
        let recording = Recording::new(events).expect("a recording");
        let last = (1_u64 << 63) - 64;
        let plan = |offset| RunPlan::new(&recording, &[Some(offset)]);
        assert!(matches!(plan(last), Err(InvalidRunPlan::Offset { .. })));
        assert!(plan(last - 64).is_ok());
    }
}
