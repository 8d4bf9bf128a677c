//! XLA's `*.hlo.pb`: the traces of its heap simulator, one after the other.
//!
//! A block is what values share while one of them is live: it is as large as the largest of them, is allocated with the
//! first and freed with the last. So a value that takes another one's place (`SHARE_WITH`) is no event.

use std::{io::Read, vec};

use skep_records::xla;

use crate::{blocks::LiveBlocks, error::TraceError, input::Input};

/// A dump is read whole, since sizes come after the module and before the events; the largest seen have some 100 MB.
const MAX_BYTES: usize = 1 << 30;

/// An event of a block, which has a number.
enum HeapEvent {
    Malloc { block: u64, bytes: u64 },
    Free { block: u64 },
}

/// Passes on what a dump says.
pub(crate) struct HeapReader {
    events: vec::IntoIter<HeapEvent>,
}

impl HeapReader {
    pub(crate) fn open<R: Read>(input: &mut Input<R>) -> Result<Self, TraceError> {
        let bytes = input.rest(MAX_BYTES)?;
        let mut events = Vec::new();
        let mut count = 0;
        for heap in xla::read_heap_blocks(&bytes)? {
            // Each step of the simulator has one event at most, so the order is complete.
            let mut steps = Vec::with_capacity(2 * heap.len());
            for block in heap {
                let number = count;
                count += 1;
                steps.push((
                    block.start,
                    HeapEvent::Malloc {
                        block: number,
                        bytes: block.size,
                    },
                ));
                if let Some(end) = block.end {
                    steps.push((end, HeapEvent::Free { block: number }));
                }
            }
            steps.sort_unstable_by_key(|(step, _)| *step);
            events.extend(steps.into_iter().map(|(_, event)| event));
        }
        Ok(Self {
            events: events.into_iter(),
        })
    }

    pub(crate) fn advance(&mut self, blocks: &mut LiveBlocks) -> Result<bool, TraceError> {
        match self.events.next() {
            None => return Ok(false),
            Some(HeapEvent::Malloc { block, bytes }) => {
                blocks.malloc(&block.to_ne_bytes(), bytes, 0)?;
            }
            Some(HeapEvent::Free { block }) => blocks.free(&block.to_ne_bytes()),
        }
        Ok(true)
    }
}
