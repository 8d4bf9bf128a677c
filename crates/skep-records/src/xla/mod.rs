//! XLA's dumps of its own planning (`--xla_dump_to`): what its heap simulator placed, as text and as a message.
//!
//! Of a run's allocations those are planned that the heap simulator made, `preallocated-temp` in the text. Values that
//! share an offset while both are live are one buffer there, since the operation works in place: so they are here, with
//! the name of the first. Steps are positions in the sequence of instructions in the text, and of events in the
//! message: the same plans fit both.

mod groups;
mod live_range;
mod proto;
mod text;
pub(crate) mod wire;

use skep_planner::{UsageRecords, bounds};

use crate::error::RecordsError;

pub use proto::{HeapBlock, read_heap_blocks, read_proto};
pub use text::read_text;

/// How a buffer assignment begins.
pub(crate) const ASSIGNMENT_HEADING: &str = "BufferAssignment:";

/// How a file of live ranges begins.
pub(crate) const LIVE_RANGE_HEADING: &str = "HloLiveRange";

/// Allocations with a title each, the one with the largest load first.
fn sorted(
    mut heaps: Vec<(String, UsageRecords)>,
    expected: &'static str,
) -> Result<Vec<(String, UsageRecords)>, RecordsError> {
    heaps.retain(|(_, records)| !records.problem().is_empty());
    if heaps.is_empty() {
        return Err(RecordsError::NothingToPlan { expected });
    }
    heaps.sort_by_cached_key(|(_, records)| std::cmp::Reverse(bounds::max_load(records.problem())));
    Ok(heaps)
}
