//! What in a trace could not become an event, or only with a note.

/// Counts of what a reader has met so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unmatched {
    /// Allocations that no free could name: left out.
    pub allocation_without_id: u64,
    /// Frees that name no block: left out.
    pub free_without_id: u64,
    /// Frees of blocks that are not live: left out. Such a block was allocated before the trace began, or freed before.
    pub free_of_unknown_id: u64,
    /// Allocations under the id of a live block: the earlier block is freed first.
    pub id_allocated_twice: u64,
    /// Blocks of 0 bytes: kept. PyTorch's profiles, where the sign of the size tells an allocation from a free, are an
    /// exception: left out.
    pub zero_bytes: u64,
    /// Events before others that were passed on already, since the file's order is too far from that of time: kept.
    pub late: u64,
}

impl Unmatched {
    /// What was met, in words, with its count.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self {
            allocation_without_id,
            free_without_id,
            free_of_unknown_id,
            id_allocated_twice,
            zero_bytes,
            late,
        } = *self;
        [
            ("allocation without id", allocation_without_id),
            ("free without id", free_without_id),
            ("free of an id never allocated", free_of_unknown_id),
            ("id allocated twice", id_allocated_twice),
            ("block of 0 bytes", zero_bytes),
            ("event out of order", late),
        ]
        .into_iter()
        .filter(|(_, count)| *count > 0)
    }

    /// Whether everything matched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
